"""A stretch of a file as a source of its own."""

from pathlib import Path

import pytest

from bncheck.checkpoints.sources import open_source
from bncheck.checkpoints.sources.part import Part
from bncheck.errors import UnreadableError


def test_a_part_is_read_within_its_bounds_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    (tmp_path / "other").write_bytes(b"beside")
    with open_source(tmp_path / "file") as source:
        part = Part(source, 10, 5)
        assert (part.name, part.size, part.read(1, 3)) == (source.name, 5, bytes(range(11, 14)))
        assert part.sibling("other").read(0, 6) == b"beside"
        for offset, length in ((3, 3), (-1, 1), (0, -1)):
            with pytest.raises(UnreadableError, match="holds a part of 5 bytes"):
                part.read(offset, length)
