"""Layers in plain numbers, as reports show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.report import Distribution, LayerSummary

if TYPE_CHECKING:
    from bncheck.subjects.layer import Array, BatchNormLayer

HISTOGRAM_BINS = 8


def summarise(layer: BatchNormLayer) -> LayerSummary:
    """The layer in plain numbers."""
    return LayerSummary(
        name=layer.name,
        group=layer.group,
        stored_name=layer.stored_name,
        class_path=layer.class_path,
        kind=layer.kind,
        num_features=layer.num_features,
        dtype=layer.dtype,
        num_batches_tracked=layer.num_batches_tracked,
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
        training=layer.training,
        behaviour=layer.behaviour,
        running_mean=distribution(layer.running_mean),
        running_var=distribution(layer.running_var),
    )


def distribution(values: Array | None) -> Distribution | None:
    """The spread of a per-channel tensor; None where there is none."""
    import numpy as np

    if values is None or not values.size:
        return None
    with np.errstate(invalid="ignore"):  # a signalling NaN
        ordered = np.sort(values.astype(np.float64))
    finite = ordered[np.isfinite(ordered)]
    with np.errstate(invalid="ignore"):  # a median between -inf and inf
        everything = (float("nan"),) * 3 if np.isnan(ordered[-1]) else spread(ordered)  # NaN sorts last
    bins: tuple[int, ...] = ()
    half_range = finite[-1] / 2 - finite[0] / 2 if finite.size else 0.0  # the range itself may be too large
    if half_range > 0:
        scaled = (finite / 2 - finite[0] / 2) / half_range * HISTOGRAM_BINS
        bins = tuple(np.bincount(np.minimum(scaled.astype(int), HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS).tolist())
    return Distribution(
        *everything,
        non_finite=values.size - finite.size,
        finite=spread(finite) if finite.size else None,
        histogram=bins,
    )


def spread(ordered: Array) -> tuple[float, float, float]:
    """Minimum, median and maximum of sorted numbers. Halves are added, as the sum of two may be too large."""
    low, high = ordered[(ordered.size - 1) // 2], ordered[ordered.size // 2]
    median = low if low == high else low / 2 + high / 2
    return float(ordered[0]), float(median), float(ordered[-1])
