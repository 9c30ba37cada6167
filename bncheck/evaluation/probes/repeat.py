"""`bncheck repeat`: evaluates again, and asks why the results differ.

The same batches again show dropout, noise and kernels. They do not show a BatchNorm in train mode, which gives the
same outputs for the same batch while its statistics move: for that, the same samples are run in other company.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bncheck.errors import BncheckError
from bncheck.evaluation.data.batches import Batch, input_hash
from bncheck.evaluation.data.samples import single
from bncheck.evaluation.models.calls import call, outputs_of, placed, predictions_of
from bncheck.evaluation.observing.evaluator import observe
from bncheck.evaluation.observing.modes import set_modes
from bncheck.evaluation.observing.outputs import largest_difference
from bncheck.evaluation.observing.passes import data_notes, description_of, placed_batches
from bncheck.evaluation.probes.abilities import NOT_CALLED, Probe
from bncheck.evaluation.probes.batch_sizes import Counts, count_by_size
from bncheck.evaluation.probes.causes import causes_between_runs, first_non_finite
from bncheck.evaluation.probes.company import Company, Tables, company
from bncheck.evaluation.probes.experiments import Subject, in_double, kept
from bncheck.evaluation.process import seed_everything
from bncheck.evaluation.restoring import restored
from bncheck.subjects.evaluation import Cause, CauseKind, EvaluatedLayer, Evaluation, Repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bncheck.evaluation.data.batches import Data
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.observing.evaluator import Evaluator

# Samples that are run alone and in company, and the companions of each of two batches.
PROBES, COMPANIONS = 4, 8


def repeat(
    runnable: Runnable,
    data: Data,
    *,
    evaluator: Evaluator | None = None,
    runs: int = 2,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda samples: None,
) -> Evaluation:
    """Evaluates the same data several times and in other batches, and names the cause of every difference.

    Args:
        runnable: the model, run in the modes that it ships with; a state_dict, which has none, in eval mode.
        data: what it is run on.
        evaluator: the user's own evaluation; the model is then probed in the modes that it sets.
        runs: how often the same batches are evaluated, at least twice.
        batch_size: that of the user, for predictions by batch size.
        progress: told the number of samples of each batch that is done.

    Raises:
        BncheckError: the model, the evaluation or the data fail.
    """
    with restored(runnable.module):
        repeated = Repetition(runnable, data, max(runs, 2), progress)
        if repeated.choose_modes(evaluator):
            repeated.same_batches()
            repeated.same_inputs()
            repeated.other_company(batch_size)
        return repeated.evaluation()


class Repetition:
    """What has been seen so far."""

    def __init__(self, runnable: Runnable, data: Data, runs: int, progress: Callable[[int], None]) -> None:
        self.runnable, self.data, self.runs, self.progress = runnable, data, runs, progress
        self.subject = Subject(runnable.module, runnable.layers, runnable.can_hook)
        self.watched: str | None = None
        self.metrics: list[dict[str, float]] = []
        self.unable: dict[str, str] = {}
        self.samples = self.batches = self.passes = self.forwards = 0
        self.difference: float | None = None
        self.changed: int | None = None
        self.run_causes: list[Cause] = []
        self.first_difference: str | None = None
        self.first_non_finite: str | None = None
        self.non_finite_samples = 0
        self.identical: bool | None = None
        self.digests: list[bytes] = []
        self.company: Company | None = None
        self.company_dtype: str | None = None
        self.by_size = Counts()

    def ticking(self) -> Iterator[Batch]:
        """One pass over the data."""
        self.passes += 1
        for batch in placed_batches(self.runnable, self.data):
            yield batch
            self.progress(batch.size)

    def choose_modes(self, evaluator: Evaluator | None) -> bool:
        """Leaves the model in the modes of the evaluation: its own, those of the user's function, or eval mode.

        False if there are none: an evaluation that does not call the model shows nothing of it.
        """
        if evaluator is None:
            if self.runnable.modes_are_stored:
                self.watched = "as shipped"
            elif self.runnable.can_set_mode:
                self.runnable.module.eval()
            return True
        self.watched = "the evaluator"
        seen = None
        for _ in range(self.runs):
            with restored(self.runnable.module):
                seed_everything(len(self.metrics) + 1)  # a run draws on where the last one stopped: never the same
                seen = observe(self.runnable, self.ticking, evaluator)
            self.metrics.append(seen.metrics)
        assert seen is not None
        self.forwards = seen.forwards
        if not seen.forwards:
            self.watched = None
            self.unable |= dict.fromkeys((Probe.REPEAT.value, Probe.COMPANY.value), NOT_CALLED)
            return False
        set_modes(self.runnable.module, seen.modes)
        return True

    def same_batches(self) -> None:
        """Runs each batch several times in a row; looks for the causes at the first batch that differs."""
        seed_everything(1)
        module = self.runnable.module
        changed = 0
        classified = False
        with torch.no_grad():
            for batch in self.ticking():
                self.samples += batch.size
                self.batches += 1
                self.digests += digests_of(batch)
                with kept(self.subject):
                    first = call(module, batch.inputs)
                    different = 0.0
                    for _ in range(self.runs - 1):
                        again = call(module, batch.inputs)
                        different = max(different, largest_difference(first, again))
                        before, after = predictions_of(first), predictions_of(again)
                        if before is not None and after is not None and before.shape == after.shape:
                            classified = True
                            changed += int((before != after).sum())
                self.look_for_non_finite(batch, first)
                self.difference = different if self.difference is None else max(self.difference, different)
                if different and not self.run_causes:
                    self.run_causes, self.first_difference = causes_between_runs(self.subject, batch.inputs, batch.size)
        self.changed = changed if classified else None

    def look_for_non_finite(self, batch: Batch, outputs: Any) -> None:
        rows = [t.flatten(1) for t in outputs_of(outputs) if t.dim() > 1 and t.shape[0] == batch.size]
        bad = sum(int((~row.isfinite()).any(1).sum()) for row in rows[:1])
        if not bad and all(bool(t.isfinite().all()) for t in outputs_of(outputs)):
            return
        self.non_finite_samples += bad
        if self.first_non_finite is None:
            with torch.no_grad():
                self.first_non_finite = first_non_finite(self.subject, batch.inputs)

    def same_inputs(self) -> None:
        """Reads the data again, and says how they differ if they do."""
        seed_everything(2)
        again = [digest for batch in self.ticking() for digest in digests_of(batch)]
        self.identical = again == self.digests
        if self.identical:
            return
        if sorted(again) == sorted(self.digests):
            explanation = "the data come in another order each time (shuffling): the same samples, other batches"
        elif len(again) != len(self.digests):
            explanation = f"the second pass over the data has {len(again):,} samples, the first {len(self.digests):,}"
        else:
            other = sum(1 for one, two in zip(self.digests, again, strict=True) if one != two)
            explanation = (
                f"the data change from pass to pass: {other:,} of {len(again):,} samples differ (random augmentation)"
            )
        self.run_causes.insert(0, Cause(CauseKind.INPUTS.value, explanation))

    def other_company(self, batch_size: int) -> None:
        """Runs a few samples alone and in two batches, in float64 on the CPU where the model allows that."""
        fixed = self.runnable.fixed_batch_size
        probes, companions = (PROBES, COMPANIONS) if fixed is None else (max(1, fixed // 2), fixed - max(1, fixed // 2))
        if not companions:
            self.unable[Probe.COMPANY.value] = "the artefact takes one sample at a time"
            return
        gathered = self.gather(probes + 2 * companions)
        if fixed is None and len(gathered) < probes + 2 * companions:
            probes = max(1, len(gathered) // 3)
            companions = (len(gathered) - probes) // 2
        if len(gathered) < probes + 2 * companions or not companions:
            self.unable[Probe.COMPANY.value] = f"{len(gathered)} samples are too few to change their company"
            return
        first, second = gathered[probes : probes + companions], gathered[probes + companions :][:companions]
        for subject, dtype, device in in_double(self.runnable):
            tables = Tables(
                *([placed(sample, device, dtype) for sample in part] for part in (gathered[:probes], first, second))
            )
            try:
                self.company = company(subject, tables, alone=fixed is None)
                self.company_dtype = str(dtype).removeprefix("torch.")
                break
            except (BncheckError, RuntimeError, TypeError) as error:
                self.unable[Probe.COMPANY.value] = f"the model cannot be run in other batches: {error}"
        else:
            return
        assert self.company is not None
        if not self.company.outputs:
            self.company = None
            self.unable[Probe.COMPANY.value] = "no output of the model has a row for each sample"
            return
        self.unable.pop(Probe.COMPANY.value, None)
        if self.company.difference > self.company.tolerance and fixed is None:
            self.by_size = count_by_size(self.runnable, self.data, self.subject, batch_size)

    def gather(self, wanted: int) -> list[Any]:
        """The first samples of the data, each as a batch of one."""
        gathered: list[Any] = []
        for batch in placed_batches(self.runnable, self.data):
            gathered += single(batch.inputs, batch.size)
            if len(gathered) >= wanted:
                break
        return gathered[:wanted]

    def evaluation(self) -> Evaluation:
        company_ = self.company
        return Evaluation(
            source=self.runnable.source,
            artefact=self.runnable.artefact,
            device=str(self.runnable.device),
            samples=self.samples,
            batches=self.batches,
            passes=self.passes,
            layers=tuple(EvaluatedLayer(layer) for layer in self.runnable.described),
            watched=self.watched,
            forwards_watched=self.forwards,
            repeat=Repeat(
                runs=self.runs,
                identical_inputs=self.identical,
                same_batches_max_difference=self.difference,
                other_company_max_difference=company_.difference if company_ else None,
                company_tolerance=company_.tolerance if company_ else None,
                company_dtype=self.company_dtype,
                fails_alone=bool(company_ and company_.fails_alone),
                predictions_changed=self.changed,
                first_difference=self.first_difference,
                metrics=tuple(self.metrics),
                predictions_by_batch_size=self.by_size.changed,
                accuracy_by_batch_size=self.by_size.accuracy,
                first_non_finite=self.first_non_finite,
                non_finite_samples=self.non_finite_samples,
                run_causes=tuple(self.run_causes),
                company_causes=company_.causes if company_ else (),
            ),
            unable=dict(self.unable),
            data=description_of(self.data),
            notes=(*self.runnable.notes, *data_notes(self.runnable, self.data, self.samples)),
        )


def digests_of(batch: Batch) -> list[bytes]:
    """Eight bytes for each sample, so that another order can be told from other contents."""
    return [bytes.fromhex(input_hash(Batch(sample, None, 1)))[:8] for sample in single(batch.inputs, batch.size)]
