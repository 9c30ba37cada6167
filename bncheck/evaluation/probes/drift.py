"""`bncheck drift`: runs the model on data and measures what happens to its statistics.

Up to three passes over the data. In the first the evaluation is watched, in the modes that the artefact ships with or
that the user's function sets. The second runs each batch in eval mode, to measure the input of every layer, and in
train mode on a copy of the statistics. The third compares the predictions of the model with its own statistics, with
those of the trial in train mode, and with those that the data give: batch by batch, so that memory does not grow with
the data.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.models.calls import call
from bncheck.evaluation.observing.evaluator import observe
from bncheck.evaluation.observing.modes import modes_of, set_modes
from bncheck.evaluation.observing.moments import ChannelMoments, watching
from bncheck.evaluation.observing.operators import Interception, layer_addresses
from bncheck.evaluation.observing.outputs import Comparison
from bncheck.evaluation.observing.passes import data_notes, description_of, fitting_labels, placed_batches
from bncheck.evaluation.probes.abilities import BAKED_IN_TRAIN_MODE, NOT_CALLED, NOT_WATCHED, Probe, inability
from bncheck.evaluation.probes.fit import InputMoments, fit_of
from bncheck.evaluation.probes.train_mode import TrainModeTrial
from bncheck.evaluation.restoring import restored
from bncheck.evaluation.statistics import broken, moved, put_back, snapshot, updates
from bncheck.subjects.evaluation import EvaluatedLayer, Evaluation
from bncheck.subjects.shift import Shift, shift
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bncheck.evaluation.data.batches import Batch, Data
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.observing.evaluator import Evaluator, Observation
    from bncheck.evaluation.observing.modes import Modes
    from bncheck.evaluation.statistics import Statistics
    from bncheck.subjects.layer import BatchNormLayer

    Saved = Mapping[str, Statistics]

# Predictions are followed batch by batch on at most this many samples: enough for steps of half a per cent.
FOLLOWED_SAMPLES = 256
NO_BATCH = "no batch was run in train mode"


def drift(
    runnable: Runnable,
    data: Data,
    *,
    evaluator: Evaluator | None = None,
    in_distribution: bool = False,
    progress: Callable[[int], None] = lambda samples: None,
) -> Evaluation:
    """Measures how the statistics of a model behave on data. The model is given back bit for bit as it came.

    Args:
        runnable: the model.
        data: what it is run on.
        evaluator: the user's own evaluation, to be watched; None to run the model in the modes that it ships with.
        in_distribution: whether the user vouches for the data.
        progress: told the number of samples of each batch that is done.

    Raises:
        BncheckError: the model, the evaluation or the data fail.
    """
    with restored(runnable.module):
        measured = Drift(runnable, data, progress)
        measured.watch(evaluator)
        measured.measure()
        measured.compare()
        return measured.evaluation(in_distribution)


class Drift:
    """What has been measured so far."""

    def __init__(self, runnable: Runnable, data: Data, progress: Callable[[int], None]) -> None:
        self.runnable, self.data, self.progress = runnable, data, progress
        self.described: Mapping[str, BatchNormLayer] = {layer.name: layer for layer in runnable.described}
        self.stored = snapshot(runnable.layers)
        self.seen: Observation | None = None
        self.watched: str | None = None
        self.passes = self.samples = self.batches = 0
        self.moments: dict[str, ChannelMoments] = {}
        self.trial: TrainModeTrial | None = None
        self.train_mode: Comparison | None = None
        self.followed: dict[int, Comparison] = {}
        self.recalibrated: Comparison | None = None
        self.unable: dict[str, str] = {}

    def ticking(self) -> Iterator[Batch]:
        """One pass over the data."""
        self.passes += 1
        for batch in placed_batches(self.runnable, self.data):
            yield batch
            self.progress(batch.size)

    def watch(self, evaluator: Evaluator | None) -> None:
        """Watches the user's evaluation, or the modes that the artefact carries; a state_dict carries none."""
        if evaluator is None and not self.runnable.modes_are_stored:
            self.unable[Probe.MOVED.value] = NOT_WATCHED
            return
        self.watched = "the evaluator" if evaluator else "as shipped"
        with restored(self.runnable.module):  # an evaluation may leave behind what it likes
            self.seen = observe(self.runnable, self.ticking, evaluator)
        if not self.seen.forwards:
            self.watched = None
            self.unable[Probe.MOVED.value] = NOT_CALLED

    def measure(self) -> None:
        """Runs each batch in eval mode and measures what enters the layers, and in train mode on other statistics."""
        evaluating, training = self.modes()
        module = self.runnable.module
        with torch.no_grad(), self.measuring() as forward:
            for batch in self.ticking():
                self.samples += batch.size
                self.batches += 1
                forward(batch)
                if self.trial and training:
                    set_modes(module, training)
                    self.trial.run(batch.inputs, batch.size)
                    set_modes(module, evaluating)
        if self.trial and not self.trial.batches:
            self.unable[Probe.TRAIN_MODE.value] = self.trial.refusal or NO_BATCH
            self.trial = None

    def modes(self) -> tuple[Modes, Modes | None]:
        """The flags of every module in eval and in train mode, as its own eval() and train() set them.

        The model is left in eval mode; one whose mode is part of its graph is left alone.
        """
        module = self.runnable.module
        reason = inability(self.runnable, Probe.TRAIN_MODE)
        if reason:
            self.unable[Probe.TRAIN_MODE.value] = reason
        if not self.runnable.can_set_mode:
            return modes_of(module), None
        module.train()
        training = modes_of(module)
        module.eval()
        if not reason:
            self.trial = TrainModeTrial(self.runnable, self.stored, self.described)
        return modes_of(module), training

    @contextlib.contextmanager
    def measuring(self) -> Iterator[Callable[[Batch], Any]]:
        """A forward that measures the inputs of the layers: by hooks, or by watching the operators of a graph."""
        module, layers = self.runnable.module, self.runnable.layers
        if self.runnable.can_hook:
            self.moments = {name: ChannelMoments() for name in layers}

            def hooked(batch: Batch) -> Any:
                # The hooks are gone again when the trial runs in train mode: they measure this forward alone.
                with watching(layers, self.moments):
                    return call(module, batch.inputs)

            yield hooked
            return
        by_operator: dict[str, ChannelMoments] = {}
        self.moments = by_operator
        addresses = layer_addresses(layers)

        def add(name: str, values: torch.Tensor) -> None:
            moments = by_operator.setdefault(name, ChannelMoments())
            moments.calls += 1
            moments.add(values)

        def intercepted(batch: Batch) -> Any:
            with Interception(addresses, batch.size, on_input=add) as watching_operators:
                out = call(module, batch.inputs)
            if any(norm.by_batch and norm.updates for norm in watching_operators.record.batch_norms):
                self.unable[Probe.FIT.value] = BAKED_IN_TRAIN_MODE
            return out

        yield intercepted
        if Probe.FIT.value in self.unable:
            self.moments = {}

    def compare(self) -> None:
        """Counts predictions that change with the statistics of the trial, and with those of the data.

        The statistics of the data are those that the layers see in train mode: in eval mode, a layer behind one that
        is wrong sees what the wrong one makes of the data.
        """
        module, layers = self.runnable.module, self.runnable.layers
        if self.trial is None or not self.trial.followed:
            return
        after_trial, recalibrated = self.trial.statistics(), self.trial.recalibrated()
        self.train_mode = Comparison()
        # With momentum 0 no statistics of the data were seen: a comparison of the stored with themselves says nothing.
        self.recalibrated = Comparison() if recalibrated else None
        by_batches = self.trial.by_batches
        self.followed = {batches: Comparison() for batches in by_batches}

        def outputs(batch: Batch, statistics: Saved) -> Any:
            put_back(layers, statistics)
            return call(module, batch.inputs)

        with torch.no_grad():
            followed = 0
            for batch in self.ticking():
                before = outputs(batch, self.stored)
                labels = fitting_labels(self.data, batch, before)
                after = outputs(batch, {**self.stored, **after_trial})
                self.train_mode.add(before, after, batch.size, labels)
                if self.recalibrated:
                    self.recalibrated.add(before, outputs(batch, {**self.stored, **recalibrated}), batch.size, labels)
                if not followed or followed + batch.size <= FOLLOWED_SAMPLES:
                    for batches, statistics in by_batches.items():
                        last = batches == self.trial.batches  # these are the statistics of the whole trial
                        then = after if last else outputs(batch, {**self.stored, **statistics})
                        self.followed[batches].add(before, then, batch.size)
                    followed += batch.size
        put_back(layers, self.stored)

    def evaluation(self, in_distribution: bool) -> Evaluation:
        layers = [self.layer(name) for name in self.in_order()]
        return Evaluation(
            source=self.runnable.source,
            artefact=self.runnable.artefact,
            device=str(self.runnable.device),
            samples=self.samples,
            batches=self.batches,
            passes=self.passes,
            layers=tuple(layers),
            watched=self.watched,
            forwards_watched=self.seen.forwards if self.seen else 0,
            train_mode=self.train_mode.agreement() if self.train_mode else None,
            train_mode_by_batches={
                batches: changed
                for batches, followed in self.followed.items()
                if (changed := followed.agreement().predictions_changed) is not None
            },
            fit=self.recalibrated.agreement() if self.recalibrated else None,
            in_distribution=in_distribution,
            unable=dict(self.unable),
            data=description_of(self.data),
            notes=(*self.runnable.notes, *self.trial_notes(), *data_notes(self.runnable, self.data, self.samples)),
        )

    def trial_notes(self) -> list[str]:
        if self.trial is None or not self.trial.refused:
            return []
        refused = count(self.trial.refused, "batch")
        return [f"{refused} left out of the trial in train mode: {self.trial.refusal}"]

    def in_order(self) -> list[str]:
        """The layers in the order in which a forward calls them; those that none calls last, as the model has them."""
        names = [name for name in self.first_calls() if name in self.described]
        return [*names, *(name for name in self.described if name not in names)]

    def first_calls(self) -> list[str]:
        if self.seen and self.seen.called:
            return list(self.seen.called)
        called = [(name, moments) for name, moments in self.moments.items() if moments.calls]
        return [name for name, _ in called]

    def layer(self, name: str) -> EvaluatedLayer:
        described, seen, moments = self.described[name], self.seen, self.moments.get(name)
        watched = seen is not None and self.watched is not None and name in seen.before
        before, after = (seen.before[name], seen.after[name]) if seen and watched else (None, None)
        fit = None
        if moments and moments.images:
            fit = fit_of(
                InputMoments(
                    moments.mean,
                    moments.variance,
                    moments.within_batch_variance if moments.batches_with_variance else moments.variance,
                    moments.spread_of_images,
                    moments.images,
                ),
                described,
            )
        trial = self.trial.followed.get(name) if self.trial else None
        calls = seen.called.get(name, 0) if seen and watched and seen.called is not None else None
        if calls is None and self.runnable.can_hook and moments:
            calls = moments.calls
        return EvaluatedLayer(
            layer=described,
            called=calls,
            training=seen.training.get(name) if seen and watched else None,
            untracked=seen is not None and watched and name in seen.untracked,
            moved=moved(before, after) if before and after else None,
            updates=updates(before, after) if before and after else None,
            broken=broken(before, after) if before and after else 0,
            as_shipped=shift_of(after, described) if after else None,
            train_mode=shift(trial.mean.numpy(), trial.var.numpy(), described) if trial else None,
            fit=fit,
        )


def shift_of(statistics: Statistics, layer: BatchNormLayer) -> Shift | None:
    if statistics.mean is None or statistics.var is None:
        return None
    return shift(statistics.mean.double().cpu().numpy(), statistics.var.double().cpu().numpy(), layer)
