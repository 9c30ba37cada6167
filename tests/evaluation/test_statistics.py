"""BatchNorm layers are found under the names of their checkpoint, and their statistics are copied and put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.evaluation.restoring import fingerprint
from bncheck.evaluation.statistics import Statistics, batchnorm_layers, broken, moved, put_back, snapshot, updates


class FrozenBatchNorm(nn.Module):
    """As torchvision, detectron2 and timm have it: everything is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(3))


class BatchNormWithActivation(nn.BatchNorm2d):
    """As timm has it."""


def zoo() -> nn.Module:
    shared = nn.BatchNorm2d(3)
    return nn.ModuleDict(
        {
            "plain": nn.BatchNorm2d(3),
            "without": nn.BatchNorm1d(3, track_running_stats=False),
            "sync": nn.SyncBatchNorm(3),
            "frozen": FrozenBatchNorm(),
            "subclass": BatchNormWithActivation(3),
            "lazy": nn.LazyBatchNorm3d(),
            "shared": shared,
            "again": shared,
            "compiled": torch.compile(nn.Sequential(nn.BatchNorm2d(3)), backend="eager"),
            "instance": nn.InstanceNorm2d(3, track_running_stats=True),
            "group": nn.GroupNorm(1, 3),
        }
    )


NAMES = ["plain", "without", "sync", "frozen", "subclass", "lazy", "shared", "compiled.0"]


@pytest.mark.parametrize(
    "wrap", [nn.Sequential, nn.DataParallel, lambda module: torch.compile(module, backend="eager")],
    ids=["sequential", "DataParallel", "compile"],
)  # fmt: skip
def test_batchnorm_layers_are_found_by_the_names_of_their_checkpoint(wrap: Callable[[nn.Module], nn.Module]) -> None:
    module = wrap(zoo())
    layers = batchnorm_layers(module)
    names = [f"0.{name}" for name in NAMES] if wrap is nn.Sequential else NAMES
    assert list(layers) == names
    assert [layer.name for layer in live_group(module).layers if layer.kind.value != "InstanceNorm2d"] == names


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_batchnorm_layers_of_a_script_module_are_found() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3))
    net.append(nn.InstanceNorm2d(3, track_running_stats=True))
    assert list(batchnorm_layers(torch.jit.script(net))) == ["0", "1"]


def test_a_network_without_batchnorm_has_none() -> None:
    assert batchnorm_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))) == {}


def test_a_snapshot_is_put_back_into_the_same_tensors() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), FrozenBatchNorm())
    layers = batchnorm_layers(module)
    saved = snapshot(layers)
    assert saved["1"] == Statistics(None, None, None)
    assert saved["2"].counter is None
    before = fingerprint(module)
    module[0](torch.ones(4, 3, 6, 6).cumsum(-1))
    module[2].running_var.zero_()
    assert module[0].num_batches_tracked == 1
    put_back(layers, saved)
    assert fingerprint(module) == before
    assert module[0].num_batches_tracked == 0


def statistics(mean: list[float], var: list[float], counter: int | None) -> Statistics:
    return Statistics(torch.tensor(mean), torch.tensor(var), None if counter is None else torch.tensor(counter))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(([0.0, 1.0], [1.0, 1.0], 0), ([0.0, 1.0], [1.0, 1.0], 0), (False, 0, 0), id="nothing"),
        pytest.param(([0.0, 1.0], [1.0, 1.0], 0), ([0.0, 1.0], [1.0, 1.0], 3), (False, 3, 0), id="the counter alone"),
        pytest.param(([0.0, 1.0], [1.0, 1.0], 2), ([0.5, 1.0], [1.0, 1.0], 3), (True, 1, 0), id="a mean"),
        pytest.param(([0.0, 1.0], [1.0, 0.0], None), ([0.0, 1.0], [1.0, 0.5], None), (True, None, 0), id="a variance"),
        pytest.param(([NAN, 1.0], [1.0, 1.0], 0), ([NAN, 1.0], [1.0, 1.0], 0), (False, 0, 0), id="NaN that stays"),
        pytest.param(([NAN, 1.0], [1.0, 1.0], 0), ([NAN, INF], [1.0, NAN], 1), (True, 1, 1), id="one more is broken"),
    ],
)
def test_what_became_of_statistics(before: tuple, after: tuple, expected: tuple[bool, int | None, int]) -> None:
    one, other = statistics(*before), statistics(*after)
    assert (moved(one, other), updates(one, other), broken(one, other)) == expected
