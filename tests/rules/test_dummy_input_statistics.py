"""Statistics of a constant input: tables, and torch as the witness."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.judgement.diagnosis import diagnose
from bncheck.rules.dead_channels import RULE as DEAD_CHANNELS
from bncheck.rules.dummy_input_statistics import RULE
from bncheck.rules.under_converged_statistics import RULE as UNDER_CONVERGED_STATISTICS
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import checkpoint, fresh, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, asked, error, fires, found, quiet, said, warning

DUMMY = {"running_mean": 0, "running_var": 0.81, "num_batches_tracked": 2}

QUIET: Quiet = {
    "a trained layer": layer(),
    "a fresh layer, whose variance is 1": fresh(),
    "the variances differ": layer(**{**DUMMY, "running_var": [0.81, 0.81, 0.81, 0.8101]}),
    "a mean, and the counter does not explain the variance": layer(
        **{**DUMMY, "running_mean": 0.3, "running_var": 0.5}
    ),
    # One BatchNorm behind another in a fresh model: every channel has a variance of 1 - eps / variance.
    "nearly 1 everywhere, the mean tiny": layer(running_mean=1e-9, running_var=0.9999999, num_batches_tracked=1),
    # Scaled data can be so, an input that does not vary cannot: it never makes the variance grow.
    "the same variance above 1": layer(running_mean=0, running_var=2.0),
    "every variance 0: dead channels": layer(running_mean=0, running_var=0),
    "channels at the fixed point of float32: they died in training": layer(running_mean=0, running_var=5.6e-45),
    "NaN": layer(running_mean=0, running_var=float("nan")),
    "detectron2 starts its frozen layers at 1 - eps": layer(
        running_mean=0, running_var=1 - 1e-5, num_batches_tracked=None, use=StatisticsUse.FROZEN
    ),
    "ported frozen layers, 1 - eps without a counter": of_state_dict(
        running_mean=0, running_var=1 - 1e-3, num_batches_tracked=None
    ),
    "no statistics": layer(running_mean=None, running_var=None),
    # The variance of a single channel is that of every channel.
    "one channel is always constant": BatchNormLayer(
        "bn", "", stored("BatchNorm1d"), 1,
        running_mean=np.zeros(1), running_var=np.full(1, 0.81), num_batches_tracked=2,
    ),
}  # fmt: skip

FIRES: Fires = {
    # 0.9 ** 2 of the initial variance is left after two batches of zeros.
    "two batches of zeros, in a fresh model": (fresh(**DUMMY), warning()),
    "in a trained one": (layer(**DUMMY), error()),
    "momentum unknown": (of_state_dict(**DUMMY), error()),
    "momentum 0.03, as Ultralytics has it": (
        fresh(**{**DUMMY, "running_var": 0.97**3, "num_batches_tracked": 3, "momentum": stored(0.03)}),
        warning(),
    ),
    "the counter was lost": (layer(**{**DUMMY, "num_batches_tracked": None}), error()),
    "the counter is not a number": (layer(**{**DUMMY, "num_batches_tracked": float("nan")}), error()),
    "a bias of the convolution: the mean is not 0, the power is exact": (
        fresh(**{**DUMMY, "running_mean": [0.1, -0.2, 0.3, 0.05]}),
        warning(),
    ),
    "in a fresh model where another layer has statistics": (
        [fresh("head", **DUMMY), fresh("stem", running_mean=0.5, running_var=[0.2, 0.3, 0.4, 0.5])],
        error(layer="head"),
    ),
    "in a fresh model where another layer never ran": (
        [fresh("head", **DUMMY), fresh("never ran")],
        warning(layer="head"),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def network(*, bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=0.03),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [False, True], ids=["without bias", "with bias"])
@pytest.mark.parametrize("updates", [1, 2, 40])
def test_zeros_through_a_whole_network_of_torch(bias: bool, updates: int) -> None:
    module = network(bias=bias)
    for _ in range(updates):
        module(torch.zeros(2, 3, 16, 16))
    layers = live_group(module).layers
    assert [("warning", one.name) for one in layers] == said(RULE, layers)
    assert f"(1 - 0.03)^{updates}" in found(RULE, layers)[2].message


def test_zeros_after_the_statistics_are_real_leave_no_constant() -> None:
    module = network()
    module(torch.randn(2, 3, 16, 16))
    module(torch.zeros(2, 3, 16, 16))
    assert asked(RULE, live_group(module).layers) == []


def test_one_cause_is_told_once() -> None:
    module = network()
    for _ in range(200):  # 0.9 ** 200 is far below eps
        module(torch.zeros(2, 3, 16, 16))
    layers = live_group(module.eval()).layers
    assert asked(DEAD_CHANNELS, layers) != []
    report = diagnose(checkpoint(*layers), None, (RULE, UNDER_CONVERGED_STATISTICS, DEAD_CHANNELS))
    assert {finding.rule for finding in report.findings} == {RULE.id}


def test_the_saved_file_says_the_same(tmp_path: Path, read: Callable[[Path], Checkpoint]) -> None:
    module = network()
    module(torch.zeros(2, 3, 16, 16))
    torch.save(module.state_dict(), tmp_path / "model.pt")
    # Momentum is not in the file. It is not 0.1 in the last layer, but the mean of 0 is enough.
    messages = [one.message for one in found(RULE, read(tmp_path / "model.pt"))]
    assert ["(1 - 0.1)^1 (momentum is assumed to be 0.1)" in message for message in messages] == [True, True, False]
