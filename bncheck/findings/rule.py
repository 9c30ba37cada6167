"""A rule, and what it answers when it is asked of a subject."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bncheck.subjects.checkpoint import Checkpoint
    from bncheck.subjects.evaluation import Evaluation
    from bncheck.subjects.layer import BatchNormLayer
    from bncheck.subjects.pair import CheckpointPair


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

    `headline` is what the first line of a report says of its findings, their layers at `{layers}`, and `all_clear` what
    it says where the rule found nothing; of several headlines the one that `prevails` most is told.
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
    headline: str = ""
    all_clear: str = ""
    prevails: int = 0

    @property
    def summary(self) -> str:
        """The first line of the explanation."""
        return self.explanation.strip().splitlines()[0]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A text under headings, and how severe what it is about is; None for a parameter."""

    name: str
    severity: Severity | None
    text: str
