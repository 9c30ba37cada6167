"""How far other statistics lie from those of a layer: the one formula, wherever statistics are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bncheck.subjects.layer import Array, BatchNormLayer


@dataclass(frozen=True, slots=True)
class Shift:
    """How far other statistics lie from those of a layer, per channel, shape `(num_features,)`, float64.

    `mean` is |other mean - running_mean| / sqrt(running_var + eps), in standard deviations of the layer; `variance`
    is |ln((other variance + eps) / (running_var + eps))| / 2, the logarithm of the ratio of standard deviations.
    """

    mean: Array
    variance: Array


def distances(mean: Array, var: Array, new_mean: Array, new_var: Array, eps: float) -> tuple[Array, Array]:
    """The formula of a `Shift` for plain float64 arrays; NaN and infinity where a number is none, or below -eps."""
    import numpy as np

    with np.errstate(all="ignore"):
        was, becomes = var + eps, new_var + eps
        moved = np.abs(new_mean - mean) / np.sqrt(was)
        stretched = 0.5 * np.abs(np.log(becomes / was))
    return moved, np.where((was < 0) | (becomes < 0), np.nan, stretched)


def shift(mean: Array, variance: Array, layer: BatchNormLayer) -> Shift | None:
    """The shift of other statistics against those of the layer; None where the layer has none.

    Two zeros, or two NaNs, are no movement; a NaN beside a number is as far as can be.
    """
    import numpy as np

    if layer.running_mean is None or layer.running_var is None:
        return None
    running_mean, running_var = layer.running_mean.astype(np.float64), layer.running_var.astype(np.float64)
    moved, stretched = distances(running_mean, running_var, mean, variance, layer.assumed_eps)
    return Shift(far_unless_same(moved, mean, running_mean), far_unless_same(stretched, variance, running_var))


def far_unless_same(distance: Array, values: Array, others: Array) -> Array:
    """The distance; 0 where both are the same or both NaN, infinity where it is NaN otherwise."""
    import numpy as np

    same = (values == others) | (np.isnan(values) & np.isnan(others))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))
