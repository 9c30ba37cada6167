"""What the tests of rewriting write and read again: a small network in the formats that can be rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bncheck.checkpoints.rewriting.file import write_checkpoint
from bncheck.checkpoints.rewriting.plan import NewStatistics, choose_group, plan_rewrite, read_writable
from bncheck.checkpoints.sources.local import FileSource

CHANNELS = 3
NEW = NewStatistics(np.array([0.5, -1.25, 3.0]), np.array([0.25, 2.0, 7.5]), 40)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.BatchNorm2d(CHANNELS))
    made(torch.randn(8, 1, 6, 6))
    return made.to(dtype).eval()


def save_zip(state: Any, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: Any, path: Path) -> None:
    save_file(dict(state), path)


FORMATS = {"zip": save_zip, "legacy": save_legacy, "safetensors": save_safetensors}


def load(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            return dict(load_file(path))
    held = torch.load(path, weights_only=False)
    state: dict[str, torch.Tensor] = held.state_dict() if isinstance(held, nn.Module) else held
    return state


def rewrite(path: Path, target: Path, new: NewStatistics = NEW, *, layer: str = "1", force: bool = False) -> Path:
    with FileSource(path) as source:
        group = choose_group(read_writable(source), None)
        plan = plan_rewrite(source, group.name, {layer: new})
        return write_checkpoint(plan, target, [path], force=force)


def changed_bytes(path: Path, target: Path) -> int:
    before, after = (np.frombuffer(file.read_bytes(), dtype=np.uint8) for file in (path, target))
    assert len(before) == len(after)
    return int((before != after).sum())
