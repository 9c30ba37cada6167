"""What is said about a subject: rules, what they find, and the report that carries it.

A finding carries all that a report format needs; no format looks a rule up again. Nothing here holds an array.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bncheck.comparisons import CheckpointPair
    from bncheck.evaluations import Evaluation
    from bncheck.subjects import BatchNormLayer, Behaviour, Checkpoint, Setting


class Severity(Enum):
    """SARIF's levels. Compared by `at_least`, since the values are words."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    def at_least(self, other: Severity) -> bool:
        order = list(Severity)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a rule saw. `layer` is None for what concerns the whole file or group; `severity` replaces the rule's."""

    message: str
    fix: str
    layer: BatchNormLayer | None = None
    measured: Mapping[str, object] = field(default_factory=dict)
    severity: Severity | None = None
    group: str | None = None  # where there is no layer


@dataclass(frozen=True, slots=True)
class CannotTell:
    """A rule misses a fact: could not tell is not passed."""

    reason: str
    layer: BatchNormLayer | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A defect that can be told from a subject.

    `layer` judges one layer, `checkpoint` a whole file, `evaluation` a model that was run on data, `pair` what happened
    between two files. `supersedes` names the rules that are silent about a layer of which this one has spoken, so that
    one cause is told once. A `deep` rule reads more of the file than the rest and is asked only on request.
    """

    id: str
    severity: Severity
    needs: str
    explanation: str
    layer: Callable[[BatchNormLayer], Iterable[Evidence | CannotTell]] | None = None
    checkpoint: Callable[[Checkpoint], Iterable[Evidence | CannotTell]] | None = None
    evaluation: Callable[[Evaluation], Iterable[Evidence | CannotTell]] | None = None
    pair: Callable[[CheckpointPair], Iterable[Evidence | CannotTell]] | None = None
    supersedes: tuple[str, ...] = ()
    deep: bool = False

    @property
    def summary(self) -> str:
        """The first line of the explanation."""
        return self.explanation.strip().splitlines()[0]


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect, where it is, the numbers that show it, and what to do."""

    rule: str
    severity: Severity
    layer: str | None
    group: str | None
    message: str
    measured: Mapping[str, object]
    fix: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """A rule that could not be decided, and why. `layer` is None where it holds for every layer of the file."""

    rule: str
    layer: str | None
    group: str | None
    reason: str


class Verdict(Enum):
    """What the findings of a subject add up to. UNDECIDED: there was nothing to judge."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Distribution:
    """The spread of a buffer over its channels.

    `min`, `median` and `max` are over all channels, NaN where any is NaN, as torch has it; `finite` has the same of
    the finite ones. `histogram` counts the finite channels in equal bins from their minimum to their maximum.
    """

    min: float
    median: float
    max: float
    non_finite: int
    finite: tuple[float, float, float] | None
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """A layer as reports show it: settings and plain numbers."""

    name: str
    group: str
    stored_name: str
    class_path: str | None
    kind: Setting[str]
    num_features: int | None
    dtype: str | None
    num_batches_tracked: int | float | None
    eps: Setting[float]
    momentum: Setting[float]
    affine: Setting[bool]
    track_running_stats: Setting[bool]
    training: Setting[bool]
    behaviour: Behaviour
    running_mean: Distribution | None
    running_var: Distribution | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no verdict: what a BncheckError says."""

    message: str
    hint: str


def fingerprint(finding: Finding) -> str:
    """Tells a finding from any other of its file, and is the same when the file is renamed or written anew."""
    import hashlib
    import json

    told_apart_by = json.dumps([finding.rule, finding.group or "", finding.layer])
    return hashlib.sha256(told_apart_by.encode("ascii")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that the team has decided to live with, and why."""

    finding: Finding
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """A part of the gate: what it ran, or why it was left out."""

    name: str
    done: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that is said about one subject. Same input, same report."""

    subjects: tuple[str, ...]
    format: str | None
    verdict: Verdict
    error: Problem | None = None
    layers: tuple[LayerSummary, ...] = ()
    findings: tuple[Finding, ...] = ()
    undecided: tuple[Undecided, ...] = ()
    measurements: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    globals: tuple[tuple[str, str], ...] = ()  # (dotted path, use)
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    suppressed: tuple[Suppressed, ...] = ()  # not among the findings
    fail_on: Severity | None = Severity.ERROR  # a finding of this severity or above fails the subject; None: none does
    checks: tuple[Check, ...] = ()  # of the gate

    def __str__(self) -> str:
        """The text report, as `print(report)` shows it."""
        from bncheck.reports.printed import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from bncheck.reports.html import as_html

        return as_html(self)


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a command: its reports in the order of the inputs, and the exit code they add up to."""

    command: str
    reports: tuple[Report, ...]
    exit_code: int
    remarks: tuple[str, ...] = ()  # on the policy of the gate: what it names and does nothing
