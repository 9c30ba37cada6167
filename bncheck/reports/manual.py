"""What `bncheck rules` and `bncheck explain` print."""

from __future__ import annotations

import json
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from bncheck.errors import UsageError
from bncheck.glossary import GLOSSARY
from bncheck.reports import Format, Style
from bncheck.reports.text.page import SEVERITIES
from bncheck.rules import RULES
from bncheck.wording import nearest

TEXT_WIDTH = 100


def write_rules(format_: Format, out: TextIO, style: Style) -> None:
    """Every rule: severity, what it needs, its first sentence."""
    if format_ is Format.JSON:
        listed = [
            {"id": rule.id, "severity": rule.severity.value, "needs": rule.needs, "summary": rule.summary}
            for rule in RULES
        ]
        json.dump(listed, out, indent=2)
        out.write("\n")
        return
    page = page_on(out, style)
    for rule in RULES:
        page.print(Text.assemble((rule.severity.value, SEVERITIES[rule.severity]), " ", (rule.id, "bold")))
        page.print(Padding(Text(rule.summary), (0, 0, 0, 4)))
        page.print(Padding(Text(f"needs: {rule.needs}", style="dim"), (0, 0, 1, 4)))
    page.print("bncheck explain RULE tells more.")


def write_explanation(name: str, out: TextIO, style: Style) -> None:
    """The explanation of a rule or a parameter.

    Raises:
        UsageError: there is none of that name.
    """
    rules = {rule.id: rule for rule in RULES}
    known = {**{rule.id: rule.explanation for rule in RULES}, **GLOSSARY}
    if name not in known:
        raise UsageError(f"there is no rule or parameter {name!r}", nearest(name, known, ", ".join(sorted(known))))
    page = page_on(out, style)
    title = Text(name, style="bold")
    if name in rules:
        severity = rules[name].severity
        title.append_text(Text.assemble("  ", (severity.value, SEVERITIES[severity])))
    page.print(title)
    for paragraph in known[name].strip().split("\n\n"):
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
