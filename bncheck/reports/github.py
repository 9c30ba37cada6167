"""Workflow commands: annotations in a run of GitHub Actions.

GitHub shows ten of each level in a step, so that findings are folded. See "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from bncheck.findings.rule import Severity
from bncheck.reports.phrases import NO_LAYER, open_questions, shown_path, totals, worst_first
from bncheck.wording import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.findings.report import Report, Run

LEVELS = {Severity.NOTE: "notice", Severity.WARNING: "warning", Severity.ERROR: "error"}


def write(run: Run, out: TextIO) -> None:
    """A command on a line for what is to be annotated, and the sum of the run."""
    nothing_to_judge = not any(report.layers for report in run.reports)
    for report in run.reports:
        for line in commands(report, nothing_to_judge=nothing_to_judge):
            out.write(f"{line}\n")
    out.write(f"bncheck {escaped(run.command)}: {totals(run)}\n")


def commands(report: Report, *, nothing_to_judge: bool) -> Iterator[str]:
    """The commands of a report, the gravest first.

    Args:
        report: what is told.
        nothing_to_judge: whether no input has a BatchNorm layer: the run fails for it, and has to say so.
    """
    path = shown_path(report.subjects[-1])
    if report.error:
        yield command("error", path, "not read", escaped(report.error.message), escaped(report.error.hint))
        return
    for alike in worst_first(report.findings):
        message = f"{alike.where}: {alike.message}" if alike.where else alike.message
        yield command(LEVELS[alike.severity], path, alike.rule, message, f"fix: {alike.fix}")
    if not report.layers:
        yield command("warning" if nothing_to_judge else "notice", path, "no BatchNorm layer", NO_LAYER)
    lines = [
        f"{', '.join(open_.rules)}{f' ({open_.where})' if open_.where else ''}: {open_.reason}"
        for open_ in open_questions(report)
    ]
    if lines:
        yield command("notice", path, "not decided", *lines)


def command(level: str, path: str, title: str, *lines: str) -> str:
    """`::error file=model.pt,line=1,title=negative-variance::...`, all of it on one line."""
    properties = f"file={property_value(path)},line=1,title={property_value(title)}"
    message = data("\n".join(lines))
    return f"::{level} {properties}::{message}"


def data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def property_value(text: str) -> str:
    return data(text).replace(":", "%3A").replace(",", "%2C")
