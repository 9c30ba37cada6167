"""A single report as a string: what `print(report)` shows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console

from bncheck.reports.style import Style
from bncheck.reports.text.page import Page
from bncheck.reports.text.run import write_report

if TYPE_CHECKING:
    from bncheck.findings.report import Report


def as_text(report: Report) -> str:
    """The text report without colors, as wide as the terminal."""
    out = io.StringIO()
    # A string has no colors, whatever FORCE_COLOR says; and in a notebook rich would show the text by itself and
    # leave the string empty.
    console = Console(
        file=out,
        color_system=None,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    write_report(Page(console, Style()), report)
    return out.getvalue().rstrip("\n")
