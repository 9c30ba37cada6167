"""A summary in Markdown: for the job summary of a CI, a pull request, a release note.

GitHub Flavored Markdown with tables. What comes from files is escaped, so that it is read and never obeyed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TextIO

from bncheck.reports.headlines import found, headline
from bncheck.reports.phrases import NO_LAYER, open_questions, shown_path, suppressed, totals, worst_first
from bncheck.wording import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bncheck.findings.report import Report, Run

# A pipe as an entity, since renderers differ in how they split the cells of a row at an escaped one.
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
# What starts emphasis, code, links, strikethrough, formulas and mentions, wherever it stands; then what does so only in
# some places, so that `ema: running_var` stays readable: URLs and emoji, an underscore that is not inside a word.
SPECIAL = re.compile(r"[\\`*\[\]#~$@]|:(?=[\w/+-])|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE)


def write(run: Run, out: TextIO) -> None:
    """The verdicts in a table, then a section for each input of which there is more to say."""
    lines = [f"## bncheck {cell(escaped(run.command))}", "", cell(totals(run)), ""]
    lines += table(("verdict", "input", "result"), (verdict_row(report) for report in run.reports))
    for report in run.reports:
        lines += section(report)
    out.write("\n".join(lines))


def verdict_row(report: Report) -> tuple[str, str, str]:
    path = shown_path(report.subjects[-1])
    if report.error:
        return "NOT READ", path, f"{escaped(report.error.message)} (hint: {escaped(report.error.hint)})"
    return report.verdict.value.upper(), path, result(report)


def result(report: Report) -> str:
    """What the report comes to, in a few words."""
    plain = found(report) if report.layers or report.findings else NO_LAYER
    said = headline(report) or plain
    counts_them = bool(report.checks)  # the headline of the gate
    return f"{said}, {len(report.suppressed):,} suppressed" if report.suppressed and not counts_them else said


def section(report: Report) -> list[str]:
    """Findings, suppressed findings, open questions, notes: those that there are."""
    parts: list[str] = []
    if report.findings:
        rows = [(a.severity.value, a.rule, a.where, a.message, a.fix) for a in worst_first(report.findings)]
        parts += table(("severity", "rule", "where", "finding", "fix"), rows)
    if report.suppressed:
        parts += table(("suppressed", "where", "finding", "reason"), map(suppressed, report.suppressed))
    if report.undecided:
        rows_open = [(", ".join(open_.rules), open_.where, open_.reason) for open_ in open_questions(report)]
        parts += table(("not decided", "where", "reason"), rows_open)
    if report.notes:
        parts += table(("note",), ((escaped(note),) for note in report.notes))
    if not parts:
        return []
    return [f"### {cell(shown_path(report.subjects[-1]))}", "", *parts]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [row(header), row(["---"] * len(header)), *(row([cell(text) for text in texts]) for texts in rows), ""]


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """The text as it is to be read, whatever it looks like."""
    marked = SPECIAL.sub(r"\\\g<0>", text)
    return re.sub(r"[&<>|]", lambda special: ENTITIES[special[0]], marked)
