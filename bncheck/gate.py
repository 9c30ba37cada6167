"""Does a report pass, and what does a whole run exit with?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings import Report, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bncheck.findings import Finding

PASSED, FOUND, NO_VERDICT, NOTHING_TO_DECIDE = 0, 1, 2, 3


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
