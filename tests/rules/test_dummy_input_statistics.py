"""Statistics of a constant input: tables, and torch as the witness."""

from collections.abc import Callable
from pathlib import Path

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
from tests.rules.layers import answers, checkpoint, fresh, layer, of_state_dict, said

DUMMY = {"running_mean": 0, "running_var": 0.81, "num_batches_tracked": 2}

QUIET = {
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
}

FRESH = {"weight": 1, "bias": 0}
FIRES: dict[str, tuple[BatchNormLayer, str]] = {
    "two batches of zeros, in a fresh model": (fresh(**DUMMY), "warning"),
    "in a trained one": (layer(**DUMMY), "error"),
    "momentum unknown": (of_state_dict(**DUMMY), "error"),
    "momentum 0.03, as Ultralytics has it": (
        fresh(**{**DUMMY, "running_var": 0.97**3, "num_batches_tracked": 3, "momentum": stored(0.03)}),
        "warning",
    ),
    "the counter was lost": (layer(**{**DUMMY, "num_batches_tracked": None}), "error"),
    "the counter is not a number": (layer(**{**DUMMY, "num_batches_tracked": float("nan")}), "error"),
    "a bias of the convolution: the mean is not 0, the power is exact": (
        fresh(**{**DUMMY, "running_mean": [0.1, -0.2, 0.3, 0.05]}),
        "warning",
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    examined, severity = FIRES[name]
    assert said(RULE, examined) == [(severity, "bn")]


def test_one_channel_is_always_constant() -> None:
    import numpy as np

    one = BatchNormLayer(
        "bn",
        "",
        stored("BatchNorm1d"),
        1,
        running_mean=np.zeros(1),
        running_var=np.full(1, 0.81),
        num_batches_tracked=2,
    )
    assert answers(RULE, one) == []


def test_it_is_an_error_where_another_layer_has_statistics() -> None:
    dummy, other = fresh("head", **DUMMY), fresh("stem", running_mean=0.5, running_var=[0.2, 0.3, 0.4, 0.5])
    assert said(RULE, dummy, other) == [("error", "head")]
    assert said(RULE, dummy, fresh("never ran")) == [("warning", "head")]


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
    assert [("warning", one.name) for one in layers] == said(RULE, *layers)
    assert f"(1 - 0.03)^{updates}" in answers(RULE, *layers)[2].message  # type: ignore[union-attr]


def test_zeros_after_the_statistics_are_real_leave_no_constant() -> None:
    module = network()
    module(torch.randn(2, 3, 16, 16))
    module(torch.zeros(2, 3, 16, 16))
    assert answers(RULE, *live_group(module).layers) == []


def test_one_cause_is_told_once() -> None:
    module = network()
    for _ in range(200):  # 0.9 ** 200 is far below eps
        module(torch.zeros(2, 3, 16, 16))
    layers = live_group(module.eval()).layers
    assert answers(DEAD_CHANNELS, *layers) != []
    found = diagnose(checkpoint(*layers), None, (RULE, UNDER_CONVERGED_STATISTICS, DEAD_CHANNELS)).findings
    assert {finding.rule for finding in found} == {RULE.id}


def test_the_saved_file_says_the_same(tmp_path: Path, read: Callable[[Path], Checkpoint]) -> None:
    module = network()
    module(torch.zeros(2, 3, 16, 16))
    torch.save(module.state_dict(), tmp_path / "model.pt")
    # Momentum is not in the file. It is not 0.1 in the last layer, but the mean of 0 is enough.
    assert RULE.checkpoint is not None
    messages = [answer.message for answer in RULE.checkpoint(read(tmp_path / "model.pt"))]  # type: ignore[union-attr]
    assert ["(1 - 0.1)^1 (momentum is assumed to be 0.1)" in message for message in messages] == [True, True, False]
