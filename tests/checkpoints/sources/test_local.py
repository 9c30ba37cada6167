"""Local files as sources."""

import os
import sys
from pathlib import Path

import pytest

from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError, UsageError


def test_a_range_is_read_and_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with FileSource(tmp_path / "file") as source:
        assert (source.read(10, 5), source.read(99, 1), source.read(100, 0)) == (bytes(range(10, 15)), b"c", b"")
        assert (source.size, source.bytes_read) == (100, 6)


@pytest.mark.parametrize(("offset", "length"), [(99, 2), (-1, 1), (0, -1), (101, 0), (0, 2**63)])
def test_a_range_outside_the_file_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with FileSource(tmp_path / "file") as source, pytest.raises(UnreadableError, match="ends at byte 100"):
        source.read(offset, length)


def test_a_file_that_shrinks_meanwhile_is_refused_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    with FileSource(tmp_path / "file") as source:
        os.truncate(tmp_path / "file", 10)
        with pytest.raises(UnreadableError, match="shrank"):
            source.read(0, 100)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users")
def test_a_file_without_permission_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    path.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)  # root reads every file
    try:
        with pytest.raises(UsageError, match="may not be read by this user"):
            FileSource(path)
    finally:
        os.seteuid(before)


def test_siblings_are_files_of_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("file", "other", "sub/inner"):
        (tmp_path / name).write_text(name)
    with FileSource(tmp_path / "file", "shown/file") as source:
        assert source.sibling("other").read(0, 5) == b"other"
        assert source.sibling("./other") is source.sibling("other")
        assert source.sibling("sub/inner").name == os.path.join("shown", "sub", "inner")
        for outside in ("../file", "/etc/passwd", "", "sub/../../file"):
            with pytest.raises(UnreadableError, match="outside its folder"):
                source.sibling(outside)


@pytest.mark.skipif(sys.platform == "win32", reason="no such devices")
def test_a_device_is_no_checkpoint() -> None:
    with pytest.raises(UsageError, match="not a regular file"):
        FileSource(Path("/dev/zero"))
