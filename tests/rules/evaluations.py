"""Evaluations for the tables of the rules, from plain numbers: what the probes would have recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from bncheck.evaluation.probes.fit import InputMoments, fit_of
from bncheck.subjects.evaluation import EvaluatedLayer, Evaluation, Repeat
from bncheck.subjects.layer import BatchNormLayer
from bncheck.subjects.shift import Shift
from tests.rules.layers import CHANNELS, array, layer


def shift(mean: Any = 0.0, variance: Any = 0.0) -> Shift:
    return Shift(array(mean).astype(np.float64), array(variance).astype(np.float64))


def evaluated(name: str = "bn", examined: BatchNormLayer | None = None, **seen: Any) -> EvaluatedLayer:
    """A layer that was called in eval mode and did not move, but for what is given."""
    usual = {"called": 4, "training": False, "moved": False, "updates": 0, "as_shipped": shift()}
    return EvaluatedLayer(examined or layer(name), **{**usual, **seen})


def fitted(
    name: str = "bn", mean: Any = 0.0, variance: Any = 1.0, spread: float = 0.1, **fields: Any
) -> EvaluatedLayer:
    """A layer whose statistics are 0 and 1, and whose input has this mean and variance in each channel.

    `fields` are of the layer; `samples`, and `pooled` for a population variance other than the one within batches.
    """
    samples, pooled = fields.pop("samples", 360), fields.pop("pooled", variance)
    examined = layer(name, **{"running_mean": 0, "running_var": 1, **fields})

    def numbers(values: Any) -> Any:
        return np.broadcast_to(np.asarray(values, np.float64), (CHANNELS,)).copy()

    moments = InputMoments(numbers(mean), numbers(pooled), numbers(variance), numbers(spread), samples)
    return evaluated(name, examined, fit=fit_of(moments, examined))


def evaluation(*layers: EvaluatedLayer, **fields: Any) -> Evaluation:
    usual = {"samples": 360, "batches": 12, "passes": 3, "watched": "as shipped", "forwards_watched": 12}
    return Evaluation("model.pt", "module", "cpu", layers=layers, **{**usual, **fields})


def repeated(unable: Any = None, **fields: Any) -> Evaluation:
    """An evaluation that repeat made, twice and without any difference, but for what is given."""
    usual = {
        "runs": 2,
        "identical_inputs": True,
        "same_batches_max_difference": 0.0,
        "other_company_max_difference": 2e-15,
        "company_tolerance": 2.2e-13,
        "company_dtype": "float64",
        "predictions_changed": 0,
    }
    return evaluation(evaluated(), repeat=Repeat(**{**usual, **fields}), unable=unable or {})
