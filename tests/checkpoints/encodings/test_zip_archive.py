"""The tables of zip files, compared with `zipfile`, and files that contradict themselves."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bncheck.checkpoints.encodings.zip_archive import CENTRAL_MAGIC, ZipArchive
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError


class MemorySource:
    """Bytes as a source."""

    def __init__(self, data: bytes) -> None:
        self.name, self.data, self.size = "memory", data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise UnreadableError("memory ends", "")
        return self.data[offset : offset + length]

    def sibling(self, name: str) -> "MemorySource":
        raise NotImplementedError


def packed(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.comment = comment
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.dictionaries(NAMES, st.binary(max_size=200), max_size=6),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.binary(max_size=100).filter(lambda comment: b"PK" not in comment),
)
def test_entries_are_those_that_zipfile_sees(entries: dict[str, bytes], method: int, comment: bytes) -> None:
    archive = ZipArchive(MemorySource(packed(entries, method, comment)))
    assert {name: archive.read(name, 1000) for name in archive.entries} == entries


def test_sizes_of_more_than_four_gigabytes_are_understood(tmp_path: Path) -> None:
    """A sparse file: zipfile writes ZIP64 sizes and offsets, and the table is all that is read."""
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("a", "w", force_zip64=True) as entry:
            entry.write(b"first")
        archive.fp.seek(5 * 2**30)  # type: ignore[union-attr]
        archive.start_dir = 5 * 2**30
        archive.writestr("b", b"behind the gap")
    with FileSource(path) as source:
        found = ZipArchive(source)
        assert source.size > 5 * 2**30
        assert {name: found.read(name, 100) for name in found.entries} == {"a": b"first", "b": b"behind the gap"}
        assert source.bytes_read < 200_000


def changed(data: bytes, at: int, layout: str, value: int) -> bytes:
    """The archive with one field of its (first) entry in the table of contents changed."""
    place = data.index(CENTRAL_MAGIC) + at
    return data[:place] + struct.pack(layout, value) + data[place + struct.calcsize(layout) :]


GOOD = packed({"archive/data.pkl": b"N.", "archive/data/0": b"1234"})


# Named one by one: a name made of the bytes would hold the time of the archive, and differ between two processes.
LIES = {
    "its end is cut off": (GOOD[:-1], "without its end"),
    "most of it is cut off": (GOOD[:20], "without its end"),
    "its beginning is missing": (GOOD[30:], "lies about its size or place|breaks off|outside the file"),
    "an entry is encrypted": (changed(GOOD, 8, "<H", 1), "encrypted"),
    "a packed size is wrong": (changed(GOOD, 20, "<L", 3), "lies about its size or place"),
    "a size is wrong": (changed(GOOD, 24, "<L", 3), "lies about its size or place"),
    "an entry lies outside": (changed(GOOD, 42, "<L", 10**6), "lies about its size or place"),
    "ZIP64 sizes are missing": (changed(GOOD, 20, "<L", 0xFFFFFFFF), "misses its ZIP64 sizes"),
    "a name is too long": (changed(GOOD, 28, "<H", 60000), "breaks off"),
    "an entry has no magic number": (GOOD.replace(CENTRAL_MAGIC, b"PK\x01\x03", 1), "breaks off"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_lies_is_refused(lie: str) -> None:
    data, complaint = LIES[lie]
    with pytest.raises(UnreadableError, match=complaint):
        ZipArchive(MemorySource(data))


def test_two_entries_of_one_name_are_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    with pytest.raises(UnreadableError, match="two entries"):
        ZipArchive(MemorySource(out.getvalue()))


def test_an_entry_that_unpacks_to_more_than_it_says_is_refused() -> None:
    data = packed({"bomb": b"\0" * 10_000_000}, zipfile.ZIP_DEFLATED)
    archive = ZipArchive(MemorySource(data))
    with pytest.raises(UnreadableError, match="at most 1,000 are read"):
        archive.read("bomb", 1000)
    for size in (0, 500):
        lying = ZipArchive(MemorySource(changed(data, 24, "<L", size)))
        with pytest.raises(UnreadableError, match="of another size than it says"):
            lying.read("bomb", 1000)
