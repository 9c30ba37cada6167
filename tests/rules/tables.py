"""The tables of the rules' tests, and the one place that runs them.

The test file of a rule holds rows of data. A row of QUIET is a subject of which the rule says nothing, not even that it
cannot tell; a row of FIRES has beside the subject what the rule finds; a row of UNDECIDED has why it cannot tell. The
name of a row says what is odd about its subject; a comment says where that was seen, or how a number came about.
A subject is a layer, the layers of one file, or a whole checkpoint, pair or evaluation.

    test_quiet = quiet(RULE, QUIET)
    test_fires = fires(RULE, FIRES)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bncheck.findings.rule import CannotTell, Evidence, Rule
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.evaluation import Evaluation
from bncheck.subjects.layer import BatchNormLayer
from bncheck.subjects.pair import CheckpointPair
from tests.rules.layers import checkpoint

Subject = BatchNormLayer | Sequence[BatchNormLayer] | Checkpoint | CheckpointPair | Evaluation


@dataclass(frozen=True)
class Found:
    """What a rule is to find; what is left out is not compared.

    `says` and `fix` are parts of the message and of the fix, `message` is all of it; `layer` is "" where the finding
    is about the whole file, pair or model; `measured` holds some of the numbers.
    """

    severity: str
    says: str = ""
    layer: str = "bn"
    message: str | None = None
    fix: str = ""
    group: str | None = None
    measured: Mapping[str, object] = field(default_factory=dict)

    def compare(self, evidence: Evidence) -> None:
        """The severity and the layer are compared by `said`, for all findings at once."""
        assert self.says in evidence.message
        assert self.fix in evidence.fix
        if self.message is not None:
            assert self.message == evidence.message
        if self.group is not None:
            assert self.group == (evidence.layer.group if evidence.layer else evidence.group)
        assert self.measured == {key: evidence.measured[key] for key in self.measured}


def note(says: str = "", **parts: Any) -> Found:
    return Found("note", says, **parts)


def warning(says: str = "", **parts: Any) -> Found:
    return Found("warning", says, **parts)


def error(says: str = "", **parts: Any) -> Found:
    return Found("error", says, **parts)


Quiet = Mapping[str, Subject]
# A text is the whole message where all else is the same in each row.
Fires = Mapping[str, tuple[Subject, Found | str | Sequence[Found]]]
# Why it cannot tell; a CannotTell where the layer or the group is compared as well.
Reason = str | CannotTell
Undecided = Mapping[str, tuple[Subject, Reason | Sequence[Reason]]]


def asked(rule: Rule, subject: Subject) -> list[Evidence | CannotTell]:
    """All that a rule answers; a rule about single layers is asked of each layer of a file."""
    if isinstance(subject, Evaluation):
        assert rule.evaluation
        return list(rule.evaluation(subject))
    if isinstance(subject, CheckpointPair):
        assert rule.pair
        return list(rule.pair(subject))
    if rule.checkpoint:
        return list(rule.checkpoint(subject if isinstance(subject, Checkpoint) else checkpoint(*layers_of(subject))))
    assert rule.layer
    return [answer for layer in layers_of(subject) for answer in rule.layer(layer)]


def layers_of(subject: BatchNormLayer | Sequence[BatchNormLayer] | Checkpoint) -> Sequence[BatchNormLayer]:
    if isinstance(subject, Checkpoint):
        return subject.layers
    return (subject,) if isinstance(subject, BatchNormLayer) else subject


def found(rule: Rule, subject: Subject) -> list[Evidence]:
    """What a rule finds, where it can tell."""
    return [answer for answer in asked(rule, subject) if isinstance(answer, Evidence)]


def the_one(rule: Rule, subject: Subject) -> Evidence:
    """The only answer of a rule, which is a finding."""
    [answer] = asked(rule, subject)
    assert isinstance(answer, Evidence)
    return answer


def said(rule: Rule, subject: Subject) -> list[tuple[str, str]]:
    """(severity, layer) of what a rule finds; "" for the whole subject."""
    return [
        ((evidence.severity or rule.severity).value, evidence.layer.name if evidence.layer else "")
        for evidence in found(rule, subject)
    ]


def left_open(rule: Rule, subject: Subject) -> list[str]:
    """The reasons for which a rule cannot tell."""
    return [answer.reason for answer in asked(rule, subject) if isinstance(answer, CannotTell)]


def assert_found(rule: Rule, subject: Subject, expected: Found | Sequence[Found]) -> None:
    """The rule finds this, in this order, and nothing else."""
    wanted = [expected] if isinstance(expected, Found) else expected
    assert [(one.severity, one.layer) for one in wanted] == said(rule, subject)
    assert left_open(rule, subject) == []
    for one, evidence in zip(wanted, found(rule, subject), strict=True):
        one.compare(evidence)


def quiet(rule: Rule, table: Quiet) -> Callable[[str], None]:
    """The test of a table of subjects of which the rule says nothing."""

    @pytest.mark.parametrize("name", table)
    def test_quiet(name: str) -> None:
        assert asked(rule, table[name]) == []

    return test_quiet


def fires(rule: Rule, table: Fires, each: Found | None = None) -> Callable[[str], None]:
    """The test of a table of subjects and what the rule finds in them; `each` is what rows of a message share."""

    @pytest.mark.parametrize("name", table)
    def test_fires(name: str) -> None:
        subject, expected = table[name]
        if isinstance(expected, str):
            assert each
            expected = replace(each, message=expected)
        assert_found(rule, subject, expected)

    return test_fires


def undecided(rule: Rule, table: Undecided) -> Callable[[str], None]:
    """The test of a table of subjects of which the rule cannot tell, and why."""

    @pytest.mark.parametrize("name", table)
    def test_undecided(name: str) -> None:
        subject, expected = table[name]
        reasons = [expected] if isinstance(expected, Reason) else expected
        answers = asked(rule, subject)
        assert found(rule, subject) == []
        for reason, answer in zip(reasons, answers, strict=True):
            assert isinstance(answer, CannotTell)
            assert reason == (answer if isinstance(reason, CannotTell) else answer.reason)

    return test_undecided
