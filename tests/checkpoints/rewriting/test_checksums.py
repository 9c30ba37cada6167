"""The checksums of zip archives whose entries were changed."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bncheck.errors import UnreadableError
from tests.checkpoints.rewriting.networks import NEW, load, network, rewrite


def checksums_of(path: Path) -> dict[str, list[int]]:
    """Those that an archive keeps of each entry: in its table, and in the header of the entry or behind its bytes."""
    data = path.read_bytes()
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            at = entry.header_offset
            name, extra = (int.from_bytes(data[at + place : at + place + 2], "little") for place in (26, 28))
            end = at + 30 + name + extra + entry.compress_size
            local = int.from_bytes(data[at + 14 : at + 18], "little")
            behind = int.from_bytes(data[end + 4 : end + 8], "little")
            is_behind = data[end : end + 4] == b"PK\x07\x08"
            found[entry.filename] = [entry.CRC, *([behind] if is_behind else []), *([local] if local else [])]
    return found


def test_both_checksums_of_torch_are_right(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
    before, after = checksums_of(tmp_path / "a.pt"), checksums_of(tmp_path / "b.pt")
    assert {2} == {len(found) for found in after.values()}
    assert {1} == {len(set(found)) for found in after.values()}
    assert sum(before[name] != after[name] for name in before) == 3


@pytest.mark.parametrize("zip64", [False, True], ids=["small", "zip64"])
@pytest.mark.parametrize("streamed", [False, True], ids=["header", "descriptor"])
def test_checksums_are_right_wherever_an_archive_keeps_them(streamed: bool, zip64: bool, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "torch.pt")
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"

    class Stream(io.RawIOBase):
        """A file in which nothing can be corrected afterwards: sizes and checksums come behind."""

        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with (
        zipfile.ZipFile(tmp_path / "torch.pt") as source,
        zipfile.ZipFile(stream if streamed else path, "w") as made,
    ):
        for entry in source.infolist():
            with made.open(entry.filename, "w", force_zip64=zip64) as out:
                out.write(source.read(entry))
    if streamed:
        path.write_bytes(stream.data)
    rewrite(path, target)
    assert zipfile.ZipFile(target).testzip() is None
    checksums = checksums_of(target)
    assert any(len(found) == 2 for found in checksums.values())
    assert {name: found for name, found in checksums.items() if len(set(found)) > 1} == {}
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(load(target)["1.running_mean"])


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """An archive whose table of contents puts an entry into the bytes of another."""
    path = tmp_path / "a.pt"
    torch.save(network().state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        name = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/4"))
        table = archive.start_dir
    data = bytearray(path.read_bytes())
    other = data.index(b"/data/0", table) - len("a") - 46
    data[other + 42 : other + 46] = (name.header_offset + 40).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="lies over another part"):
        rewrite(path, tmp_path / "b.pt")
    assert os.listdir(tmp_path) == ["a.pt"]
