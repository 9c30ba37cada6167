"""The parts of the text report that the gate adds: what was checked and what not, what is lived with, the last word."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.text import Text

from bncheck.reports.phrases import outcomes
from bncheck.reports.style import INCONCLUSIVE
from bncheck.wording import count, escaped

if TYPE_CHECKING:
    from bncheck.findings.report import Report, Run
    from bncheck.reports.text.page import Page

# The last word, by exit code.
WORDS = {
    0: ("PASSED", "bold green"),
    1: ("FAILED", "bold red"),
    2: ("NO VERDICT", "bold red"),
    3: (INCONCLUSIVE, "bold yellow"),
}


def write_body(page: Page, report: Report) -> None:
    """What was run, and what was not and why."""
    page.line()
    page.pair("checked", ", ".join(check.name for check in report.checks if check.done))
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for check in report.checks:
        if not check.done:
            reasons[check.reason].append(check.name)
    for reason, names in reasons.items():
        page.pair("not checked", escaped(f"{', '.join(names)}: {reason}"))


def write_end(page: Page, run: Run) -> None:
    """Remarks on the policy, and the verdict of the whole gate: the last line of the report."""
    if not page.style.quiet:
        page.line()
        for remark in run.remarks:
            page.line(escaped(remark), indent=7, first=Text("  note ", style="dim"))
    word, color = WORDS[run.exit_code]
    told = outcomes(run, INCONCLUSIVE.lower(), "without a verdict")
    page.line((f"{word}: ", color), f"{count(len(run.reports), 'checkpoint')}, {told}")
