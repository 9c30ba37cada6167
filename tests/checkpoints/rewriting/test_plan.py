"""What is written, and what is not: the buffers of the layers in question, and no other byte."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from bncheck.checkpoints.rewriting.plan import plan_rewrite
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnsupportedError, UsageError
from tests.checkpoints.rewriting.networks import CHANNELS, FORMATS, NEW, changed_bytes, load, network, rewrite


@pytest.mark.parametrize("whole", [False, True], ids=["state_dict", "module"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_buffers_of_one_layer_change_and_no_other_byte(name: str, whole: bool, tmp_path: Path) -> None:
    if whole and name == "safetensors":
        return
    path, target = tmp_path / "a", tmp_path / "b"
    FORMATS[name](network() if whole else network().state_dict(), path)
    assert target == rewrite(path, target)
    before, after = load(path), load(target)
    assert list(before) == list(after)
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(after["1.running_mean"])
    assert torch.tensor(NEW.variance, dtype=torch.float32).equal(after["1.running_var"])
    assert int(after["1.num_batches_tracked"]) == 40
    for key in before:
        if not key.startswith(("1.running", "1.num")):
            assert torch.equal(before[key], after[key]), key
    # The numbers, and of a zip archive two checksums of four bytes for each buffer.
    assert changed_bytes(path, target) <= 2 * CHANNELS * 4 + 8 + (3 * 2 * 4 if name == "zip" else 0)


def test_bytes_outside_of_buffers_and_checksums_are_equal(tmp_path: Path) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(network(), path)
    rewrite(path, target)
    assert zipfile.ZipFile(target).testzip() is None
    before, after = path.read_bytes(), target.read_bytes()
    differ = {index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other}
    allowed: set[int] = set()
    with zipfile.ZipFile(path) as archive:
        table = before.rindex(b"PK\x01\x02", 0, archive.start_dir + 4)
        for entry in archive.infolist():
            start = (
                entry.header_offset
                + 30
                + sum(
                    int.from_bytes(before[entry.header_offset + at : entry.header_offset + at + 2], "little")
                    for at in (26, 28)
                )
            )
            if "/data/" in entry.filename and entry.file_size <= CHANNELS * 4:
                allowed |= set(range(start, start + entry.file_size))
                allowed |= set(range(start + entry.file_size + 4, start + entry.file_size + 8))
    assert differ <= allowed | set(range(table, len(before)))
    assert sum(index >= table for index in differ) <= 3 * 4


def test_absent_buffers_and_layers_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.running_var"], state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UnsupportedError, match=r"no 1\.running_var, and nothing is added"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
    with pytest.raises(UsageError, match="no statistics for absent"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", layer="absent")


def test_a_missing_counter_is_left_out_and_named(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "a.pt")
    with FileSource(tmp_path / "a.pt") as source:
        assert plan_rewrite(source, "", {"1": NEW, "3": NEW}).without_counter == ("1",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(network()), tmp_path / "a.pt")
    with pytest.raises(UnsupportedError, match="TorchScript file, and statistics are not written"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
