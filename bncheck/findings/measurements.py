"""What was measured, as plain numbers: the `measurements` of a report, and the one place that turns them into JSON.

`mean_shift` is |other mean - running_mean| / sqrt(running_var + eps), `variance_shift` half of the absolute logarithm
of the ratio of the variances, each with eps; `median` and `max` are over the channels of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from bncheck.wording import MOST_LISTED

if TYPE_CHECKING:
    from bncheck.subjects.evaluation import Agreement, Repeat


@dataclass(frozen=True, slots=True)
class Spread:
    """Over the channels of a layer."""

    median: float
    max: float


@dataclass(frozen=True, slots=True)
class ShiftNumbers:
    """How far statistics went. A part is None for a layer without channels."""

    mean_shift: Spread | None
    variance_shift: Spread | None


@dataclass(frozen=True, slots=True)
class ChannelNumbers:
    """A number for each channel; empty where there is none."""

    population_mean: tuple[float, ...]
    population_variance: tuple[float, ...]
    within_batch_variance: tuple[float, ...]
    running_mean: tuple[float, ...]
    running_var: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LayerNumbers:
    """A layer that was run; the shifts are None where they were not measured."""

    called: int | None
    training: bool | None
    moved: bool | None
    updates: int | None
    broken_channels: int
    as_shipped: ShiftNumbers | None
    train_mode: ShiftNumbers | None
    fit: ShiftNumbers | None
    channels: ChannelNumbers | None = None  # on request


@dataclass(frozen=True, slots=True)
class RunMeasurements:
    """A model that ran on data."""

    images: int
    batches: int
    passes: int
    device: str
    artefact: str
    watched: str | None
    data: Mapping[str, object]
    not_measured: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DriftMeasurements(RunMeasurements):
    """What `drift` measured. `by_batches`: the share of predictions that changed after so many train-mode batches."""

    in_distribution: bool
    layers: Mapping[str, LayerNumbers]
    train_mode: Agreement | None
    by_batches: Mapping[int, float]
    fit: Agreement | None


@dataclass(frozen=True, slots=True)
class RepeatMeasurements(RunMeasurements):
    """What `repeat` measured."""

    repeat: Repeat


@dataclass(frozen=True, slots=True)
class ChangeSpread(Spread):
    """Over the channels that are finite in both, and how many of them moved at all."""

    channels_moved: int


@dataclass(frozen=True, slots=True)
class ChangeNumbers:
    """A layer of two checkpoints; `settings` has those that differ: before, after."""

    name_before: str
    group_before: str
    same_parameters: bool | None
    fed_by: tuple[str, ...]
    same_statistics: bool | None
    channels: int | None
    channels_not_finite: int
    mean_shift: ChangeSpread | None
    variance_shift: ChangeSpread | None
    counter_change: int | None
    settings: Mapping[str, tuple[object, object]]


@dataclass(frozen=True, slots=True)
class PairMeasurements:
    """What `diff` measured."""

    layers: Mapping[str, ChangeNumbers]
    formats: tuple[str, str]


@dataclass(frozen=True, slots=True)
class NewNumbers:
    """How far the statistics of a layer go, and what its counter was and becomes."""

    shift: ShiftNumbers | None
    counter: tuple[int | float | None, int | float | None]


@dataclass(frozen=True, slots=True)
class RecalibrationMeasurements:
    """What `recalibrate` did. `before` and `after` compare a model's own statistics with those of the data."""

    source: str
    target: str | None  # None: nothing was written
    method: str
    layers: Mapping[str, NewNumbers]
    kept: Mapping[str, str] = field(default_factory=dict)  # layers that keep theirs, and why
    copied_from: str | None = None
    estimated: EstimationNumbers | None = None  # None for copied statistics


@dataclass(frozen=True, slots=True)
class EstimationNumbers:
    """What statistics were estimated on."""

    variance: str
    images: int
    batches: int
    passes: int
    device: str
    artefact: str
    data: Mapping[str, object]
    before: Agreement | None
    after: Agreement | None


@dataclass(frozen=True, slots=True)
class GateMeasurements:
    """What the checks of a gate measured, by their names."""

    checks: Mapping[str, Measurements | None]


Measurements = RunMeasurements | PairMeasurements | RecalibrationMeasurements | GateMeasurements


# -- as JSON


def as_json(measured: Measurements | None) -> dict[str, object]:
    """The measurements as mappings, tuples and plain values. Their keys are a contract: see the schema of reports."""
    match measured:
        case DriftMeasurements():
            return drift_json(measured)
        case RepeatMeasurements():
            return {**run_json(measured), "repeat": repeat_json(measured.repeat)}
        case PairMeasurements():
            return pair_json(measured)
        case RecalibrationMeasurements():
            return {"recalibration": recalibration_json(measured)}
        case GateMeasurements():
            return {name: as_json(check) for name, check in measured.checks.items()}
        case _:
            return {}


def run_json(measured: RunMeasurements) -> dict[str, object]:
    return {held.name: getattr(measured, held.name) for held in fields(RunMeasurements)}


def drift_json(measured: DriftMeasurements) -> dict[str, object]:
    by_batches = {str(batches): share for batches, share in measured.by_batches.items()}
    return {
        **run_json(measured),
        "in_distribution": measured.in_distribution,
        "layers": {name: layer_json(layer) for name, layer in measured.layers.items()},
        "train_mode": {**agreement_json(measured.train_mode), "by_batches": by_batches},
        "fit": agreement_json(measured.fit),
    }


def layer_json(layer: LayerNumbers) -> dict[str, object]:
    numbers = asdict(layer)
    if layer.channels is None:
        del numbers["channels"]
    return numbers


def agreement_json(agreement: Agreement | None) -> dict[str, object]:
    return {} if agreement is None else asdict(agreement)


def repeat_json(repeat: Repeat) -> dict[str, object]:
    return {
        "runs": repeat.runs,
        "identical_inputs": repeat.identical_inputs,
        "same_batches_max_difference": repeat.same_batches_max_difference,
        "other_company_max_difference": repeat.other_company_max_difference,
        "other_company_tolerance": repeat.company_tolerance,
        "other_company_dtype": repeat.company_dtype,
        "fails_alone": repeat.fails_alone,
        "predictions_changed": repeat.predictions_changed,
        "first_difference": repeat.first_difference,
        "first_non_finite": repeat.first_non_finite,
        "non_finite_samples": repeat.non_finite_samples,
        "metrics": tuple(dict(run) for run in repeat.metrics),
        "predictions_changed_by_batch_size": {str(size): v for size, v in repeat.predictions_by_batch_size.items()},
        "accuracy_by_batch_size": {str(size): v for size, v in repeat.accuracy_by_batch_size.items()},
        "causes": tuple(
            {"kind": cause.kind, "explanation": cause.explanation, "modules": cause.modules[:MOST_LISTED]}
            for cause in (*repeat.run_causes, *repeat.company_causes)
        ),
    }


def pair_json(measured: PairMeasurements) -> dict[str, object]:
    changes = measured.layers.values()
    return {
        "pair": {
            "layers": len(changes),
            "same_parameters": [change.same_parameters for change in changes].count(True),
            "same_statistics": [change.same_statistics for change in changes].count(True),
            "formats": measured.formats,
        },
        "layers": {name: change_json(change) for name, change in measured.layers.items()},
    }


def change_json(change: ChangeNumbers) -> dict[str, object]:
    settings = {name: before_and_after(values) for name, values in change.settings.items()}
    return {**asdict(change), "settings": settings}


def before_and_after(values: tuple[Any, Any]) -> dict[str, object]:
    return dict(zip(("before", "after"), values, strict=True))


def recalibration_json(measured: RecalibrationMeasurements) -> dict[str, object]:
    files = {"source": measured.source, "target": measured.target}
    layers = {name: new_json(new) for name, new in measured.layers.items()}
    rest = {"layers": layers, "kept": dict(measured.kept)}
    estimated = measured.estimated
    if estimated is None:
        return {**files, "method": measured.method, "from": measured.copied_from, **rest}
    return {
        "method": measured.method,
        "variance": estimated.variance,
        "from": None,
        "images": estimated.images,
        "batches": estimated.batches,
        "passes": estimated.passes,
        "device": estimated.device,
        "artefact": estimated.artefact,
        "data": dict(estimated.data),
        "before": agreement_json(estimated.before),
        "after": agreement_json(estimated.after),
        **files,
        **rest,
    }


def new_json(new: NewNumbers) -> dict[str, object]:
    shift = asdict(new.shift or ShiftNumbers(None, None))
    return {**shift, "num_batches_tracked": before_and_after(new.counter)}
