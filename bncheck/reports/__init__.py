"""Writes reports: one file per format, each with `write`."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from bncheck.findings.report import Run
    from bncheck.reports.style import Style


class Format(Enum):
    """What a report can be written as."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    JUNIT = "junit"
    GITHUB = "github"
    MARKDOWN = "markdown"


def write(format_: Format, run: Run, out: TextIO, style: Style) -> None:
    """Writes the reports of a run. Same run, same characters."""
    match format_:
        case Format.TEXT:
            from bncheck.reports.text import run as text

            text.write(run, out, style)
        case Format.JSON:
            from bncheck.reports import json

            json.write(run, out)
        case Format.SARIF:
            from bncheck.reports import sarif

            sarif.write(run, out)
        case Format.JUNIT:
            from bncheck.reports import junit

            junit.write(run, out)
        case Format.GITHUB:
            from bncheck.reports import github

            github.write(run, out)
        case Format.MARKDOWN:
            from bncheck.reports import markdown

            markdown.write(run, out)
