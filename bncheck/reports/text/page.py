"""A text report while it is written: lines that wrap, labels with values, rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from bncheck.reports.style import Style

LABEL_WIDTH = 22
DEFAULT_WIDTH = 80


class Page:
    """What is written on. Names and messages of files come escaped; nothing is read as markup."""

    def __init__(self, console: Console, style: Style) -> None:
        self.style = style
        self.console = console
        if console.width < 1:  # COLUMNS=0
            console.width = DEFAULT_WIDTH
        self.plain_characters = not (console.encoding or "").lower().startswith("utf")

    def line(self, *parts: str | tuple[str, str], indent: int = 0, first: Text | None = None) -> None:
        """Text, wrapped; all lines but the first, which may start with `first`, are indented."""
        text = Text.assemble(*parts)
        if self.plain_characters:
            text = Text(self.spelled(text.plain))
        lines = text.wrap(self.console, max(self.console.width - indent, 20)) if text else [text]
        for index, wrapped in enumerate(lines):
            start = first if first and not index else Text(" " * indent)
            wrapped.rstrip()
            self.console.print(start + wrapped, soft_wrap=True)

    def pair(self, label: str, value: str) -> None:
        """A label in the left column, its value wrapped in the right one."""
        self.line(value, indent=2 + LABEL_WIDTH, first=Text(f"  {label:{LABEL_WIDTH}}", style="dim"))

    def row(
        self, name: str, name_width: int, cells: Sequence[str], widths: Sequence[int], end: Text, style: str = ""
    ) -> None:
        columns = "".join(
            "  " + " " * (width - cell_len(cell)) + cell for cell, width in zip(cells, widths, strict=True)
        )
        if cell_len(name) > name_width:
            self.console.print(Text(f"  {name}", style), soft_wrap=True)
            name = ""
        text = Text.assemble((f"  {name}{' ' * (name_width - cell_len(name))}{columns}", style), "  ", end)
        text.rstrip()
        self.console.print(text, soft_wrap=True)

    def spelled(self, text: str) -> str:
        """The text in characters that the output can hold."""
        return text.replace("…", "..").replace("·", "|") if self.plain_characters else text
