"""A live module and its saved file are the same subject."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer

ARRAYS = ("running_mean", "running_var", "weight", "bias")

MODULES: dict[str, Callable[[], nn.Module]] = {
    "nested": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ModuleDict({"bn": nn.BatchNorm2d(4, momentum=None)})).eval(),
    "half": lambda: nn.Sequential(nn.BatchNorm1d(4, eps=1e-3)).half(),
    "bfloat16": lambda: nn.BatchNorm3d(4).bfloat16(),
    "without statistics": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "lazy": lambda: nn.Sequential(nn.LazyBatchNorm2d()),
    "meta": lambda: nn.BatchNorm2d(4, device="meta"),
    "synchronised": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4))),
    "wrapped": lambda: nn.DataParallel(nn.Sequential(nn.BatchNorm2d(4))),
    "instance norm": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
}


def comparable(layer: BatchNormLayer) -> dict[str, object]:
    """The fields of a layer with arrays as bytes."""
    values = {field.name: getattr(layer, field.name) for field in fields(layer)}
    return {
        name: (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_live_module_is_what_its_file_is(tmp_path: Path, read: Callable[[Path], Checkpoint], name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    torch.save(module, tmp_path / "model.pt")
    saved = read(tmp_path / "model.pt").layers
    live = live_group(module).layers
    assert [comparable(layer) for layer in live] == [comparable(layer) for layer in saved]


def test_the_numbers_are_a_copy() -> None:
    module = nn.BatchNorm2d(4)
    [layer] = live_group(module).layers
    module.running_mean += 1  # type: ignore[operator]
    assert layer.running_mean is not None
    assert layer.running_mean.tolist() == [0, 0, 0, 0]
