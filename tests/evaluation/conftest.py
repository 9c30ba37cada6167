"""A network in a file of its own, and the options that name it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.options.model import ModelOptions
from tests.evaluation.artefacts import NET


@pytest.fixture
def net(tmp_path: Path) -> Callable[..., Any]:
    """The classes of a file `net.py`, with trained statistics: `net("Net")`."""
    (tmp_path / "net.py").write_text(NET)
    defined: dict[str, Any] = {"__name__": "net"}
    exec(compile(NET, str(tmp_path / "net.py"), "exec"), defined)  # torch.jit.script reads the file

    def make(name: str = "Net") -> Any:
        torch.manual_seed(0)
        model = defined[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked.fill_(7)
        return model

    return make


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., ModelOptions]:
    def make(name: str | None = "Net", **more: Any) -> ModelOptions:
        return ModelOptions(model=f"{tmp_path / 'net.py'}:{name}" if name else None, **{"device": "cpu", **more})

    return make


@pytest.fixture
def importable_net(tmp_path: Path, net: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same classes as a module that pickles can name; forgotten before the file is loaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    import net as imported  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "net")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    return imported
