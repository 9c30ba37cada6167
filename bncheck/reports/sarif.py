"""SARIF 2.1.0, for code scanning: one run, a result for each finding.

Numbers in brackets are sections of the standard, "Static Analysis Results Interchange Format Version 2.1.0 Plus
Errata 01". A checkpoint has no lines: every result stands on line 1, which GitHub demands, and the layer is its logical
location.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote

from bncheck.findings.report import fingerprint
from bncheck.findings.rule import Severity
from bncheck.reports.phrases import THE_MODULE, path_from_here, place, undecided_rules
from bncheck.version import __version__
from bncheck.wording import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bncheck.findings.report import Finding, Report, Run, Undecided
    from bncheck.findings.rule import Rule

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def write(run: Run, out: TextIO) -> None:
    """One log with one run."""
    log = {"version": "2.1.0", "$schema": SCHEMA, "runs": [run_object(run)]}
    json.dump(log, out, indent=2)
    out.write("\n")


def run_object(run: Run) -> dict[str, Any]:
    index = {rule: number for number, rule in enumerate(rules_of(run))}
    catalogue = {rule.id: rule for rule in run.catalogue}
    return {
        "tool": {
            "driver": {
                "name": "bncheck",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [descriptor(rule, catalogue.get(rule)) for rule in index],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not any(report.error for report in run.reports),
                "exitCode": run.exit_code,
                "toolExecutionNotifications": [
                    notification for report in run.reports for notification in notifications(report, index)
                ],
            }
        ],
        "results": list(results(run, index)),
    }


def rules_of(run: Run) -> list[str]:
    """The rules that ran, in their order, and any other that has something to say."""
    named: list[str] = []
    for report in run.reports:
        named += report.rules
        named += [finding.rule for finding, _ in found(report)]
        named += [open_.rule for open_ in report.undecided]
    return list(dict.fromkeys(named))


def found(report: Report) -> Iterator[tuple[Finding, str | None]]:
    """The findings, and for the suppressed ones the reason."""
    yield from ((finding, None) for finding in report.findings)
    yield from ((held.finding, held.reason) for held in report.suppressed)


# -- rules


def descriptor(id_: str, rule: Rule | None) -> dict[str, Any]:
    """A reportingDescriptor [3.49]. The explanation of a rule is Markdown that reads well as it is."""
    if rule is None:
        return {"id": escaped(id_)}
    explanation = rule.explanation.strip()
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": first_section(explanation)},
        "help": {"text": explanation, "markdown": explanation},
        "defaultConfiguration": {"level": rule.severity.value},
    }


def first_section(explanation: str) -> str:
    """What the rule checks, on one line."""
    sections = re.split(r"^## .*$", explanation, flags=re.MULTILINE)
    return " ".join(sections[1 if len(sections) > 1 else 0].split())


# -- results


def results(run: Run, index: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    # Where one result says that it is or is not suppressed, all have to [3.27.23].
    some_suppressed = any(report.suppressed for report in run.reports)
    for report in run.reports:
        seen: Counter[str] = Counter()
        for finding, reason in found(report):
            print_ = fingerprint(finding)
            seen[print_] += 1
            result = {
                "ruleId": escaped(finding.rule),
                "ruleIndex": index[finding.rule],
                "level": finding.severity.value,
                "message": {"text": message_text(sentences(finding.message, finding.fix))},
                "locations": [location(report, finding)],
                "partialFingerprints": {"primaryLocationLineHash": f"{print_}:{seen[print_]}"},
            }
            if some_suppressed:
                justified = {"kind": "external", "justification": escaped(reason or "")}
                result["suppressions"] = [] if reason is None else [justified]
            yield result


def location(report: Report, said: Finding | Undecided | None = None) -> dict[str, Any]:
    """A location [3.28]: the file, and the layer or the group in it."""
    physical = {"artifactLocation": {"uri": uri(report.subjects[-1])}, "region": {"startLine": 1}}
    logical = [logical_location(said)] if said and place(said) else []
    return {"physicalLocation": physical, **({"logicalLocations": logical} if logical else {})}


def logical_location(said: Finding | Undecided) -> dict[str, str]:
    group = escaped(said.group or "")
    if said.layer is None:
        return {"name": group, "fullyQualifiedName": group, "kind": "namespace"}
    name = escaped(said.layer) or THE_MODULE
    return {"name": name, "fullyQualifiedName": f"{group}/{name}" if group else name, "kind": "member"}


def uri(subject: str) -> str:
    """The path as a URI; relative where it is below the current directory, since GitHub looks it up in the repository.

    Every character is escaped but letters, digits and `_.-~/`; a colon, too, before which a reader would see a scheme.
    """
    path = path_from_here(subject)
    text = path.as_posix()
    try:
        name = text.encode("utf-8", "surrogateescape")  # the bytes of a file name that is not UTF-8
    except UnicodeEncodeError:
        name = text.encode("utf-8", "surrogatepass")
    escaped_path = quote(name, safe="/")
    return f"file:///{escaped_path.lstrip('/')}" if path.is_absolute() else escaped_path


# -- what is no result


def notifications(report: Report, index: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """What could not be read, what could not be decided, and notes [3.58]."""
    if report.error:
        yield notification(report, Severity.ERROR, sentences(report.error.message, report.error.hint))
    for rule, where, reason in undecided_rules(report):
        text = f"{rule} could not be decided{f' ({where})' if where else ''}: {reason}"
        associated = {"associatedRule": {"id": escaped(rule), "index": index[rule]}}
        yield notification(report, Severity.NOTE, text) | associated
    for note in report.notes:
        yield notification(report, Severity.NOTE, note)


def notification(report: Report, level: Severity, text: str) -> dict[str, Any]:
    return {"level": level.value, "message": {"text": message_text(text)}, "locations": [location(report)]}


# -- text


def sentences(said: str, then: str) -> str:
    return f"{said.removesuffix('.')}. {then}"


def message_text(text: str) -> str:
    """Text that holds no placeholder [3.11.5] and no link [3.11.6], whatever the names in it are."""
    return escaped(text).replace("{", "{{").replace("}", "}}").replace("](", "] (")
