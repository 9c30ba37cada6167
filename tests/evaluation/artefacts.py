"""Files of every kind that holds a network, and the network in them."""

from __future__ import annotations

import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bncheck.evaluation.models.calls import call
from bncheck.evaluation.models.runnable import Runnable

NET = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, say=""):
        super().__init__()
        if say:
            print(say)
        if say == "exit":
            sys.exit(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Net()

    def forward(self, x):
        return self.backbone(x)

class Versioned(Net):
    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *more):
        if metadata.get("version") != 2:
            raise ValueError("another version")
        super()._load_from_state_dict(state, prefix, metadata, *more)

class Tied(Net):
    def __init__(self):
        super().__init__()
        self.again = self.fc

class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(512, 512, 3)
        self.bn = nn.BatchNorm2d(512)

    def forward(self, x):
        return self.bn(self.conv(x))

def parallel():
    return nn.DataParallel(Net())

def compiled():
    return torch.compile(Net(), backend="eager")

def fails():
    raise ValueError("no such thing")

def number():
    return 3

instance = Net()
"""
GPU, CPU = b"X\x06\x00\x00\x00cuda:0", b"X\x03\x00\x00\x00cpu"


def save_module(module: nn.Module, path: Path, imported: Any) -> Path:
    sys.modules["net"] = imported
    torch.save(module, path)
    del sys.modules["net"]
    return path


def images(samples: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def outputs(runnable: Runnable, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return call(runnable.module, runnable.place(images(dtype=dtype))).float()


def script(module: nn.Module, path: Path, *, how: str = "script") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module, images()) if how == "trace" else torch.jit.script(module)
        torch.jit.save(torch.jit.freeze(made) if how == "freeze" else made, path)
    return path


def export(module: nn.Module, path: Path, *, dynamic: bool = False) -> Path:
    shapes = {"x": {0: torch.export.Dim("batch")}} if dynamic else None
    torch.export.save(torch.export.export(module, (images(),), dynamic_shapes=shapes), path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes], *, new: Mapping[str, bytes] = {}) -> Path:
    """The zip file with the entries changed."""
    made = path.with_name(f"changed{path.suffix}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as copy:
        for name in old.namelist():
            copy.writestr(name, change(name, old.read(name)))
        root = old.namelist()[0].partition("/")[0]
        for name, data in new.items():
            copy.writestr(f"{root}/{name}", data)
    return made


def replacing(old: str, new: str) -> Callable[[str, bytes], bytes]:
    """Changes a text in the JSON of an archive; it must be there."""
    seen = []

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(".json"):
            return data
        seen.append(old.encode() in data)
        return data.replace(old.encode(), new.encode())

    return change
