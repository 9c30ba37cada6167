"""A pickled module is run as the file says, and nothing of it before it is trusted."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.models.loading import load_runnable
from tests.evaluation.artefacts import CPU, GPU, images, outputs, rewritten, save_module


def test_a_pickled_module_needs_trust(tmp_path: Path, importable_net: Any, options: Any) -> None:
    path = save_module(importable_net.Net(), tmp_path / "model.pt", importable_net)
    with pytest.raises(UsageError) as error:
        load_runnable(path, options(None, python_path=(tmp_path,)))
    assert "runs code that the file names (net.Net, __builtin__.set, " in error.value.message
    assert "--trust-pickle" in error.value.hint
    assert "net" not in sys.modules


def test_a_pickled_module_comes_in_its_mode(tmp_path: Path, importable_net: Any, options: Any) -> None:
    model = importable_net.Net().eval()
    model.bn.train()
    path = save_module(model, tmp_path / "model.pt", importable_net)
    runnable = load_runnable(path, options(None, trust_pickle=True, python_path=(tmp_path,)))
    modes = {name: module.training for name, module in runnable.module.named_modules()}
    assert modes == {"": False, "conv": False, "bn": True, "drop": False, "fc": False}
    assert (runnable.artefact, runnable.modes_are_stored) == ("module", True)
    assert torch.equal(outputs(runnable), model(images()))


def test_a_pickled_module_that_was_saved_on_a_gpu_is_loaded(tmp_path: Path, options: Any) -> None:
    torch.save(nn.BatchNorm2d(3), tmp_path / "model.pt")
    path = rewritten(tmp_path / "model.pt", lambda name, data: data.replace(CPU, GPU) if name.endswith("pkl") else data)
    runnable = load_runnable(path, options(None, trust_pickle=True))
    assert isinstance(runnable.module.running_mean, torch.Tensor)
    assert runnable.module.running_mean.device.type == "cpu"


def test_the_group_chooses_among_pickled_modules(tmp_path: Path, options: Any) -> None:
    inner = OrderedDict(best=nn.BatchNorm1d(2), last=[nn.BatchNorm1d(3)])
    torch.save({"models": inner, "state": nn.BatchNorm1d(5).state_dict()}, tmp_path / "model.pt")
    for group, channels in (("models.best", 2), ("models.last.0", 3)):
        runnable = load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True, group=group))
        assert runnable.module.num_features == channels


def test_data_parallel_is_taken_off(tmp_path: Path, options: Any) -> None:
    torch.save(nn.DataParallel(nn.BatchNorm2d(3)), tmp_path / "model.pt")
    runnable = load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True))
    assert isinstance(runnable.module, nn.BatchNorm2d)
    assert runnable.notes == ("DataParallel was taken off the model",)


SCRIPT_WITH_CLASS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(x)

if __name__ == "__main__":
    raise RuntimeError("it is run as a program")
"""


def test_classes_of_a_script_come_from_main(tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_it.py").write_text(SCRIPT_WITH_CLASS)
    main = sys.modules["__main__"]
    defined: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT_WITH_CLASS.partition("if __name__")[0], defined)
    with monkeypatch.context() as patch:
        patch.setattr(main, "Net", defined["Net"], raising=False)
        torch.save(defined["Net"](), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="cannot be unpickled") as error:
        load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True))
    assert "--main" in error.value.hint
    monkeypatch.delitem(sys.modules, "train_it", raising=False)
    monkeypatch.setattr(main, "Net", "what was there", raising=False)
    before = dict(vars(main))
    runnable = load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True, main=tmp_path / "train_it.py"))
    assert type(runnable.module).__name__ == "Net"
    assert vars(main) == before


def test_a_pickle_whose_class_is_gone_is_an_error_in_one_sentence(
    tmp_path: Path, save_vanishing: Any, options: Any
) -> None:
    path = save_vanishing("from torch import nn\nclass Gone(nn.BatchNorm2d): pass", "Gone(3)")
    with pytest.raises(
        ModelError, match="cannot be unpickled: ModuleNotFoundError: No module named 'vanished_package'"
    ):
        load_runnable(path, options(None, trust_pickle=True))


def test_an_empty_module_is_a_module(tmp_path: Path, options: Any) -> None:
    torch.save({"body": nn.Sequential(nn.BatchNorm2d(3)), "head": nn.Sequential()}, tmp_path / "parts.pt")
    runnable = load_runnable(tmp_path / "parts.pt", options(None, trust_pickle=True, group="head"))
    assert list(runnable.module.children()) == []
