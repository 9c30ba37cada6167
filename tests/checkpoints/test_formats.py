"""What is known from each format: the table of the README, each cell proven on a file that the real library wrote."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bncheck.checkpoints import FORMATS
from bncheck.subjects import Checkpoint, Known
from tests.checkpoints.test_safetensors import write_shards

KNOWN_OF_FORMATS: dict[str, dict[str, str]] = {
    "`torch.save` of a state_dict, in any nesting": {"statistics": "yes", "momentum, eps": "no", "mode": "no"},
    "`torch.save` of a module, whose classes may be absent": {
        "statistics": "yes",
        "momentum, eps": "yes",
        "mode": "yes",
    },
    "safetensors": {"statistics": "yes", "momentum, eps": "no", "mode": "no"},
    "safetensors in shards, with their index, or the folder": {
        "statistics": "yes",
        "momentum, eps": "no",
        "mode": "no",
    },
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3, momentum=0.03), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    )
    made(torch.randn(2, 3, 9, 9))
    return made.eval()


def write_safetensors(folder: Path) -> Path:
    save_file(network().state_dict(), folder / "model")
    return folder / "model"


def write_torch(made: Callable[[], Any], **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(made(), folder / "model", **options)
        return folder / "model"

    return write


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "`torch.save` of a state_dict, in any nesting": (
        "torch.save",
        write_torch(lambda: {"trainer": [{"state_dict": network().state_dict()}]}),
    ),
    "`torch.save` of a module, whose classes may be absent": ("torch.save", write_torch(network)),
    "safetensors": ("safetensors", write_safetensors),
    "safetensors in shards, with their index, or the folder": (
        "safetensors, sharded",
        lambda folder: write_shards(folder, network()),
    ),
}


@pytest.mark.parametrize("name", KNOWN_OF_FORMATS)
def test_what_is_known_of_a_format(tmp_path: Path, read: Callable[[Path], Checkpoint], name: str) -> None:
    format_, write = WRITERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates some of its formats
        path = write(tmp_path)
    checkpoint = read(path)
    assert checkpoint.format == format_
    layers = [layer for layer in checkpoint.layers]
    assert [layer.name.rpartition(".")[2] for layer in layers] == ["1", "3"]
    for layer, module in zip(layers, (network()[1], network()[3]), strict=True):
        assert layer.running_var is not None
        np.testing.assert_array_equal(layer.running_var, module.running_var.numpy())
    known = KNOWN_OF_FORMATS[name]
    settings_are_stored = all(layer.momentum.known is layer.eps.known is Known.STORED for layer in layers)
    assert settings_are_stored == (known["momentum, eps"] == "yes")
    assert all(layer.training.is_known for layer in layers) == known["mode"].startswith("yes")
    if settings_are_stored:
        assert [(layer.eps.value, layer.momentum.value) for layer in layers] == [(1e-3, 0.03), (1e-5, 0.1)]


def test_every_format_is_in_the_table() -> None:
    assert {format_.FORMAT for format_ in FORMATS} <= {format_ for format_, _ in WRITERS.values()} | {
        "torch.save, legacy"
    }
