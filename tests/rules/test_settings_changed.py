"""eps, momentum and dtypes that an export changed."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from torch import nn

import bncheck
from bncheck.rules.settings_changed import RULE
from bncheck.subjects.layer import UNKNOWN, StatisticsUse, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.pairs import MOVED, TRAINED, file, paired
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, note, quiet, undecided, warning

HALF = {
    "dtype": "float16",
    "weight": np.float16([1.0, 0.9, 1.1, 0.7]),
    "bias": np.float16([0.0, 0.1, -0.1, 0.2]),
    "running_mean": np.float16([0.1, -0.2, 0.3, 0.0]),
}

QUIET: Quiet = {
    "the same settings": paired(file(layer()), file(layer())),
    "eps that a graph holds in single precision": paired(
        file(layer()), file(layer(eps=stored(float(np.float32(1e-5)))))
    ),
    "another mode, another kind, no affine: everyday work": paired(
        file(layer()),
        file(layer(training=stored(True), kind=stored("SyncBatchNorm"), affine=stored(False), weight=None, bias=None)),
    ),
    "NaN in both has a rule of its own": paired(
        file(layer(eps=stored(np.nan), momentum=stored(np.nan))),
        file(layer(eps=stored(np.nan), momentum=stored(np.nan))),
    ),
    "half precision": paired(file(layer()), file(layer(**HALF))),
    "variances that vanish far below eps": paired(
        file(layer(running_var=[1e-9, 1.5, 2.0, 1.0])), file(layer(running_var=[0, 1.5, 2.0, 1.0], **HALF))
    ),
    "frozen layers of a state_dict": paired(
        file(of_state_dict(use=StatisticsUse.FROZEN)), file(of_state_dict(use=StatisticsUse.FROZEN))
    ),
    "training in another dtype": paired(
        file(layer()), file(layer(**{**TRAINED, **MOVED}, dtype="bfloat16", num_batches_tracked=1100))
    ),
}

FIRES: Fires = {
    "eps of another order, large variances": (
        paired(file(layer(eps=stored(1e-3))), file(layer())),
        warning("eps was 0.001 and is 1e-05, which changes the scale of a channel by up to 0.10%"),
    ),
    # sqrt((1e-3 + 1e-3) / (1e-3 + 1e-5)) - 1
    "eps of another order, a small variance": (
        paired(file(layer(eps=stored(1e-3), running_var=[1e-3, 1, 1, 1])), file(layer(running_var=[1e-3, 1, 1, 1]))),
        error("eps was 0.001 and is 1e-05, which changes the scale of a channel by up to 40.72%"),
    ),
    "eps after more training": (
        paired(file(layer(eps=stored(1e-3))), file(layer(**MOVED, **TRAINED, num_batches_tracked=1100))),
        warning("by up to 0.10%"),
    ),
    "eps of frozen layers": (
        paired(
            file(layer(use=StatisticsUse.FROZEN, momentum=UNKNOWN)),
            file(layer(use=StatisticsUse.FROZEN, momentum=UNKNOWN, eps=stored(0.0))),
        ),
        warning("eps was 1e-05 and is 0"),
    ),
    "momentum back to the default": (
        paired(file(layer(momentum=stored(0.03))), file(layer())),
        warning("momentum was 0.03 and is 0.1, the default of PyTorch"),
    ),
    "momentum by a schedule": (
        paired(file(layer()), file(layer(momentum=stored(0.05)))),
        note("momentum was 0.1 and is 0.05"),
    ),
    "momentum None is a value": (
        paired(file(layer(momentum=stored(None))), file(layer())),
        warning("momentum was None and is 0.1, the default of PyTorch"),
    ),
    "a variance that overflows": (
        paired(file(layer(running_var=[7e4, 1.5, 2, 1])), file(layer(running_var=[np.inf, 1.5, 2, 1], **HALF))),
        error("the statistics were float32 and are float16, in which some are NaN or infinite"),
    ),
    # Below half of 2^-24, the smallest number of float16: sqrt((1e-8 + 1e-9) / 1e-9) - 1
    "a variance that vanishes beside a small eps": (
        paired(
            file(layer(eps=stored(1e-9), running_var=[1e-8, 1.5, 2, 1])),
            file(layer(eps=stored(1e-9), running_var=[0, 1.5, 2, 1], **HALF)),
        ),
        error("in which some are so small that a channel is scaled by 231.66% more"),
    ),
}

UNDECIDED: Undecided = {
    "a state_dict holds neither": (
        paired(file(layer()), file(of_state_dict())),
        ["the file does not hold eps", "the file does not hold momentum"],
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_a_cast_to_half_precision_as_torch_does_it() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        network[1].running_var.copy_(torch.tensor([1e5, 1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = bncheck.diff(network, copy.deepcopy(network).half())
    assert [(finding.rule, finding.layer) for finding in report.findings] == [("settings-changed", "1")]
