"""What was measured on data, as plain numbers and tuples: the `measurements` of a report, and of its JSON.

`mean_shift` is |other mean - running_mean| / sqrt(running_var + eps), `variance_shift` half of the absolute logarithm
of the ratio of the variances, each with eps; `median` and `max` are over the channels of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.wording import MOST_LISTED

if TYPE_CHECKING:
    from bncheck.subjects.evaluation import Agreement, EvaluatedLayer, Evaluation, Repeat
    from bncheck.subjects.layer import Array
    from bncheck.subjects.shift import Shift


def measurements_of(evaluation: Evaluation, *, channels: bool = False) -> dict[str, object]:
    """All numbers of an evaluation.

    Args:
        evaluation: what the probes saw.
        channels: whether arrays per channel are among them.
    """
    found: dict[str, object] = {
        "images": evaluation.samples,
        "batches": evaluation.batches,
        "passes": evaluation.passes,
        "device": evaluation.device,
        "artefact": evaluation.artefact,
        "watched": evaluation.watched,
        "data": dict(evaluation.data),
        "not_measured": dict(evaluation.unable),
    }
    if evaluation.repeat is None:
        found["in_distribution"] = evaluation.in_distribution
        found["layers"] = {
            key(evaluated): layer_numbers(evaluated, channels=channels) for evaluated in evaluation.layers
        }
        found["train_mode"] = {
            **(agreement(evaluation.train_mode) if evaluation.train_mode else {}),
            "by_batches": {str(batches): share for batches, share in evaluation.train_mode_by_batches.items()},
        }
        found["fit"] = agreement(evaluation.fit) if evaluation.fit else {}
    else:
        found["repeat"] = repeat_numbers(evaluation.repeat)
    return found


def key(evaluated: EvaluatedLayer) -> str:
    return evaluated.layer.name


def layer_numbers(evaluated: EvaluatedLayer, *, channels: bool) -> dict[str, object]:
    numbers: dict[str, object] = {
        "called": evaluated.called,
        "training": evaluated.training,
        "moved": evaluated.moved,
        "updates": evaluated.updates,
        "broken_channels": evaluated.broken,
        "as_shipped": shift(evaluated.as_shipped),
        "train_mode": shift(evaluated.train_mode),
        "fit": shift(evaluated.fit.shift if evaluated.fit else None),
    }
    if channels:
        fit, layer = evaluated.fit, evaluated.layer
        numbers["channels"] = {
            "population_mean": listed(fit.population_mean if fit else None),
            "population_variance": listed(fit.population_variance if fit else None),
            "within_batch_variance": listed(fit.within_batch_variance if fit else None),
            "running_mean": listed(layer.running_mean),
            "running_var": listed(layer.running_var),
        }
    return numbers


def shift(held: Shift | None) -> dict[str, object]:
    return {} if held is None else {"mean_shift": spread(held.mean), "variance_shift": spread(held.variance)}


def spread(values: Array) -> dict[str, float]:
    import numpy as np

    if not values.size:
        return {}
    return {"median": float(np.median(values)), "max": float(values.max())}


def listed(values: Array | None) -> tuple[float, ...]:
    return () if values is None else tuple(float(value) for value in values)


def agreement(held: Agreement) -> dict[str, object]:
    return {
        "samples": held.samples,
        "predictions_changed": held.predictions_changed,
        "output_change": held.output_change,
        "accuracy_before": held.accuracy_before,
        "accuracy_after": held.accuracy_after,
    }


def repeat_numbers(repeat: Repeat) -> dict[str, object]:
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
