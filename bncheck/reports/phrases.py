"""What several formats say in the same words: where a finding is, what is alike said once.

Names, paths and messages may hold anything that a file holds. All that comes from here is printable: control
characters, directional marks and lone surrogates are spelled out. What else a format would obey, it escapes itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bncheck.findings.report import Finding, Suppressed, Undecided, Verdict
from bncheck.findings.rule import Severity
from bncheck.subjects.layer import Known, Normalises
from bncheck.wording import LONGEST_NAME, count, escaped, few, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bncheck.findings.report import Report, Run
    from bncheck.subjects.layer import Behaviour, Setting

NO_LAYER = "there is no BatchNorm layer to judge"
THE_MODULE = "(the module itself)"  # where a layer has no name


@dataclass(frozen=True, slots=True)
class Alike:
    """Findings of one rule that are mended in the same way."""

    rule: str
    severity: Severity
    fix: str
    where: str  # empty for the file as a whole
    message: str


@dataclass(frozen=True, slots=True)
class Open:
    """A reason for which rules could not be decided."""

    rules: tuple[str, ...]
    where: str  # empty for every layer, or for the file as a whole
    reason: str


def place(said: Finding | Undecided) -> str:
    """`layer1.bn`, `ema: layer1.bn`, `ema`; empty for the file as a whole. Very long names are cut."""
    return place_of(shortened(said.group or ""), None if said.layer is None else shortened(said.layer))


def whole_place(said: Finding | Undecided) -> str:
    """The same with names as long as they are."""
    return place_of(escaped(said.group or ""), None if said.layer is None else escaped(said.layer))


def place_of(group: str, layer: str | None) -> str:
    if layer is None:
        return group
    return f"{group}: {layer or THE_MODULE}" if group else layer or THE_MODULE


def shortened(name: str) -> str:
    """A printable name, cut where it is longer than any real one."""
    return escaped(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...")


def path_from_here(subject: str) -> Path:
    """The path as it is below the current directory, and as it was given where it is not."""
    path = Path(subject)
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def shown_path(subject: str) -> str:
    return escaped(path_from_here(subject).as_posix())


def worst_first(findings: Iterable[Finding]) -> list[Alike]:
    """The findings, folded by rule, severity and fix, so that fifty layers do not say the same fifty times."""
    return [
        Alike(escaped(rule), severity, escaped(fix), places(same), messages(same))
        for (rule, severity, fix), same in folded(findings)
    ]


def folded(findings: Iterable[Finding]) -> list[tuple[tuple[str, Severity, str], list[Finding]]]:
    """The findings that have rule, severity and fix in common; the gravest first."""
    alike: defaultdict[tuple[str, Severity, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        alike[finding.rule, finding.severity, finding.fix].append(finding)
    return sorted(alike.items(), key=lambda item: -list(Severity).index(item[0][1]))


def places(said: Iterable[Finding | Undecided]) -> str:
    return few([named for named in map(place, said) if named])


def messages(same: Iterable[Finding]) -> str:
    """The first message, and how many others there are."""
    first, *others = dict.fromkeys(escaped(finding.message) for finding in same)
    return first + (f" (and {count(len(others), 'other message')})" if others else "")


def open_questions(report: Report) -> list[Open]:
    """What was not decided, each reason once."""
    rules_of: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for rule, where, reason in undecided_rules(report):
        rules_of[escaped(reason), where].append(escaped(rule))
    return [Open(tuple(rules), where, reason) for (reason, where), rules in rules_of.items()]


def undecided_rules(report: Report) -> Iterator[tuple[str, str, str]]:
    """Rule, where, and reason; the place is empty where it is every layer."""
    for (rule, reason), same in by_reason(report).items():
        everywhere = len(same) == len(report.layers) > 1
        yield rule, "" if everywhere else places(same), reason


def by_reason(report: Report) -> dict[tuple[str, str], list[Undecided]]:
    """What was not decided, by rule and reason."""
    alike: defaultdict[tuple[str, str], list[Undecided]] = defaultdict(list)
    for undecided in report.undecided:
        alike[undecided.rule, undecided.reason].append(undecided)
    return alike


def suppressed(said: Suppressed) -> tuple[str, str, str, str]:
    """Rule, place, message and reason."""
    finding = said.finding
    return escaped(finding.rule), place(finding), escaped(finding.message), escaped(said.reason)


def totals(run: Run) -> str:
    """`3 inputs: 1 passed, 1 failed, 1 not read`."""
    return f"{count(len(run.reports), 'input')}: {outcomes(run) or 'nothing done'}"


def outcomes(run: Run, undecided: str = Verdict.UNDECIDED.value, without: str = "not read") -> str:
    """`1 passed, 1 failed, 1 not read`: how many reports have each verdict, and how many none."""
    words = {Verdict.UNDECIDED: undecided}
    verdicts = Counter(report.verdict for report in run.reports if not report.error)
    parts = [f"{verdicts[one]:,} {words.get(one, one.value)}" for one in Verdict if verdicts[one]]
    unread = sum(1 for report in run.reports if report.error)
    return ", ".join([*parts, f"{unread:,} {without}"] if unread else parts)


# -- settings of a layer


def setting(held: Setting[Any], words: dict[bool, str] | None = None) -> str | None:
    if held.known is Known.UNKNOWN:
        return None
    value = held.value
    if words and isinstance(value, bool):
        shown = words[value]
    elif isinstance(value, float):
        shown = number(value)
    elif value is None:
        shown = "None (cumulative average)"
    else:
        shown = str(value)
    return f"{shown} ({held.known.value})"


def behaviour(held: Behaviour) -> str | None:
    match held.normalises_with:
        case Normalises.RUNNING:
            return "normalises with its running statistics"
        case Normalises.BATCH if held.updates_statistics:
            return "normalises by the batch and rewrites its statistics"
        case Normalises.BATCH:
            return "normalises by the batch"
        case Normalises.FAILS:
            return "raises an error: one of the two buffers is missing"
        case Normalises.UNKNOWN:
            return None


def plain_count(value: int | float | None) -> str:
    return "-" if value is None else f"{value:,}"
