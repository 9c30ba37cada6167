"""Tables of the text report: rows of numbers behind the names of layers, and what stands below them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from bncheck.reports.phrases import THE_MODULE
from bncheck.wording import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bncheck.reports.text.page import Page

# Up to this many layers, each has a row of its own; beyond, the extremes are named and --verbose shows the rows.
MAX_ROWS = 16
TITLE = "layer"
GAP = 2  # columns between cells, and before what stands behind a row
# Beyond this a shift is as far as can be, and its bar no longer than any other.
FARTHEST = 1e6


@dataclass(frozen=True, slots=True)
class Table:
    """The names of layers as a file has them, and the cells of each behind it."""

    names: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def labels(self) -> list[str]:
        return [escaped(name) or THE_MODULE for name in self.names]

    @property
    def longest(self) -> int:
        return max(map(cell_len, [*self.labels, TITLE]))

    @property
    def widths(self) -> list[int]:
        return [max(map(cell_len, column)) for column in zip(self.header, *self.rows, strict=True)]

    def room(self, page: Page, beside: int = 0) -> int:
        """How wide names may be where so much stands behind the rows."""
        return page.console.width - 2 - sum(width + 2 for width in self.widths) - beside


def first_that_fits(page: Page, layouts: Iterable[tuple[Table, int]]) -> tuple[Table, int]:
    """Of tables, and what stands behind the rows of each, the first that has room for every name; else the last."""
    for table, beside in layouts:
        if table.room(page, beside) >= table.longest:
            break
    return table, beside


def draw(page: Page, table: Table, beside: int, ends: Sequence[Text]) -> None:
    """The table after an empty line; a name that is too long for its column has a line of its own."""
    name_width = max(min(table.longest, table.room(page, beside)), cell_len(TITLE))
    widths = table.widths
    page.line()
    page.row(TITLE, name_width, table.header, widths, Text(), "dim")
    for label, cells, end in zip(table.labels, table.rows, ends, strict=True):
        page.row(label, name_width, cells, widths, end)


def shown_of(page: Page, names: Sequence[str]) -> Sequence[str]:
    """The names that have a row: the first ones, and all of them with --verbose."""
    return names if page.style.verbose else names[:MAX_ROWS]


def bars(page: Page, lengths: Iterable[float], full: int) -> list[Text]:
    """A bar for each length; the longest possible has so many blocks."""
    block = "#" if page.plain_characters else "█"
    lengths = [min(length, FARTHEST) for length in lengths]
    longest = max(lengths, default=0)
    return [Text(block * (round(full * length / longest) if longest else 0), "red") for length in lengths]


def write_legend(page: Page, legend: str, left_out: int = 0) -> None:
    """How many layers have no row, and what the columns mean."""
    if left_out:
        page.line((f"({left_out:,} more with --verbose)", "dim"), indent=2)
    page.line((f"({legend})", "dim"), indent=2)
