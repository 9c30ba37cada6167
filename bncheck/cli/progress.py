"""Shows on stderr how far a command is, where somebody watches."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from bncheck.commands.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

# From this many files on, progress is shown.
MANY_FILES = 5


def somebody_watches() -> bool:
    """Whether progress has a reader: some CI services run jobs in a terminal that nobody sees."""
    return sys.stderr.isatty() and not os.environ.get("CI")


class ShownProgress(Progress):
    """Bars that go away when they are done; close it at the end of the command."""

    def __init__(self) -> None:
        self.shown = ExitStack()

    def close(self) -> None:
        self.shown.close()

    def files(self, items: Iterable[T], total: int) -> Iterator[T]:
        """The items, with a bar where there are many."""
        if total <= MANY_FILES:
            yield from items
            return
        from rich.console import Console
        from rich.progress import track

        yield from track(items, "checkpoints", total=total, console=Console(stderr=True), transient=True)

    def samples(self, check: str) -> Callable[[int], None]:
        """Counts samples, with their rate."""
        from rich.console import Console
        from rich.progress import Progress as Bars
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        self.shown.close()  # a terminal has room for one
        columns = (
            SpinnerColumn(),
            TextColumn(check),
            TextColumn("{task.completed:,} images"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TimeElapsedColumn(),
        )
        bar = self.shown.enter_context(Bars(*columns, console=Console(stderr=True), transient=True))
        task = bar.add_task(check, total=None, rate=0.0)

        def advance(samples: int) -> None:
            bar.update(task, advance=samples)
            bar.update(task, rate=bar.tasks[0].finished_speed or bar.tasks[0].speed or 0.0)

        return advance
