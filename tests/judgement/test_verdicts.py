"""Verdicts and exit codes."""

import itertools

import pytest

from bncheck.findings.report import Finding, Problem, Report, Verdict
from bncheck.findings.rule import Severity
from bncheck.judgement.verdicts import exit_code, verdict


def finding(severity: Severity) -> Finding:
    return Finding("rule", severity, None, None, "", {}, "")


@pytest.mark.parametrize(("found", "threshold"), [(f, t) for f in Severity for t in (*Severity, None)])
def test_a_finding_fails_from_the_threshold_on(found: Severity, threshold: Severity | None) -> None:
    order = [Severity.NOTE, Severity.WARNING, Severity.ERROR]
    fails = threshold is not None and order.index(found) >= order.index(threshold)
    assert verdict([finding(found)], True, threshold) is (Verdict.FAILED if fails else Verdict.PASSED)


def test_without_layers_nothing_is_decided_unless_something_is_found() -> None:
    assert verdict([], False, Severity.ERROR) is Verdict.UNDECIDED
    assert verdict([finding(Severity.ERROR)], False, Severity.ERROR) is Verdict.FAILED


KINDS = {
    "unreadable": (Report(("a",), None, Verdict.UNDECIDED, error=Problem("", "")), 2),
    "failed": (Report(("a",), "", Verdict.FAILED), 1),
    "empty": (Report(("a",), "", Verdict.UNDECIDED), 3),
    "passed": (Report(("a",), "", Verdict.PASSED), 0),
}


@pytest.mark.parametrize("names", [names for size in (1, 2, 3) for names in itertools.product(KINDS, repeat=size)])
def test_two_beats_one_beats_three_beats_nought(names: tuple[str, ...]) -> None:
    codes = {KINDS[name][1] for name in names}
    # An input without BatchNorm beside others with it is a note.
    expected = 2 if 2 in codes else 1 if 1 in codes else 0 if 0 in codes else 3
    assert exit_code([KINDS[name][0] for name in names]) == expected
