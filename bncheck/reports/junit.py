"""JUnit XML, which every CI shows: a suite for each input, a case for each rule.

A case fails with a finding that fails its input, and is skipped where its rule could not be decided: could not tell is
not passed. What is printable ASCII stands as it is and the rest as a character reference, so that no encoding of the
output can break the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from bncheck.findings.report import Finding
from bncheck.findings.rule import Severity
from bncheck.reports.phrases import NO_LAYER, place, places, shown_path, suppressed, worst_first
from bncheck.wording import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bncheck.findings.report import Report, Run

# The outcomes that a suite counts, and the element that a case has for each.
COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def write(run: Run, out: TextIO) -> None:
    """One document for the whole run."""
    root = Element("testsuites", name=escaped(f"bncheck {run.command}"))
    for report in run.reports:
        add_suite(root, report)
    root.attrib.update(counted(root, ("failures", "errors")))
    ElementTree.indent(root)
    out.write(ElementTree.tostring(root, encoding="us-ascii", xml_declaration=True).decode("ascii"))
    out.write("\n")


def add_suite(root: Element, report: Report) -> None:
    path = shown_path(report.subjects[-1])
    suite = SubElement(root, "testsuite", name=path)
    if report.error:
        message, hint = escaped(report.error.message), escaped(report.error.hint)
        case = SubElement(suite, "testcase", classname=path, name="readable", file=path)
        SubElement(case, "error", message=message, type="unreadable").text = f"{message}\nhint: {hint}"
    for rule in rules_of(report):
        add_case(suite, report, path, rule)
    suite.attrib.update(counted(suite, tuple(COUNTED)))


def rules_of(report: Report) -> list[str]:
    """The rules that ran, and any other that has something to say."""
    others = [
        *(finding.rule for finding in report.findings),
        *(open_.rule for open_ in report.undecided),
        *(held.finding.rule for held in report.suppressed),
    ]
    return list(dict.fromkeys([*report.rules, *others]))


def add_case(suite: Element, report: Report, path: str, rule: str) -> None:
    """A failure, or a reason to skip it, or neither; then what else was seen."""
    case = SubElement(suite, "testcase", classname=path, name=escaped(rule), file=path)
    found = [finding for finding in report.findings if finding.rule == rule]
    failing = [finding for finding in found if fails(finding, report.fail_on)]
    open_ = [open_ for open_ in report.undecided if open_.rule == rule]
    aside = lines_of(finding for finding in found if finding not in failing)
    reasons = list(dict.fromkeys(escaped(undecided.reason) for undecided in open_))
    if failing:
        worst = worst_first(failing)[0]
        message = f"{worst.where}: {worst.message}" if worst.where else worst.message
        failure = SubElement(case, "failure", message=message, type=worst.severity.value)
        failure.text = "\n".join(lines_of(failing))
        aside += [f"not decided: {reason}" for reason in reasons]
    elif open_:
        SubElement(case, "skipped", message="; ".join(reasons))
        where = places(open_)
        aside += [f"not decided in {where}"] if where else []
    elif not report.layers and not found:
        SubElement(case, "skipped", message=NO_LAYER)
    for held in report.suppressed:
        if held.finding.rule == rule:
            _, where, message, reason = suppressed(held)
            aside.append(f"suppressed: {f'{where}: ' if where else ''}{message} ({reason})")
    if aside:
        SubElement(case, "system-out").text = "\n".join(aside)


def fails(finding: Finding, fail_on: Severity | None) -> bool:
    return fail_on is not None and finding.severity.at_least(fail_on)


def lines_of(findings: Iterable[Finding]) -> list[str]:
    """Each finding on a line, and after those that are mended alike, how."""
    by_fix: dict[str, list[Finding]] = {}
    for finding in findings:
        by_fix.setdefault(finding.fix, []).append(finding)
    lines = []
    for fix, same in by_fix.items():
        for finding in same:
            where = place(finding)
            lines.append(f"{finding.severity.value}: {f'{where}: ' if where else ''}{escaped(finding.message)}")
        lines.append(f"fix: {escaped(fix)}")
    return lines


def counted(element: Element, outcomes: Iterable[str]) -> dict[str, str]:
    """`tests`, and how many of them ended in each of the outcomes."""
    cases = list(element.iter("testcase"))
    numbers = {name: sum(case.find(COUNTED[name]) is not None for case in cases) for name in outcomes}
    return {name: str(number) for name, number in {"tests": len(cases), **numbers}.items()}
