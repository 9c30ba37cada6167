"""Tensors without data, and tensors that do not fit each other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bncheck.evaluation.models.live import live_group
from bncheck.rules.unusable_buffers import RULE
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse, inferred, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, quiet, said, undecided, warning

Read = Callable[[Path], Checkpoint]
ALL = ("weight", "bias", "running_mean", "running_var")
NOTHING: dict[str, Any] = dict.fromkeys(ALL)
TORCH = "torch.nn.modules.batchnorm.BatchNorm2d"


def cut(examined: BatchNormLayer, *names: str) -> BatchNormLayer:
    """The layer with the last channel of some tensors gone."""
    return replace(examined, **{name: getattr(examined, name)[:-1] for name in names})


QUIET: Quiet = {
    "a trained layer": layer(),
    "a state_dict": of_state_dict(),
    "no statistics": layer(running_mean=None, running_var=None),
    "no parameters": layer(weight=None, bias=None),
    "a weight without a bias": layer(bias=None),
    "nothing at all": layer(**NOTHING),
    "a pruned layer whose num_features was set": replace(cut(layer(), *ALL), num_features=3),
    "num_features unknown": replace(layer(), num_features=None),
}

FIRES: Fires = {
    "a lazy layer": (
        layer(**NOTHING, without_data=ALL, dtype="uninitialized"),
        error("weight, bias, running_mean and running_var were never made: the layer is lazy"),
    ),
    "a lazy layer without statistics": (
        layer(**NOTHING, without_data=("weight", "bias"), dtype=None, kind=stored("LazyBatchNorm2d")),
        error("weight and bias were never made"),
    ),
    "the meta device": (layer(**NOTHING, without_data=ALL), error("they are on the meta device")),
    "one buffer on the meta device": (
        layer(running_var=None, without_data=("running_var",)),
        error("running_var has a shape but no numbers"),
    ),
    "parameters on the meta device, or sharded": (
        layer(weight=None, bias=None, without_data=("weight", "bias")),
        warning("weight and bias have a shape but no numbers"),
    ),
    "parameters that were pruned alone": (
        cut(layer(), "weight", "bias"),
        error("running_mean and running_var have 4 channels, weight and bias have 3 channels"),
    ),
    "statistics of different lengths": (
        cut(layer(), "running_var"),
        error("running_mean, weight and bias have 4 channels, running_var has 3 channels"),
    ),
    "a frozen layer": (cut(layer(use=StatisticsUse.FROZEN), "bias"), error("bias has 3 channels")),
    "num_features was not set": (cut(layer(), *ALL), warning("num_features is 4, but the tensors have 3 channels")),
    "no variance, but a counter": (
        of_state_dict(running_var=None, counter_dtype="int64"),
        error("running_var is missing while running_mean is there"),
    ),
    "no mean in a layer of torch": (
        layer(running_mean=None, class_path=TORCH),
        error("running_mean is missing while running_var is there"),
    ),
}

UNDECIDED: Undecided = {
    "quantised": (
        of_state_dict(**NOTHING, without_data=ALL, dtype="qint8"),
        "the statistics of dtype qint8 hold no numbers that can be read",
    ),
    "complex": (
        of_state_dict(running_mean=None, running_var=None, without_data=("running_mean",), dtype="complex64"),
        "the statistics of dtype complex64 hold no numbers that can be read",
    ),
    "computed by a graph": (
        layer(running_mean=None, running_var=None, without_data=("running_mean", "running_var"), dtype=None),
        "the statistics hold no numbers that can be read",
    ),
    "a mean without a counter, as in layers that only center": (
        of_state_dict(running_var=None, num_batches_tracked=None, kind=inferred("BatchNorm")),
        "of the two statistics only one is there, as in layers of other kinds",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def lazy() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.LazyConv2d(3, 1), torch.nn.LazyBatchNorm2d())


def meta() -> torch.nn.Module:
    with torch.device("meta"):
        return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), torch.nn.BatchNorm2d(3))


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("whole", [True, False], ids=["module", "state_dict"])
@pytest.mark.parametrize("build", [lazy, meta])
def test_what_torch_saves_without_complaint(
    tmp_path: Path, read: Read, build: Callable[[], torch.nn.Module], whole: bool
) -> None:
    network = build()
    torch.save(network if whole else network.state_dict(), tmp_path / "model.pt")
    assert said(RULE, read(tmp_path / "model.pt").layers) == [("error", "1")]
    assert said(RULE, live_group(network).layers) == [("error", "1")]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_network_that_ran_once_is_fine() -> None:
    network = lazy()
    network(torch.randn(4, 1, 2, 2))
    assert said(RULE, live_group(network).layers) == []


@pytest.mark.parametrize("broken", ["running_mean", "running_var", "weight", "bias"])
def test_torch_refuses_to_run_what_is_an_error(broken: str) -> None:
    bn = torch.nn.BatchNorm2d(4).eval()
    kept = getattr(bn, broken)[:3].detach()
    setattr(bn, broken, torch.nn.Parameter(kept) if broken in ("weight", "bias") else kept)
    assert said(RULE, live_group(bn).layers) == [("error", "")]
    with pytest.raises(RuntimeError, match="4"):
        bn(torch.randn(2, 4, 3, 3))


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_torch_refuses_to_run_with_one_of_the_statistics(missing: str) -> None:
    bn = torch.nn.BatchNorm2d(4).eval()
    setattr(bn, missing, None)
    assert said(RULE, live_group(bn).layers) == [("error", "")]
    with pytest.raises(RuntimeError, match=missing):
        bn(torch.randn(2, 4, 3, 3))


def test_torch_runs_what_is_a_warning() -> None:
    bn = torch.nn.BatchNorm2d(4).eval()
    bn.num_features = 5
    assert said(RULE, live_group(bn).layers) == [("warning", "")]
    assert bool(torch.isfinite(bn(torch.randn(2, 4, 3, 3))).all())
