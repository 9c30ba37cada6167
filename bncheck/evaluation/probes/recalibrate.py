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

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch

from bncheck.checkpoints.rewriting.plan import NewStatistics
from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.probes.gathering import one_pass
from bncheck.evaluation.restoring import restored
from bncheck.evaluation.statistics import Statistics, put_back, snapshot, statistics_of
from bncheck.options.probing import Method, Variance
from bncheck.subjects.layer import DEFAULT_EPS, StatisticsUse
from bncheck.subjects.shift import distances
from bncheck.wording import count, few, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from bncheck.evaluation.data.batches import Data
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.probes.gathering import Gathered, Pass
    from bncheck.subjects.layer import Array

# Statistics that a further pass moves by no more, in standard deviations and in logarithms of them, are settled: about
# the rounding of float32, so that fewer passes than levels may do, and nothing is lost by it.
SETTLED = 1e-7

FROZEN_CLASS = "its class never updates statistics"
NO_STATISTICS = "it keeps no running statistics"
HELD_IN_EVAL = "it is held in eval mode while the rest of the model trains"
NEVER_CALLED = "the data never reach it"
NO_VARIANCE = "its batches have one sample per channel, of which there is no variance"


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
        measured, passes = train_pass(runnable, data, layers, progress), 1
        notes = measured.notes()
        if options.method is Method.SEQUENTIAL:
            measured, more, settled = sequential_passes(runnable, data, layers, options.variance, measured, progress)
            passes += more
            notes = measured.notes()
            if not settled:
                notes.append(
                    f"the statistics still moved after {count(passes, 'pass')}: is the model the same each time?"
                )
    if not measured.batches and measured.refusals:
        raise ModelError(
            measured.refusals[0], "Give --batch-size 2 or more; normalising by the batch needs several samples."
        )
    statistics = {}
    for name, gathered in measured.gathered.items():
        variance = variance_of(gathered, options.variance)
        if not gathered.batches:
            kept[name] = NEVER_CALLED
        elif variance is None:
            kept[name] = NO_VARIANCE
        else:
            statistics[name] = NewStatistics(gathered.mean, variance, gathered.batches)
    return Recalibration(statistics, kept, measured.samples, measured.batches, passes, tuple(notes))


def variance_of(gathered: Gathered, kind: Variance) -> Array | None:
    """None where every input had one sample per channel."""
    return gathered.within_batch_variance if kind is Variance.WITHIN_BATCH else gathered.pooled_variance


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
        own = statistics_of(layer)
        if options.layers and not any(fnmatchcase(name, glob) for glob in options.layers):
            continue
        if own.mean is None or own.var is None:
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
    measured = start
    for passes in range(1, len(layers) + 2):
        put_back(layers, as_tensors(layers, measured, variance))
        before, measured = measured, one_pass(runnable, data, layers, progress)
        if all(moved(before.gathered[name], measured.gathered[name], variance) <= SETTLED for name in layers):
            return measured, passes, True
    return measured, len(layers) + 1, False


def as_tensors(layers: Mapping[str, nn.Module], measured: Pass, variance: Variance) -> dict[str, Statistics]:
    """What a pass gave, in the form of the layers' buffers; without the counters."""
    made = {}
    for name, layer in layers.items():
        gathered, own = measured.gathered[name], statistics_of(layer)
        var = variance_of(gathered, variance)
        if gathered.mean is not None and var is not None and own.mean is not None and own.var is not None:
            mean = torch.from_numpy(gathered.mean).to(own.mean)
            made[name] = Statistics(mean, torch.from_numpy(var).to(own.var), None)
    return made


def moved(before: Gathered, after: Gathered, kind: Variance) -> float:
    """The largest shift of a channel between two passes, of its mean or its standard deviation."""
    old, new = variance_of(before, kind), variance_of(after, kind)
    if old is None or new is None or before.mean is None or after.mean is None:
        return 0.0 if old is None and new is None else np.inf
    largest = np.concatenate(distances(before.mean, old, after.mean, new, DEFAULT_EPS))
    return float(np.where(np.isnan(largest), np.inf, largest).max(initial=0.0))


def apply(layers: Mapping[str, nn.Module], statistics: Mapping[str, NewStatistics]) -> None:
    """Writes new statistics into live layers, in the dtype that their buffers have.

    Raises:
        UsageError: a buffer cannot hold them; then none is written.
    """
    made: dict[str, Statistics] = {}
    for name, new in statistics.items():
        own = statistics_of(layers[name])
        values = [
            None if buffer is None or given is None else torch.as_tensor(given).to(buffer)
            for buffer, given in zip(
                (own.mean, own.var, own.counter), (new.mean, new.variance, new.counter), strict=True
            )
        ]
        if not all(value is None or bool(value.isfinite().all()) for value in values):
            raise UsageError(
                f"the statistics of {name} would become NaN or infinite", "Check the data, and the dtype of the layer."
            )
        made[name] = Statistics(*values)
    put_back(layers, made)
