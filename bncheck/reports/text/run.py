"""The report for people: the verdict first, what is alike said once, what is odd named.

Names and messages may hold anything that a file holds: they are escaped, and never read as markup.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TextIO

from rich.text import Text

from bncheck.findings.report import Verdict
from bncheck.findings.rule import Severity
from bncheck.reports.headlines import found_in_layers, headline, summary
from bncheck.reports.style import SEVERITIES, VERDICTS
from bncheck.reports.text.findings import write_findings, write_suppressed, write_undecided
from bncheck.reports.text.layers import write_groups
from bncheck.reports.text.page import Page
from bncheck.wording import count, escaped

if TYPE_CHECKING:
    from collections.abc import Callable

    from bncheck.findings.report import Report, Run
    from bncheck.reports.style import Style


def write(run: Run, out: TextIO, style: Style) -> None:
    """Writes a run for people to read."""
    write_run(Page(out, style), run)


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
    verdicts = Counter(report.verdict for report in run.reports if not report.error)
    unreadable = sum(1 for report in run.reports if report.error)
    parts = [f"{verdicts[verdict]:,} {verdict.value}" for verdict in Verdict if verdicts[verdict]]
    if unreadable:
        parts.append(f"{unreadable:,} not read")
    if not page.style.quiet:
        page.line()
    page.line((f"{count(len(run.reports), 'input')}: {', '.join(parts)}", "bold"))


def write_report(page: Page, report: Report) -> None:
    if report.error:
        message = Text.assemble(("ERROR ", "bold red"), (escaped(report.error.message), "bold"))
        page.console.print(message, soft_wrap=True)  # a path that is broken in two cannot be copied
        if not page.style.quiet:
            page.line(escaped(report.error.hint), indent=8, first=Text("  hint: ", style="dim"))
        return
    word, color = VERDICTS[report.verdict]
    if report.checks and report.verdict is Verdict.UNDECIDED:
        word = "INCONCLUSIVE"
    told = headline(report) or (found_in_layers(report) if page.style.quiet else None)
    end = f": {told}" if told else ""
    page.console.print(
        Text.assemble((f"{word} ", color), (escaped(" -> ".join(report.subjects)), "bold"), end), soft_wrap=True
    )
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
