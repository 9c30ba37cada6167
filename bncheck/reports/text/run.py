"""The report for people: the verdict first, what is alike said once, what is odd named.

Names and messages may hold anything that a file holds: they are escaped, and never read as markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.text import Text

from bncheck.findings.report import Verdict
from bncheck.findings.rule import Severity
from bncheck.reports.headlines import found_in_layers, headline, summary
from bncheck.reports.phrases import totals
from bncheck.reports.style import INCONCLUSIVE, SEVERITIES, VERDICTS
from bncheck.reports.text.findings import write_findings, write_suppressed, write_undecided
from bncheck.reports.text.layers import write_groups
from bncheck.reports.text.page import Page
from bncheck.wording import escaped

if TYPE_CHECKING:
    from collections.abc import Callable

    from bncheck.findings.report import Problem, Report, Run
    from bncheck.reports.phrases import totals
from bncheck.reports.style import Style


def write(run: Run, out: TextIO, style: Style) -> None:
    """Writes a run for people to read."""
    console = Console(
        file=out,
        width=style.width,
        no_color=True if style.color is False else None,
        # A file gets none of what FORCE_COLOR asks for the terminal; a notebook shows what is returned to it.
        force_terminal=False if style.color is False else None,
        force_jupyter=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    write_run(Page(console, style), run)


def write_run(page: Page, run: Run) -> None:
    for index, report in enumerate(run.reports):
        if index and not page.style.quiet:
            page.line()
        write_report(page, report)
    if run.command == "gate":
        from bncheck.reports.text.gate import write_end

        write_end(page, run)
    elif len(run.reports) > 1:
        write_total(page, run)


def write_total(page: Page, run: Run) -> None:
    if not page.style.quiet:
        page.line()
    page.line((totals(run), "bold"))


def write_report(page: Page, report: Report) -> None:
    if report.error:
        write_error(page, report.error)
        return
    write_verdict(page, report)
    if page.style.quiet:
        return
    page.line(escaped(summary(report)), indent=2)
    if page.style.verbose and report.facts:
        facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
        page.line(escaped(facts), indent=2)
    if report.checks or report.measurements:
        body_of(report)(page, report)
    else:
        write_groups(page, report)
    write_findings(page, report.findings)
    write_suppressed(page, report)
    if report.notes:
        page.line()
    for note in report.notes:
        page.line(escaped(note), indent=7, first=Text("  note ", style=SEVERITIES[Severity.NOTE]))
    write_undecided(page, report)


def write_error(page: Page, error: Problem) -> None:
    message = Text.assemble(("ERROR ", "bold red"), (escaped(error.message), "bold"))
    page.console.print(message, soft_wrap=True)  # a path that is broken in two cannot be copied
    if not page.style.quiet:
        page.line(escaped(error.hint), indent=8, first=Text("  hint: ", style="dim"))


def write_verdict(page: Page, report: Report) -> None:
    """The first line, which is never broken: the verdict, the subject, and the headline."""
    word, color = VERDICTS[report.verdict]
    if report.checks and report.verdict is Verdict.UNDECIDED:
        word = INCONCLUSIVE
    told = headline(report) or (found_in_layers(report) if page.style.quiet else None)
    subject = (escaped(" -> ".join(report.subjects)), "bold")
    page.console.print(Text.assemble((f"{word} ", color), subject, f": {told}" if told else ""), soft_wrap=True)


def body_of(report: Report) -> Callable[[Page, Report], None]:
    """What writes the body of this kind of report; imported when it is asked for, as most are of one kind."""
    from bncheck.findings.measurements import PairMeasurements, RecalibrationMeasurements
    from bncheck.reports.text import diff, evaluation, gate, recalibration

    if report.checks:
        return gate.write_body
    match report.measurements:
        case PairMeasurements():
            return diff.write_body
        case RecalibrationMeasurements():
            return recalibration.write_body
        case _:
            return evaluation.write_body
