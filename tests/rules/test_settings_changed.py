"""eps, momentum and dtypes that an export changed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import bncheck
from bncheck.findings.rule import CannotTell
from bncheck.rules.settings_changed import RULE
from bncheck.subjects.layer import UNKNOWN, StatisticsUse, stored
from bncheck.subjects.pair import CheckpointPair
from tests.rules.layers import layer, of_state_dict
from tests.rules.pairs import MOVED, TRAINED, answers, file, messages, paired, reasons, said

HALF = {
    "dtype": "float16",
    "weight": np.float16([1.0, 0.9, 1.1, 0.7]),
    "bias": np.float16([0.0, 0.1, -0.1, 0.2]),
    "running_mean": np.float16([0.1, -0.2, 0.3, 0.0]),
}

QUIET: dict[str, CheckpointPair] = {
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
    "training in another dtype": paired(
        file(layer()), file(layer(**{**TRAINED, **MOVED}, dtype="bfloat16", num_batches_tracked=1100))
    ),
}

FIRES: dict[str, tuple[CheckpointPair, list[tuple[str, str]], str]] = {
    "eps of another order, large variances": (
        paired(file(layer(eps=stored(1e-3))), file(layer())),
        [("warning", "bn")],
        "eps was 0.001 and is 1e-05, which changes the scale of a channel by up to 0.10%",
    ),
    "eps of another order, a small variance": (
        paired(file(layer(eps=stored(1e-3), running_var=[1e-3, 1, 1, 1])), file(layer(running_var=[1e-3, 1, 1, 1]))),
        [("error", "bn")],
        "eps was 0.001 and is 1e-05, which changes the scale of a channel by up to 40.72%",
    ),
    "eps after more training": (
        paired(file(layer(eps=stored(1e-3))), file(layer(**MOVED, **TRAINED, num_batches_tracked=1100))),
        [("warning", "bn")],
        "by up to 0.10%",
    ),
    "eps of frozen layers": (
        paired(
            file(layer(use=StatisticsUse.FROZEN, momentum=UNKNOWN)),
            file(layer(use=StatisticsUse.FROZEN, momentum=UNKNOWN, eps=stored(0.0))),
        ),
        [("warning", "bn")],
        "eps was 1e-05 and is 0",
    ),
    "momentum back to the default": (
        paired(file(layer(momentum=stored(0.03))), file(layer())),
        [("warning", "bn")],
        "momentum was 0.03 and is 0.1, the default of PyTorch",
    ),
    "momentum by a schedule": (
        paired(file(layer()), file(layer(momentum=stored(0.05)))),
        [("note", "bn")],
        "momentum was 0.1 and is 0.05",
    ),
    "momentum None is a value": (
        paired(file(layer(momentum=stored(None))), file(layer())),
        [("warning", "bn")],
        "momentum was None and is 0.1, the default of PyTorch",
    ),
    "a variance that overflows": (
        paired(file(layer(running_var=[7e4, 1.5, 2, 1])), file(layer(running_var=[np.inf, 1.5, 2, 1], **HALF))),
        [("error", "bn")],
        "the statistics were float32 and are float16, in which some are NaN or infinite",
    ),
    "a variance that vanishes beside a small eps": (
        paired(
            file(layer(eps=stored(1e-9), running_var=[1e-8, 1.5, 2, 1])),
            file(layer(eps=stored(1e-9), running_var=[0, 1.5, 2, 1], **HALF)),
        ),
        [("error", "bn")],
        "in which some are so small that a channel is scaled by 231.66% more",
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    pair, expected, message = FIRES[name]
    assert expected == said(RULE, pair)
    assert message in messages(RULE, pair)[0]


def test_a_state_dict_holds_neither() -> None:
    pair = paired(file(layer()), file(of_state_dict()))
    assert reasons(RULE, pair) == ["the file does not hold eps", "the file does not hold momentum"]
    frozen = of_state_dict(use=StatisticsUse.FROZEN)
    assert not [
        answer for answer in answers(RULE, paired(file(frozen), file(frozen))) if isinstance(answer, CannotTell)
    ]


def test_a_cast_to_half_precision_as_torch_does_it() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        network[1].running_var.copy_(torch.tensor([1e5, 1.0]))
    import copy

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = bncheck.diff(network, copy.deepcopy(network).half())
    assert [(finding.rule, finding.layer) for finding in report.findings] == [("settings-changed", "1")]
