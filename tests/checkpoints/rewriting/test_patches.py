"""New numbers in the dtype and at the places of the old ones."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bncheck.checkpoints.rewriting.plan import NewStatistics
from bncheck.errors import UnsupportedError, UsageError
from tests.checkpoints.rewriting.networks import CHANNELS, FORMATS, NEW, load, network, rewrite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_the_dtype_stays(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path, target = tmp_path / "a", tmp_path / "b"
    FORMATS[name](network(dtype).state_dict(), path)
    values = NewStatistics(np.array([0.1, 1 / 3, 1e-3]), np.array([1.7, 2.3, 1e3 / 7]), 40)
    rewrite(path, target, values)
    after = load(target)
    assert dtype == after["1.running_mean"].dtype
    assert torch.tensor(values.mean).to(dtype).equal(after["1.running_mean"])
    assert torch.tensor(values.variance).to(dtype).equal(after["1.running_var"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16], ids=str)
def test_what_the_dtype_cannot_hold_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(network(dtype).state_dict(), tmp_path / "a.pt")
    huge = NewStatistics(np.zeros(CHANNELS), np.array([1.0, 1e39, 1.0]), None)
    with pytest.raises(UsageError, match=r"would become 1e\+39, more than"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", huge)
    with pytest.raises(UsageError, match="NaN or infinite"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", NewStatistics(np.full(CHANNELS, np.nan), None, None))
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_counter_that_does_not_fit_its_dtype_is_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    state["1.num_batches_tracked"] = torch.tensor(3, dtype=torch.int8)
    torch.save(state, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt", NewStatistics(None, None, 127))
    assert int(load(tmp_path / "b.pt")["1.num_batches_tracked"]) == 127
    with pytest.raises(UsageError, match="int8, which cannot hold"):
        rewrite(tmp_path / "a.pt", tmp_path / "c.pt", NewStatistics(None, None, 128))


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="has 3 numbers and should get 4"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", NewStatistics(np.zeros(4), None, None))


def view_of(kind: str, values: torch.Tensor) -> torch.Tensor:
    """The values in a storage that is larger, in steps or from an offset."""
    if kind == "offset":
        whole = torch.full((20,), 9.0)
        view = whole[7 : 7 + CHANNELS]
    elif kind == "column":
        whole = torch.full((CHANNELS, 5), 9.0)
        view = whole[:, 2]
    else:  # in the far steps that readers read one by one
        whole = torch.full((CHANNELS, 500), 9.0)
        view = whole[:, 499]
    view.copy_(values)
    return view


@pytest.mark.parametrize("kind", ["offset", "column", "far column"])
@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_views_are_written_where_their_numbers_lie(name: str, kind: str, tmp_path: Path) -> None:
    state = network().state_dict()
    state["1.running_mean"] = view_of(kind, state["1.running_mean"])
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"
    FORMATS[name](state, path)
    rewrite(path, target)
    after = load(target)
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(after["1.running_mean"])
    storage = torch.tensor([], dtype=torch.float32).set_(after["1.running_mean"].untyped_storage())
    assert storage.numel() - CHANNELS == int((storage == 9).sum())
    if name == "zip":
        assert zipfile.ZipFile(target).testzip() is None


def test_a_compressed_entry_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "torch.pt")
    with (
        zipfile.ZipFile(tmp_path / "torch.pt") as source,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for entry in source.infolist():
            made.writestr(entry.filename, source.read(entry))
    with pytest.raises(UnsupportedError, match="compressed entry"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
