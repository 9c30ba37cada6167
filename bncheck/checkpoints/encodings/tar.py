"""The names in a tar archive, which torch 0.1 wrote and downloads come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.checkpoints.sources import Source

BLOCK = 512
NAME, SIZE, TYPE, MAGIC = slice(0, 100), slice(124, 136), slice(156, 157), slice(257, 262)
USTAR = b"ustar"
# Entries of other types (folders, links, longer names) hold no file.
FILES = (b"0", b"\0")
# A hint needs the first few members only.
MAX_MEMBERS = 1000


def tar_members(source: Source) -> Iterator[str]:
    """The names of the files in a tar archive, as far as its headers make sense."""
    place = 0
    for _ in range(MAX_MEMBERS):
        if place + BLOCK > source.size:
            return
        header = source.read(place, BLOCK)
        size = header[SIZE].strip(b" \0")
        if header[MAGIC] != USTAR or not size.isdigit() or size.strip(b"01234567"):
            return
        if header[TYPE] in FILES:
            yield header[NAME].rstrip(b"\0").decode("utf-8", "replace")
        place += BLOCK + -(-int(size, 8) // BLOCK) * BLOCK
