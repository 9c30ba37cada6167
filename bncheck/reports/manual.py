"""What `bncheck rules` and `bncheck explain` print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from bncheck.reports import Format, Style
from bncheck.reports.text.page import SEVERITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.findings.rule import Explanation, Rule

TEXT_WIDTH = 100


def write(told: Sequence[Rule] | Explanation, format_: Format, out: TextIO, style: Style) -> None:
    """The catalogue, or one explanation."""
    if isinstance(told, tuple):
        write_rules(told, format_, out, style)
    else:
        write_explanation(told, out, style)  # type: ignore[arg-type]


def write_rules(rules: Sequence[Rule], format_: Format, out: TextIO, style: Style) -> None:
    """Every rule: severity, what it needs, its first sentence."""
    if format_ is Format.JSON:
        listed = [
            {"id": rule.id, "severity": rule.severity.value, "needs": rule.needs, "summary": rule.summary}
            for rule in rules
        ]
        json.dump(listed, out, indent=2)
        out.write("\n")
        return
    page = page_on(out, style)
    for rule in rules:
        page.print(Text.assemble((rule.severity.value, SEVERITIES[rule.severity]), " ", (rule.id, "bold")))
        page.print(Padding(Text(rule.summary), (0, 0, 0, 4)))
        page.print(Padding(Text(f"needs: {rule.needs}", style="dim"), (0, 0, 1, 4)))
    page.print("bncheck explain RULE tells more.")


def write_explanation(told: Explanation, out: TextIO, style: Style) -> None:
    """A title, and a text under headings."""
    page = page_on(out, style)
    title = Text(told.name, style="bold")
    if told.severity:
        title.append_text(Text.assemble("  ", (told.severity.value, SEVERITIES[told.severity])))
    page.print(title)
    for paragraph in told.text.strip().split("\n\n"):
        page.print()
        if paragraph.startswith("## "):
            page.print(Text(paragraph.removeprefix("## "), style="bold"))
        elif paragraph.startswith("- "):
            for item in paragraph.removeprefix("- ").split("\n- "):
                page.print(Padding(Text(f"- {' '.join(item.split())}"), (0, 0, 0, 2)))
        else:
            page.print(Text(" ".join(paragraph.split())))


def page_on(out: TextIO, style: Style) -> Console:
    page = Console(file=out, width=style.width, no_color=True if style.color is False else None, highlight=False)
    if style.width is None and page.width > TEXT_WIDTH:
        page.width = TEXT_WIDTH  # longer lines are hard to read
    return page
