"""What commands tell of their progress, to whoever listens."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


class Progress:
    """Hears how far a command is. This one says nothing."""

    def files(self, items: Iterable[T], total: int) -> Iterator[T]:
        """The items as they are done, `total` of them."""
        yield from items

    def samples(self, check: str) -> Callable[[int], None]:
        """What is told the number of samples of each batch that a check has done."""
        return lambda samples: None


SILENT = Progress()
