"""Bytes that belong to more than one tensor."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.checkpoints.rewriting.file import write_checkpoint
from bncheck.checkpoints.rewriting.plan import NewStatistics, plan_rewrite, read_writable
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnsupportedError
from tests.checkpoints.rewriting.networks import CHANNELS, FORMATS, NEW, load, network, rewrite


def test_two_columns_of_one_matrix_do_not_share_bytes(tmp_path: Path) -> None:
    state = network().state_dict()
    matrix = torch.stack([state["1.running_mean"], state["1.running_var"], torch.ones(CHANNELS)], dim=1)
    state["1.running_mean"], state["1.running_var"], state["beside"] = matrix.unbind(1)
    torch.save(state, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
    after = load(tmp_path / "b.pt")
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(after["1.running_mean"])
    assert torch.tensor(NEW.variance, dtype=torch.float32).equal(after["1.running_var"])
    assert torch.ones(CHANNELS).equal(after["beside"])


def shared_with_another_tensor(state: dict[str, Any]) -> Any:
    state["copy"] = state["1.running_mean"]
    return state


def shared_with_a_matrix(state: dict[str, Any]) -> Any:
    matrix = torch.zeros(CHANNELS, 4)
    state["1.running_mean"] = matrix[:, 1]
    return {"model": state, "optimizer": {"state": [matrix]}}


def shared_by_two_groups(state: dict[str, Any]) -> Any:
    return {"model": state, "ema": OrderedDict(state)}


def shared_with_a_storage(state: dict[str, Any]) -> Any:
    storage = state["1.running_var"].untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    return {"model": state, "raw": (typed,)}


def one_number_for_all(state: dict[str, Any]) -> Any:
    state["1.running_mean"] = torch.zeros(1).expand(CHANNELS)
    return state


SHARED = {
    function.__name__: function
    for function in (
        shared_with_another_tensor,
        shared_with_a_matrix,
        shared_by_two_groups,
        shared_with_a_storage,
        one_number_for_all,
    )
}


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_bytes_that_are_shared_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    FORMATS[name](SHARED[kind](network().state_dict()), tmp_path / "a.pt")
    with FileSource(tmp_path / "a.pt") as source:
        group = read_writable(source).groups[0].name
        with pytest.raises(UnsupportedError, match=r"shares its bytes|one number for several"):
            plan_rewrite(source, group, {"1": NEW})


def test_a_layer_under_two_names_gets_the_same_numbers_or_none(tmp_path: Path) -> None:
    shared = nn.BatchNorm1d(CHANNELS)
    torch.save(nn.ModuleDict({"a": shared, "b": shared}).state_dict(), tmp_path / "a.pt")
    other = NewStatistics(NEW.mean, np.ones(CHANNELS), 40)
    with FileSource(tmp_path / "a.pt") as source:
        plan = plan_rewrite(source, "", {"a": NEW, "b": NEW})
        write_checkpoint(plan, tmp_path / "b.pt", [], force=False)
        for different in ({"a": NEW}, {"a": NEW, "b": other}):
            with pytest.raises(UnsupportedError, match="shares its bytes"):
                plan_rewrite(source, "", different)
    assert int(load(tmp_path / "b.pt")["b.num_batches_tracked"]) == 40


def test_a_layer_that_a_module_uses_twice_is_one_layer(tmp_path: Path) -> None:
    shared = nn.BatchNorm1d(CHANNELS)
    torch.save(nn.Sequential(shared, nn.ReLU(), shared), tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt", layer="0")
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(load(tmp_path / "b.pt")["2.running_mean"])
