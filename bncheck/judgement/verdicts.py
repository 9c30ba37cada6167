"""Does a report pass, and what does a whole run exit with? The policy of a team: severities, what it lives with."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bncheck.findings.report import Report, Suppressed, Verdict, fingerprint
from bncheck.findings.rule import Severity

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable, Sequence

    from bncheck.findings.report import Finding
    from bncheck.judgement.policy import Ignore, Policy

PASSED, FOUND, NO_VERDICT, NOTHING_TO_DECIDE = 0, 1, 2, 3
IN_BASELINE = "known: in the baseline"


def verdict(findings: Iterable[Finding], has_layers: bool, fail_on: Severity | None) -> Verdict:
    """FAILED with a finding at or above `fail_on` (None: never), UNDECIDED where there was nothing to judge."""
    if fail_on is not None and any(finding.severity.at_least(fail_on) for finding in findings):
        return Verdict.FAILED
    return Verdict.PASSED if has_layers else Verdict.UNDECIDED


def exit_code(reports: Sequence[Report]) -> int:
    """2 where an input could not be read, else 1 where one failed, else 3 where none has a BatchNorm, else 0."""
    if any(report.error for report in reports):
        return NO_VERDICT
    if any(report.verdict is Verdict.FAILED for report in reports):
        return FOUND
    if all(report.verdict is Verdict.UNDECIDED for report in reports):
        return NOTHING_TO_DECIDE
    return PASSED


def gate_exit_code(reports: Sequence[Report]) -> int:
    """The same, but one inconclusive checkpoint is enough for 3: could not tell is not passed."""
    code = exit_code(reports)
    if code == PASSED and any(report.verdict is Verdict.UNDECIDED for report in reports):
        return NOTHING_TO_DECIDE
    return code


def gravity(severity: Severity) -> int:
    """A number that is greater for the graver."""
    return list(Severity).index(severity)


# -- the policy of a team


def gated(report: Report, policy: Policy, today: datetime.date) -> Report:
    """The report as the policy sees it.

    Severities are those of the policy; what it ignores, and what the baseline knows, is suppressed and stays visible.
    The verdict is UNDECIDED where nothing fails and something that the policy requires was not decided.
    """
    if report.error:
        return report
    findings, suppressed = [], list(report.suppressed)
    for found in report.findings:
        finding = replace(found, severity=policy.severities.get(found.rule, found.severity))
        reason = reason_to_ignore(finding, policy, today)
        if reason is None:
            findings.append(finding)
        else:
            suppressed.append(Suppressed(finding, reason))
    missing = () if policy.fails(findings) else inconclusive(report, policy)
    return replace(
        report,
        findings=tuple(findings),
        suppressed=tuple(suppressed),
        fail_on=policy.fail_on,
        verdict=Verdict.FAILED if policy.fails(findings) else Verdict.UNDECIDED if missing else Verdict.PASSED,
        notes=(*report.notes, *(f"inconclusive: {reason}" for reason in missing)),
    )


def reason_to_ignore(finding: Finding, policy: Policy, today: datetime.date) -> str | None:
    """Why a finding is suppressed; None if it counts."""
    for entry in policy.ignores:
        if fits(entry, finding) and not entry.is_expired(today):
            return entry.reason
    return IN_BASELINE if fingerprint(finding) in policy.baseline else None


def fits(entry: Ignore, finding: Finding) -> bool:
    """Whether an entry speaks of a finding. One with a layer says nothing of findings about the whole file."""
    if not fnmatchcase(finding.rule, entry.rule):
        return False
    return entry.layer is None or (finding.layer is not None and fnmatchcase(finding.layer, entry.layer))


def inconclusive(report: Report, policy: Policy) -> tuple[str, ...]:
    """What keeps the gate from a verdict."""
    reasons = []
    if not report.layers and policy.require_batchnorm:
        reasons.append("there is no BatchNorm layer (require-batchnorm = false allows that)")
    for required in policy.require:
        open_ = next((undecided for undecided in report.undecided if undecided.rule == required), None)
        if open_ is not None:
            reasons.append(f"{required} is required and was not decided: {open_.reason}")
        elif required not in report.rules:
            reasons.append(f"{required} is required and was not asked")
    return tuple(reasons)


def remarks(reports: Sequence[Report], policy: Policy, today: datetime.date) -> tuple[str, ...]:
    """Entries of the policy that do nothing any more: expired ones, and those that fit no finding of any report."""
    everything = [
        finding for report in reports for finding in (*report.findings, *(held.finding for held in report.suppressed))
    ]
    said = []
    for entry in policy.ignores:
        where = f" in {entry.layer}" if entry.layer else ""
        if not any(fits(entry, finding) for finding in everything):
            said.append(f"ignore {entry.rule}{where} fits nothing that was found: remove it")
        elif entry.is_expired(today):
            said.append(f"ignore {entry.rule}{where} expired on {entry.expires}, and suppresses nothing any more")
    return tuple(said)
