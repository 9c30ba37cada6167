"""The same samples alone and in two batches: whether their outputs depend on the company, and what couples them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.data.samples import joined
from bncheck.evaluation.models.calls import outputs_of
from bncheck.evaluation.observing.modules import ModuleRun, first_that_differs, module_runs
from bncheck.evaluation.observing.outputs import largest_difference
from bncheck.evaluation.probes.experiments import AMPLIFIED, NAMED_MODULES, Subject, forward, kept
from bncheck.evaluation.process import seed_everything
from bncheck.subjects.evaluation import Cause, CauseKind
from bncheck.wording import count, few

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.evaluation.observing.operators import Record
    from bncheck.evaluation.observing.operators import Statistics as OperatorStatistics

    Fixed = Mapping[int, OperatorStatistics] | None  # what batch_norm operators normalise with; None: as they come

# Rounding: differences of outputs, relative to the largest, that the arithmetic of the network explains by itself.
# Measured over seven torchvision networks at 96x96 on a CPU: up to 3.2e-15 in float64 (14 eps) and 9e-7 in float32
# (8 eps) between batch sizes, while one BatchNorm without statistics gave from 0.12 down to 6e-10.
ROUNDING = 1000.0
# How often chance is drawn where a network has some of its own.
DRAWS = 4


@dataclass(frozen=True, slots=True)
class Company:
    """The outputs of the same samples alone and in two batches."""

    difference: float
    tolerance: float
    fails_alone: bool
    causes: tuple[Cause, ...]
    outputs: int  # how many outputs have a row for each sample; the boxes of a detector have not


class Tables:
    """The samples to probe, and two sets of companions for them; each a list of inputs of one sample."""

    def __init__(self, probes: list[Any], first: list[Any], second: list[Any]) -> None:
        self.probes = probes
        self.first, self.second = joined([*probes, *first]), joined([*probes, *second])
        self.size = len(probes) + len(first)


class Trial:
    """Runs the probes in their companies, the statistics of BatchNorm as they come or held fixed."""

    def __init__(self, subject: Subject, tables: Tables, *, alone: bool) -> None:
        self.subject, self.tables, self.alone = subject, tables, alone
        self.fails_alone = False

    def rows(self, inputs: Any, samples: int, statistics: Fixed) -> tuple[Any, Record]:
        """What the outputs say of the probes, and what the forward did."""
        with kept(self.subject):
            seed_everything()
            out, record = forward(self.subject, inputs, samples, repeated_noise=True, statistics=statistics)
        probes = len(self.tables.probes)
        return tuple(t[:probes] for t in outputs_of(out) if t.dim() and t.shape[0] == samples), record

    def spread(self, statistics: Fixed) -> tuple[float, Record, Any]:
        """The largest difference between the companies; what the forward of the first did, and what it gave."""
        tables = self.tables
        first, record = self.rows(tables.first, tables.size, statistics)
        second, _ = self.rows(tables.second, tables.size, statistics)
        difference = largest_difference(first, second)
        if self.alone and not self.fails_alone:
            try:
                single = [self.rows(probe, 1, statistics)[0] for probe in tables.probes]
            except Exception:  # noqa: BLE001 - train mode refuses one value per channel
                self.fails_alone = True
            else:
                together = tuple(torch.cat(parts) for parts in zip(*single, strict=False))
                difference = max(difference, largest_difference(first, together))
        return difference, record, first

    def rounding(self, outputs: tuple[torch.Tensor, ...], statistics: Fixed) -> float:
        """What the last bit of the input, or chance that nothing holds fixed, makes of the outputs."""

        def answer(inputs: Any) -> float:
            return largest_difference(outputs, self.rows(inputs, self.tables.size, statistics)[0])

        inputs = self.tables.first
        answers = [answer(nudge(inputs))]
        if answer(inputs):  # one draw may be small by luck
            answers += [answer(inputs) for _ in range(DRAWS)]
        return max(least_rounding(outputs), AMPLIFIED * max(answers))


def company(subject: Subject, tables: Tables, *, alone: bool) -> Company:
    """Runs the probes in two batches of other companions, and each alone if `alone`; names what couples them."""
    trial = Trial(subject, tables, alone=alone)
    difference, record, first = trial.spread(None)
    tolerance = least_rounding(first)
    if difference > tolerance:  # else there is no need to measure what the network makes of a last bit
        tolerance = trial.rounding(first, None)
    causes = tuple(causes_of(trial, record, difference, tolerance)) if difference > tolerance else ()
    return Company(difference, tolerance, trial.fails_alone, causes, len(first))


def causes_of(trial: Trial, record: Record, difference: float, tolerance: float) -> Iterator[Cause]:
    """What couples the samples: BatchNorm by the batch, and what is left when that is held fixed."""
    fixed = record.statistics
    by_batch = tuple(dict.fromkeys(call.layer for call in record.batch_norms if call.by_batch))
    remaining, allowed = difference, tolerance
    if by_batch:
        remaining, _, first = trial.spread(fixed)
        own, _ = trial.rows(trial.tables.second, trial.tables.size, None)
        others, _ = trial.rows(trial.tables.second, trial.tables.size, fixed)
        # With the statistics of the other batch, the second batch must give something else: else nobody reads them.
        if largest_difference(own, others) > tolerance:
            yield batchnorm_cause(trial.subject, by_batch)
        allowed = max(tolerance, trial.rounding(first, fixed))
    if remaining > allowed:
        yield coupling_cause(trial.subject, trial.tables, fixed, allowed)


def least_rounding(outputs: tuple[torch.Tensor, ...]) -> float:
    """What any network may differ by, by the resolution of its numbers."""
    return ROUNDING * max((torch.finfo(t.dtype).eps for t in outputs), default=torch.finfo(torch.float32).eps)


def batchnorm_cause(subject: Subject, by_batch: tuple[str, ...]) -> Cause:
    """Which layers normalise by the batch, and why."""
    reasons: dict[str, list[str]] = {}
    for name in by_batch:
        layer = subject.layers.get(name)
        if layer is not None and getattr(layer, "running_mean", None) is None:
            reason = "without running statistics"
        elif layer is not None and bool(getattr(layer, "training", False)):
            reason = "in train mode"
        else:
            reason = "by a constant of the graph or a call of its own"
        reasons.setdefault(reason, []).append(name)
    told = "; ".join(f"{reason}: {few(names, NAMED_MODULES)}" for reason, names in reasons.items())
    normalise = "normalises" if len(by_batch) == 1 else "normalise"
    return Cause(
        CauseKind.BATCHNORM.value,
        f"{count(len(by_batch), 'BatchNorm layer')} {normalise} by the batch ({told})",
        by_batch,
    )


def coupling_cause(subject: Subject, tables: Tables, statistics: Fixed, tolerance: float) -> Cause:
    """What lets samples see each other although every BatchNorm is held fixed."""
    name = None
    if subject.can_hook:

        def copies(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple((tensor[: len(tables.probes)] if tensor.dim() else tensor).clone() for tensor in tensors)

        def values(inputs: Any) -> list[ModuleRun]:
            def run() -> None:
                seed_everything()
                forward(subject, inputs, tables.size, repeated_noise=True, statistics=statistics)

            with kept(subject):
                return module_runs(subject.module, copies, run)

        name = first_that_differs(
            values(tables.first),
            values(tables.second),
            lambda one, other: largest_difference(one, other) <= tolerance,
        )
    where = f", first in {name}" if name else ""
    return Cause(
        CauseKind.BATCH_COUPLING.value,
        f"samples of a batch see each other{where}, with every BatchNorm held fixed: a statistic over the batch, a "
        "contrastive or attention step across samples, padding to the largest",
        (name,) if name else (),
    )


def nudge(value: Any) -> Any:
    """Floating tensors with their last bits changed."""
    if isinstance(value, torch.Tensor):
        return value * (1 + torch.finfo(value.dtype).eps) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: nudge(inner) for name, inner in value.items()}
    return tuple(nudge(inner) for inner in value) if isinstance(value, (tuple, list)) else value
