"""A stretch of a source as a source: a file inside another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.errors import DAMAGED_HINT, UnreadableError

if TYPE_CHECKING:
    from bncheck.checkpoints.sources import Source


class Part:
    """A range of a source, which is read like a file of its own."""

    def __init__(self, whole: Source, start: int, size: int) -> None:
        self.whole = whole
        self.start = start
        self.size = size
        self.name = whole.name

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UnreadableError(
                f"{self.name} holds a part of {self.size} bytes, of which bytes up to {offset + length} are needed",
                DAMAGED_HINT,
            )
        return self.whole.read(self.start + offset, length)

    def sibling(self, name: str) -> Source:
        return self.whole.sibling(name)
