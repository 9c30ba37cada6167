"""What many tests need: real released checkpoints, and modules whose classes are gone when they are read."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.subjects.checkpoint import Checkpoint
from tools.real_checkpoints import fetch

# Two workers with two threads each on two cores wait for each other; subprocesses take it from the environment.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes never name a test: they may hold a time, and two processes must collect the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def real_file() -> Callable[[str, str], Path]:
    """A file of a released package: `real_file("legere", "legere/data/model.pt")`."""

    def find(package: str, inside: str) -> Path:
        return fetch(package) / inside

    return find


@pytest.fixture
def read() -> Callable[[Path], Checkpoint]:
    """Reads a checkpoint as the command does."""

    def read_path(path: Path) -> Checkpoint:
        with FileSource(path) as source:
            return read_checkpoint(source)

    return read_path


@pytest.fixture
def save_vanishing(tmp_path: Path) -> Callable[..., Path]:
    """Saves `expression` of a module with `source`, then forgets the module: nobody can import its classes any more."""

    def save(source: str, expression: str, **options: Any) -> Path:
        module = types.ModuleType("vanished_package")
        sys.modules["vanished_package"] = module
        try:
            exec(source, module.__dict__)
            path = tmp_path / f"vanished{len(list(tmp_path.iterdir()))}.pt"
            torch.manual_seed(0)
            torch.save(eval(expression, module.__dict__), path, **options)
        finally:
            del sys.modules["vanished_package"]
        return path

    return save
