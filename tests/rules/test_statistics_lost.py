"""Statistics that were there before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bncheck
from bncheck.rules.statistics_lost import RULE
from bncheck.subjects.layer import StatisticsUse
from bncheck.subjects.pair import CheckpointPair
from tests.rules.layers import fresh, layer
from tests.rules.pairs import MOVED, TRAINED, file, paired, tensor
from tests.rules.tables import Fires, Quiet, error, fires, quiet

BARE = {"bn.weight": tensor([1.0, 0.9, 1.1, 0.7]), "bn.bias": tensor([0.0, 0.1, -0.1, 0.2])}


def parameters_only() -> CheckpointPair:
    """The second file has weight and bias, which look like a LayerNorm."""
    before = file(layer())
    [group] = before.groups
    return paired(before, replace(before, groups=(replace(group, tensors=BARE, layers=()),)))


QUIET: Quiet = {
    "the same file": paired(file(layer()), file(layer())),
    "a training": paired(file(layer()), file(layer(**MOVED, **TRAINED))),
    "new before and after": paired(file(fresh()), file(fresh())),
    "the first training": paired(file(fresh()), file(layer())),
    "a conversion to frozen layers puts the statistics into weight and bias": paired(
        file(layer()),
        file(layer(running_mean=0, running_var=1, num_batches_tracked=None, use=StatisticsUse.FROZEN, **TRAINED)),
    ),
    "one layer was left out of the second": paired(file(layer("a"), layer("b")), file(layer("a"))),
    "NaN is not initial": paired(file(layer()), file(layer(running_mean=np.nan, running_var=np.nan))),
    "none before": paired(file(layer(running_mean=None, running_var=None)), file(layer())),
}

FIRES: Fires = {
    "initial again": (
        paired(file(layer()), file(fresh())),
        error(
            "running_mean is 0 and running_var is 1 in every channel, as in a new layer; they were trained in the "
            "first checkpoint (1,000 updates)"
        ),
    ),
    "initial with the counter kept": (
        paired(file(layer()), file(layer(running_mean=0, running_var=1))),
        error("as in a new layer"),
    ),
    "parameters only": (
        parameters_only(),
        error(
            "its parameters are in the second checkpoint, but neither running_mean nor running_var, which were trained "
            "in the first (1,000 updates)"
        ),
    ),
    "the layer no longer tracks": (
        paired(file(layer()), file(layer(running_mean=None, running_var=None))),
        error("the layer of the second checkpoint has neither running_mean nor running_var"),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def test_lost_statistics_are_not_told_twice(tmp_path: Path) -> None:
    """Equal weights and moved statistics would else be a drift, and the counter went back."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network(torch.randn(8, 3))
    torch.save(network.state_dict(), tmp_path / "before.pt")
    network[1].reset_running_stats()
    torch.save(network.state_dict(), tmp_path / "after.pt")
    found = bncheck.diff(tmp_path / "before.pt", tmp_path / "after.pt").findings
    assert [(finding.rule, finding.layer) for finding in found] == [("statistics-lost", "1")]
