"""What no training leads to."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bncheck
from bncheck.rules.impossible_lineage import RULE
from bncheck.subjects.layer import StatisticsUse, stored
from bncheck.subjects.pair import CheckpointPair
from tests.rules.layers import layer, of_state_dict
from tests.rules.pairs import MOVED, TRAINED, file, paired
from tests.rules.tables import Fires, Quiet, fires, quiet, warning


def later(updates: int, factor: float, **fields: object) -> CheckpointPair:
    """A layer that counts more updates, with its variance times a factor."""
    var = np.float32([0.5, 1.5, 2.0, 1.0])
    made = {"running_var": var * np.float32(factor), "num_batches_tracked": 1000 + updates, **fields}
    return paired(file(layer(**fields)), file(layer(**made)))


QUIET: Quiet = {
    "the same file": paired(file(layer()), file(layer())),
    "another epoch": paired(file(layer()), file(layer(**MOVED, **TRAINED, num_batches_tracked=1100))),
    "one update that met no variance at all": later(1, 0.9),
    "ten of them, as float32 rounds": later(10, 0.9**10 * (1 - 1e-4)),
    "many updates may do anything": later(1000, 1e-12),
    "momentum 0.5": later(1, 0.6, momentum=stored(0.5)),
    "momentum 1: the last batch": later(1, 0.0, momentum=stored(1.0)),
    "momentum None: the mean of all batches": later(1000, 0.51, momentum=stored(None)),
    "half precision rounds": later(3, 0.9**3 * 0.98, dtype="float16"),
    "an average does not keep its counter": paired(
        file(layer()), file(layer(**MOVED, **TRAINED, num_batches_tracked=0))
    ),
    "Ultralytics counts one": paired(file(layer()), file(layer(**MOVED, **TRAINED, num_batches_tracked=1))),
    "a conversion that loses the counter": paired(file(layer()), file(layer(num_batches_tracked=0))),
    "AveragedModel after update_bn": paired(
        file(layer()), file(layer(**MOVED, num_batches_tracked=22), n_averaged=np.ones(()))
    ),
    "a counter in half precision": paired(
        file(layer(num_batches_tracked=2049)), file(layer(num_batches_tracked=2048.0, counter_dtype="float16"))
    ),
    "no counter": paired(file(layer()), file(layer(num_batches_tracked=None))),
    "a counter that is not finite": paired(file(layer()), file(layer(num_batches_tracked=float("nan")))),
    "a negative counter before": paired(
        file(layer(num_batches_tracked=-5, momentum=stored(None))),
        file(layer(num_batches_tracked=0, momentum=stored(None), **MOVED)),
    ),
    "frozen classes": paired(
        file(layer(use=StatisticsUse.FROZEN)), file(layer(use=StatisticsUse.FROZEN, num_batches_tracked=3))
    ),
    "variances that are not finite": later(1, np.nan),
    "variances so small that float32 has no digits left": paired(
        file(layer(running_var=1e-40)), file(layer(running_var=5e-41, num_batches_tracked=1001))
    ),
    "a momentum that is no number": later(1, 0.1, momentum=stored(float("nan"))),
}

FIRES: Fires = {
    "the counter went back": (
        paired(file(layer()), file(layer(**MOVED, num_batches_tracked=44))),
        warning("num_batches_tracked went back from 1,000 to 44: the second does not continue the first"),
    ),
    "back to 1 with equal weights and other statistics: the files are the other way round": (
        paired(file(layer()), file(layer(**MOVED, num_batches_tracked=1))),
        warning("num_batches_tracked went back from 1,000 to 1"),
    ),
    "a variance below the bound": (
        later(2, 0.8),
        warning("running_var of all 4 channels is below what 2 updates with momentum 0.1 leave of it: "),
    ),
    "the largest momentum that is likely, where the file holds none": (
        paired(file(of_state_dict()), file(of_state_dict(running_var=[0.5, 1.5, 0.1, 1.0], num_batches_tracked=1001))),
        warning(
            "running_var of channel 2 of 4 is below what 1 update with momentum 0.1 (assumed) leave of it: 0.1 in "
            "channel 2, which had 2 and keeps at least 1.8"
        ),
    ),
    "momentum 0 keeps everything": (
        later(5, 0.9, momentum=stored(0.0)),
        warning("5 updates with momentum 0 leave of it"),
    ),
    "momentum None": (
        later(1000, 0.49, momentum=stored(None)),
        warning("1,000 updates with momentum None leave of it"),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.2, None])
@pytest.mark.parametrize("batches", [1, 7, 50])
def test_batches_without_any_variance_are_the_bound(momentum: float | None, batches: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(6, momentum=momentum))
    for _ in range(3):
        network(torch.randn(16, 6) * torch.logspace(-3, 2, 6))
    before = copy.deepcopy(network)
    for _ in range(batches):
        network(torch.full((16, 6), 3.3))
    rules = [finding.rule for finding in bncheck.diff(before, network, select=["impossible-lineage"]).findings]
    assert rules == []
    with torch.no_grad():
        network[0].running_var.mul_(0.99)
    assert len(bncheck.diff(before, network, select=["impossible-lineage"]).findings) == 1
