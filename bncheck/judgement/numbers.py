"""What was measured, in plain numbers: from arrays per channel to their median and maximum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.measurements import (
    ChangeNumbers,
    ChangeSpread,
    ChannelNumbers,
    DriftMeasurements,
    LayerNumbers,
    PairMeasurements,
    RepeatMeasurements,
    RunMeasurements,
    ShiftNumbers,
    Spread,
)

if TYPE_CHECKING:
    from bncheck.subjects.evaluation import EvaluatedLayer, Evaluation
    from bncheck.subjects.layer import Array
    from bncheck.subjects.pair import CheckpointPair, GroupPair, LayerChange
    from bncheck.subjects.shift import Shift


def measurements_of(evaluation: Evaluation, *, channels: bool = False) -> RunMeasurements:
    """All numbers of an evaluation.

    Args:
        evaluation: what the probes saw.
        channels: whether arrays per channel are among them.
    """
    run = {
        "images": evaluation.samples,
        "batches": evaluation.batches,
        "passes": evaluation.passes,
        "device": evaluation.device,
        "artefact": evaluation.artefact,
        "watched": evaluation.watched,
        "data": dict(evaluation.data),
        "not_measured": dict(evaluation.unable),
    }
    if evaluation.repeat is not None:
        return RepeatMeasurements(**run, repeat=evaluation.repeat)  # type: ignore[arg-type]
    return DriftMeasurements(
        **run,  # type: ignore[arg-type]
        in_distribution=evaluation.in_distribution,
        layers={evaluated.layer.name: layer_numbers(evaluated, channels=channels) for evaluated in evaluation.layers},
        train_mode=evaluation.train_mode,
        by_batches=evaluation.train_mode_by_batches,
        fit=evaluation.fit,
    )


def layer_numbers(evaluated: EvaluatedLayer, *, channels: bool) -> LayerNumbers:
    return LayerNumbers(
        called=evaluated.called,
        training=evaluated.training,
        moved=evaluated.moved,
        updates=evaluated.updates,
        broken_channels=evaluated.broken,
        as_shipped=shift_numbers(evaluated.as_shipped),
        train_mode=shift_numbers(evaluated.train_mode),
        fit=shift_numbers(evaluated.fit.shift if evaluated.fit else None),
        channels=channel_numbers(evaluated) if channels else None,
    )


def channel_numbers(evaluated: EvaluatedLayer) -> ChannelNumbers:
    fit, layer = evaluated.fit, evaluated.layer
    return ChannelNumbers(
        population_mean=listed(fit.population_mean if fit else None),
        population_variance=listed(fit.population_variance if fit else None),
        within_batch_variance=listed(fit.within_batch_variance if fit else None),
        running_mean=listed(layer.running_mean),
        running_var=listed(layer.running_var),
    )


def shift_numbers(shift: Shift | None) -> ShiftNumbers | None:
    """The spread of a shift; None where there is none."""
    return None if shift is None else ShiftNumbers(spread(shift.mean), spread(shift.variance))


def spread(values: Array) -> Spread | None:
    import numpy as np

    return Spread(float(np.median(values)), float(values.max())) if values.size else None


def listed(values: Array | None) -> tuple[float, ...]:
    return () if values is None else tuple(float(value) for value in values)


# -- two checkpoints


def pair_numbers(pair: CheckpointPair) -> PairMeasurements:
    """The numbers of a pair. Shifts are over the channels that are finite."""
    changes = {
        key: change_numbers(change)
        for group in pair.groups
        for key, change in zip(keys(group, len(pair.groups)), group.changes, strict=True)
    }
    return PairMeasurements(changes, (pair.before.format, pair.after.format))


def keys(group: GroupPair, groups: int) -> list[str]:
    return [
        f"{change.after.group}: {change.after.name}" if groups > 1 else change.after.name for change in group.changes
    ]


def change_numbers(change: LayerChange) -> ChangeNumbers:
    return ChangeNumbers(
        name_before=change.before.name,
        group_before=change.before.group,
        same_parameters=change.same_parameters,
        fed_by=change.fed_by,
        same_statistics=change.same_statistics,
        channels=change.after.num_features,
        channels_not_finite=change.broken,
        mean_shift=change_spread(change.shift.mean) if change.shift else None,
        variance_shift=change_spread(change.shift.variance) if change.shift else None,
        counter_change=change.counter_change,
        settings=change.settings,
    )


def change_spread(values: Array) -> ChangeSpread | None:
    """Median and maximum, and how many channels moved at all."""
    import numpy as np

    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    return ChangeSpread(float(np.median(finite)), float(finite.max()), int((finite > 0).sum()))
