"""Weights that stood still and statistics that moved."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bncheck
from bncheck.rules.frozen_but_drifting import RULE
from tests.rules.layers import array, fresh, layer
from tests.rules.pairs import MOVED, NEARLY, TRAINED, file, paired
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, quiet, the_one, undecided, warning

MORE = {"num_batches_tracked": 1024}
KERNEL = np.ones((4, 3, 1, 1))

QUIET: Quiet = {
    "the same file": paired(file(layer()), file(layer())),
    "a step of training": paired(file(layer()), file(layer(**TRAINED, **NEARLY, num_batches_tracked=1001))),
    "a layer without parameters whose convolution was trained": paired(
        file(layer(weight=None, bias=None), conv__weight=KERNEL),
        file(layer(weight=None, bias=None, **MOVED, **MORE), conv__weight=KERNEL * 1.01),
    ),
    "frozen scale and shift behind a convolution that was trained": paired(
        file(layer(), conv__weight=KERNEL), file(layer(**MOVED, **MORE), conv__weight=KERNEL * 1.01)
    ),
    "momentum 0: counted, not moved": paired(file(layer()), file(layer(**MORE))),
    "as many batches: another rank": paired(file(layer()), file(layer(**MOVED))),
    "fewer batches: another run": paired(file(layer()), file(layer(**MOVED, num_batches_tracked=12))),
    "the same statistics in half precision": paired(
        file(layer()),
        file(
            layer(
                dtype="float16",
                running_mean=np.float16([0.1, -0.2, 0.3, 0.0]),
                weight=np.float16([1.0, 0.9, 1.1, 0.7]),
                bias=np.float16([0.0, 0.1, -0.1, 0.2]),
            )
        ),
    ),
    "no statistics": paired(file(layer()), file(layer(running_mean=None, running_var=None))),
    "several files with as many batches are ranks": paired(
        file(layer(num_batches_tracked=0)), file(layer(**MOVED, num_batches_tracked=0)), several=True
    ),
}

FIRES: Fires = {
    "far": (
        paired(file(layer()), file(layer(**MOVED, **MORE))),
        error(
            "the weights are equal in every bit, but 24 batches in train mode moved the statistics: the means by "
            "0.4163 standard deviations (median of the channels; at most 0.7071), the standard deviations by a factor "
            "of 1.316"
        ),
    ),
    "near": (
        paired(file(layer()), file(layer(**NEARLY, num_batches_tracked=1001))),
        warning(
            "the weights are equal in every bit, but 1 batch in train mode moved the statistics: the means by 0.008535 "
            "standard deviations (median of the channels; at most 0.01414), the standard deviations by a factor of 1"
        ),
    ),
    "with its convolution": (
        paired(file(layer(), conv__weight=KERNEL), file(layer(**MOVED, **MORE), conv__weight=KERNEL)),
        error("24 batches in train mode"),
    ),
    "a counter that averages do not keep": (
        paired(file(layer(num_batches_tracked=0)), file(layer(**MOVED, num_batches_tracked=0))),
        error("but forward passes in train mode moved the statistics"),
    ),
    "no counter": (
        paired(file(layer(num_batches_tracked=None)), file(layer(**MOVED, num_batches_tracked=None))),
        error("but forward passes in train mode moved the statistics"),
    ),
    "statistics that became NaN": (
        paired(file(layer()), file(layer(running_mean=np.nan, running_var=np.nan, **MORE))),
        error("4 channels became NaN or infinite"),
    ),
    "a layer further up was trained: its statistics may have to follow": (
        paired(
            file(layer("a"), layer("b")),
            file(layer("a", **TRAINED, **NEARLY, **MORE), layer("b", **MOVED, **MORE)),
        ),
        warning("Weights of a layer before it changed, so that its input is another one", layer="b"),
    ),
    "a layer further down was trained": (
        paired(
            file(layer("a"), layer("b")),
            file(layer("a", **MOVED, **MORE), layer("b", **TRAINED, **NEARLY, **MORE)),
        ),
        error("24 batches in train mode", layer="a"),
    ),
    "fresh statistics of frozen weights": (
        paired(file(fresh()), file(fresh(**MOVED, num_batches_tracked=3))),
        error("3 batches in train mode"),
    ),
}

UNDECIDED: Undecided = {
    "no parameters in the files": (
        paired(file(layer(weight=None, bias=None)), file(layer(weight=None, bias=None, **MOVED, **MORE))),
        "whether the weights changed cannot be read from the two files",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_the_numbers_are_those_of_the_formula() -> None:
    before, after = layer(), layer(**MOVED, **MORE)
    measured = the_one(RULE, paired(file(before), file(after))).measured
    mean = np.abs(array(MOVED["running_mean"]) - before.running_mean) / np.sqrt(before.running_var + 1e-5)
    variance = 0.5 * np.abs(np.log((array(MOVED["running_var"]) + 1e-5) / (before.running_var + 1e-5)))
    assert measured["mean_shift_median"] == pytest.approx(np.median(mean))
    assert measured["mean_shift_max"] == pytest.approx(mean.max())
    assert measured["variance_shift_median"] == pytest.approx(np.median(variance))


@pytest.mark.parametrize("frozen", ["requires_grad", "eval"])
def test_what_torch_does_to_a_frozen_network(frozen: str) -> None:
    """requires_grad=False and no_grad do not stop BatchNorm; eval() does."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    network.requires_grad_(False)
    before = copy.deepcopy(network)
    network.train(frozen != "eval")
    with torch.no_grad():
        for _ in range(7):
            network(torch.randn(8, 3, 9, 9) + 1)
    report = bncheck.diff(before, network)
    found = {(finding.rule, finding.layer, finding.measured["train_mode_batches"]) for finding in report.findings}
    expected = {("frozen-but-drifting", name, 7) for name in ("1", "4")} if frozen == "requires_grad" else set()
    assert expected == found
