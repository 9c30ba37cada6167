"""Where the bytes of a checkpoint come from: one file for each kind of place, and `open_source`, which chooses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bncheck.checkpoints.sources.local import FileSource

if TYPE_CHECKING:
    import os
    from types import TracebackType


class Source(Protocol):
    """Bytes with a name. Readers ask for the ranges they need and never for the whole.

    `read` returns exactly `length` bytes or raises UnreadableError; `sibling` opens a file beside this one.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def sibling(self, name: str) -> Source: ...
    def __hash__(self) -> int: ...


class OpenSource(Source, Protocol):
    """A source that is to be closed, with those beside it."""

    def close(self) -> None: ...
    def __enter__(self) -> OpenSource: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(place: str | os.PathLike[str]) -> OpenSource:
    """What a place names, opened for reading only: `with open_source(path) as source`.

    Raises:
        UsageError: there is no such file, or it may not be read.
    """
    return FileSource(Path(place))
