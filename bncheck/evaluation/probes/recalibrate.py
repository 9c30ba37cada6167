"""Estimates on data what the running statistics of a model should be; the model is given back bit for bit as it came.

Method "train" takes one pass in which the layers normalise by the batch, as in training, so that a layer does not see
what wrong statistics before it make of the data. Method "sequential" takes passes in eval mode, each with what the one
before it measured. The statistics of a layer are right as soon as those of all layers before it are, so that each pass
is right for one level more of the network, and the last one finds nothing to change: the result is the fixed point of
the network that will be released.

Neither touches a momentum or a counter on the way. Batches count by their size. An updater that gives each batch the
same weight makes of 100 samples with mean 0.5 and 2 with mean 100 a mean of 50.25, where 2.45 is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch

from bncheck.checkpoints.contents.state_dicts import STATISTICS, prefix_stripper
from bncheck.checkpoints.rewriting.plan import NewStatistics
from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.models.calls import call
from bncheck.evaluation.models.weights import matched
from bncheck.evaluation.observing.modes import placed_batches
from bncheck.evaluation.observing.moments import ChannelMoments, watching
from bncheck.evaluation.restoring import Statistics, put_back, restored, snapshot, statistics_of
from bncheck.subjects.layer import DEFAULT_EPS, StatisticsUse
from bncheck.subjects.shift import distances
from bncheck.wording import count, few, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from bncheck.evaluation.data.batches import Data
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.subjects.checkpoint import Group
    from bncheck.subjects.layer import Array

# Statistics that a further pass moves by no more, in standard deviations and in logarithms of them, are settled: about
# the rounding of float32, so that fewer passes than levels may do, and nothing is lost by it.
SETTLED = 1e-7

FROZEN_CLASS = "its class never updates statistics"
NO_STATISTICS = "it keeps no running statistics"
HELD_IN_EVAL = "it is held in eval mode while the rest of the model trains"
NEVER_CALLED = "the data never reach it"
NO_VARIANCE = "its batches have one sample per channel, of which there is no variance"


class Method(Enum):
    """How statistics are estimated."""

    TRAIN = "train"
    SEQUENTIAL = "sequential"


class Variance(Enum):
    """Which variance is written.

    WITHIN_BATCH is the mean of the unbiased variances of the batches, weighted by their samples: what running_var
    follows in training. POOLED is the unbiased variance of all samples together, larger by that of the batch means.
    """

    WITHIN_BATCH = "within-batch"
    POOLED = "pooled"


@dataclass(frozen=True, slots=True)
class RecalibrationOptions:
    """What is estimated, and how; the defaults are those of the command line."""

    method: Method = Method.TRAIN
    variance: Variance = Variance.WITHIN_BATCH
    layers: tuple[str, ...] = ()  # globs; none stands for all layers
    keep_frozen: bool = True


@dataclass(frozen=True, slots=True)
class Recalibration:
    """New statistics by layer, in float64, and the layers that keep theirs with the reason."""

    statistics: Mapping[str, NewStatistics]
    kept: Mapping[str, str]
    samples: int
    batches: int
    passes: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Gathered:
    """The moments of the inputs of one layer over the batches so far; arrays per channel, float64."""

    batches: int = 0  # inputs: one for each call
    samples: int = 0
    mean: Array | None = None
    squares: Array | None = None
    weight: int = 0
    within: Array | None = None  # unbiased variances times samples

    def add(self, one: ChannelMoments) -> None:
        """Adds one input; in float64, by Chan, Golub and LeVeque 1979."""
        mean, squares = one.mean, one.variance * one.count
        self.batches += 1
        if self.mean is None or self.squares is None:
            self.samples, self.mean, self.squares = one.count, mean, squares
        else:
            total = self.samples + one.count
            apart = mean - self.mean
            self.mean = self.mean + apart * (one.count / total)
            self.squares = self.squares + squares + apart**2 * (self.samples * one.count / total)
            self.samples = total
        if one.count > 1:
            weighted = one.unbiased_variance * one.count
            self.within = weighted if self.within is None else self.within + weighted
            self.weight += one.count

    def variance(self, kind: Variance) -> Array | None:
        """None where every input had one sample per channel."""
        if self.within is None or self.squares is None:
            return None
        return self.within / self.weight if kind is Variance.WITHIN_BATCH else self.squares / (self.samples - 1)


class Calls(ChannelMoments):
    """The inputs of one layer in one forward, each by itself: a layer may be used more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[ChannelMoments] = []

    def add(self, inputs: Tensor) -> None:
        one = ChannelMoments()
        one.add(inputs)
        if one.count:
            self.inputs.append(one)


@dataclass(slots=True)
class Pass:
    """What one pass over the data gave."""

    gathered: dict[str, Gathered]
    samples: int = 0
    batches: int = 0
    refusals: list[str] = field(default_factory=list)  # batches that the model does not take


def recalibrate(
    runnable: Runnable,
    data: Data,
    options: RecalibrationOptions,
    progress: Callable[[int], None] = lambda samples: None,
) -> Recalibration:
    """Estimates the statistics of the layers on data.

    Args:
        runnable: the model; its layers must be open to hooks.
        data: what it is run on.
        options: which layers, and how.
        progress: told the number of samples of each batch that is done.

    Raises:
        UsageError: there is no layer to estimate statistics for.
        ModelError: the model fails.
    """
    layers, kept = chosen_layers(runnable, options)
    with restored(runnable.module), torch.no_grad():
        runnable.module.eval()
        found, passes = train_pass(runnable, data, layers, progress), 1
        notes = refused(found)
        if options.method is Method.SEQUENTIAL:
            found, more, settled = sequential_passes(runnable, data, layers, options.variance, found, progress)
            passes += more
            notes = refused(found)
            if not settled:
                notes.append(
                    f"the statistics still moved after {count(passes, 'pass')}: is the model the same each time?"
                )
    if not found.batches and found.refusals:
        raise ModelError(
            found.refusals[0], "Give --batch-size 2 or more; normalising by the batch needs several samples."
        )
    statistics = {}
    for name, held in found.gathered.items():
        variance = held.variance(options.variance)
        if not held.batches:
            kept[name] = NEVER_CALLED
        elif variance is None:
            kept[name] = NO_VARIANCE
        else:
            statistics[name] = NewStatistics(held.mean, variance, held.batches)
    return Recalibration(statistics, kept, found.samples, found.batches, passes, tuple(notes))


def chosen_layers(runnable: Runnable, options: RecalibrationOptions) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that get new statistics, and those that were asked for and keep theirs, with the reason.

    Raises:
        UsageError: nothing is left, or a glob fits no layer.
    """
    if not runnable.can_hook:
        raise UsageError(
            f"{runnable.source} holds a ScriptModule, whose layers cannot be watched",
            "Recalibrate the model that it was scripted from.",
        )
    for glob in options.layers:
        if not any(fnmatchcase(name, glob) for name in runnable.layers):
            raise UsageError(
                f"--layer {glob}: there is no such layer", nearest(glob, runnable.layers, "`bncheck inspect --verbose`")
            )
    described = {layer.name: layer for layer in runnable.described}
    trains = any(module.training for module in runnable.module.modules())
    chosen: dict[str, nn.Module] = {}
    kept: dict[str, str] = {}
    for name, layer in runnable.layers.items():
        held = statistics_of(layer)
        if options.layers and not any(fnmatchcase(name, glob) for glob in options.layers):
            continue
        if held.mean is None or held.var is None:
            kept[name] = NO_STATISTICS
        elif name in described and described[name].use is StatisticsUse.FROZEN:
            kept[name] = FROZEN_CLASS
        elif options.keep_frozen and trains and not layer.training:
            kept[name] = HELD_IN_EVAL
        else:
            chosen[name] = layer
    if not chosen:
        reasons = few(sorted(set(kept.values())))
        hint = "Add --no-keep-frozen to change them." if HELD_IN_EVAL in kept.values() else "Check the model."
        raise UsageError(f"{runnable.source} has no BatchNorm layer to recalibrate: {reasons or 'there is none'}", hint)
    return chosen, kept


def train_pass(
    runnable: Runnable, data: Data, layers: Mapping[str, nn.Module], progress: Callable[[int], None]
) -> Pass:
    """Measures the inputs of the layers while they normalise by the batch; all else is in eval mode.

    A layer that trains and does not track is given no statistics to update, see `_BatchNorm.forward`. Layers of other
    classes may update them all the same, which does not matter here: nothing reads them before they are put back.
    """
    stored = snapshot(layers)
    before = {name: (layer.training, vars(layer).get("track_running_stats")) for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.training = True
            layer.track_running_stats = False  # type: ignore[assignment]
        return one_pass(runnable, data, layers, progress)
    finally:
        for name, layer in layers.items():
            layer.training, tracking = before[name]
            if tracking is not None:
                layer.track_running_stats = tracking
            else:
                vars(layer).pop("track_running_stats", None)
        put_back(layers, stored)


def sequential_passes(
    runnable: Runnable,
    data: Data,
    layers: Mapping[str, nn.Module],
    variance: Variance,
    start: Pass,
    progress: Callable[[int], None],
) -> tuple[Pass, int, bool]:
    """Measures in eval mode with what was measured before, until that is settled: the last pass, how many, whether."""
    found = start
    for passes in range(1, len(layers) + 2):
        put_back(layers, as_tensors(layers, found, variance))
        before, found = found, one_pass(runnable, data, layers, progress)
        if all(moved(before.gathered[name], found.gathered[name], variance) <= SETTLED for name in layers):
            return found, passes, True
    return found, len(layers) + 1, False


def one_pass(runnable: Runnable, data: Data, layers: Mapping[str, nn.Module], progress: Callable[[int], None]) -> Pass:
    """Measures the inputs of the layers. A batch that the model refuses, such as a single sample, is left out."""
    found = Pass({name: Gathered() for name in layers})
    for batch in placed_batches(runnable, data):
        calls = {name: Calls() for name in layers}
        try:
            with watching(layers, dict(calls)):
                call(runnable.module, batch.inputs)
        except ModelError as error:
            if batch.size > 1:
                raise
            found.refusals.append(error.message)
            continue
        for name, held in calls.items():
            for one in held.inputs:
                found.gathered[name].add(one)
        found.batches += 1
        found.samples += batch.size
        progress(batch.size)
    return found


def as_tensors(layers: Mapping[str, nn.Module], found: Pass, variance: Variance) -> dict[str, Statistics]:
    """What a pass gave, in the form of the layers' buffers; without the counters."""
    made = {}
    for name, layer in layers.items():
        held, own = found.gathered[name], statistics_of(layer)
        var = held.variance(variance)
        if held.mean is not None and var is not None and own.mean is not None and own.var is not None:
            mean = torch.from_numpy(held.mean).to(own.mean)
            made[name] = Statistics(mean, torch.from_numpy(var).to(own.var), None)
    return made


def moved(before: Gathered, after: Gathered, kind: Variance) -> float:
    """The largest shift of a channel between two passes, of its mean or its standard deviation."""
    old, new = before.variance(kind), after.variance(kind)
    if old is None or new is None or before.mean is None or after.mean is None:
        return 0.0 if old is None and new is None else np.inf
    largest = np.concatenate(distances(before.mean, old, after.mean, new, DEFAULT_EPS))
    return float(np.where(np.isnan(largest), np.inf, largest).max(initial=0.0))


def refused(found: Pass) -> list[str]:
    if not found.refusals:
        return []
    return [f"{count(len(found.refusals), 'sample')} in a batch alone left out: {found.refusals[0]}"]


def apply(layers: Mapping[str, nn.Module], statistics: Mapping[str, NewStatistics]) -> None:
    """Writes new statistics into live layers, in the dtype that their buffers have.

    Raises:
        UsageError: a buffer cannot hold them; then none is written.
    """
    made: dict[str, Statistics] = {}
    for name, new in statistics.items():
        own = statistics_of(layers[name])
        values = [
            None if held is None or given is None else torch.as_tensor(given).to(held)
            for held, given in zip((own.mean, own.var, own.counter), (new.mean, new.variance, new.counter), strict=True)
        ]
        if not all(value is None or bool(value.isfinite().all()) for value in values):
            raise UsageError(
                f"the statistics of {name} would become NaN or infinite", "Check the data, and the dtype of the layer."
            )
        made[name] = Statistics(*values)
    put_back(layers, made)


def names_in_file(runnable: Runnable, group: Group) -> dict[str, str]:
    """What the file calls each layer of the model: the weights of a file may lie below a prefix, or above one.

    Raises:
        UsageError: the file has no statistics for a layer.
    """
    own = [name for name, _ in runnable.module.named_buffers(remove_duplicate=False)]
    keys, _ = matched(group.tensors, own)
    strip = prefix_stripper(runnable.module.state_dict(keep_vars=True))
    file_names = {strip(key): name for name, key in keys.items()}
    found = {}
    for name, layer in runnable.layers.items():
        if statistics_of(layer).mean is None:
            continue
        part = STATISTICS[0]
        key = file_names.get(f"{name}.{part}" if name else part)
        if key is None:
            raise UsageError(
                f"{runnable.source} has no statistics for {quoted(name)}", "Save the model with its BatchNorm buffers."
            )
        found[name] = key.removesuffix(part).removesuffix(".")
    return found
