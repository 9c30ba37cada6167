"""What is said about a subject: findings, open questions, summaries of the layers, and the report that carries them.

A finding carries all that a report format needs; no format looks a rule up again. Nothing here holds an array.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from bncheck.findings.rule import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.findings.measurements import Measurements
    from bncheck.findings.rule import Rule
    from bncheck.subjects.layer import Behaviour, Setting


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
    headline: str = ""  # of its rule
    prevails: int = 0


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
    measurements: Measurements | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    globals: tuple[tuple[str, str], ...] = ()  # (dotted path, use)
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    suppressed: tuple[Suppressed, ...] = ()  # not among the findings
    fail_on: Severity | None = Severity.ERROR  # a finding of this severity or above fails the subject; None: none does
    checks: tuple[Check, ...] = ()  # of the gate
    all_clear: tuple[str, ...] = ()  # what is certain where nothing was found


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a command: its reports in the order of the inputs, and the exit code they add up to."""

    command: str
    reports: tuple[Report, ...]
    exit_code: int
    remarks: tuple[str, ...] = ()  # on the policy of the gate: what it names and does nothing
    catalogue: tuple[Rule, ...] = ()  # of the rules that may have spoken
    files: tuple[tuple[str, str], ...] = ()  # to be written beside the reports: path, text
