"""What differs between two layers that belong together: parameters, statistics, counter and settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.pairing.equality import STATISTICS, parameters_equal, statistics_equal
from bncheck.subjects.pair import LayerChange
from bncheck.subjects.shift import Shift, distances

if TYPE_CHECKING:
    from bncheck.pairing.feeders import Feeders
    from bncheck.subjects.checkpoint import Group
    from bncheck.subjects.layer import BatchNormLayer, Setting

# Settings that were stored in single precision differ by less: 1e-5 becomes 9.99999975e-06.
SINGLE_PRECISION = 1e-6


def change_of(
    before: BatchNormLayer, after: BatchNormLayer, first: Group, second: Group, feeders: Feeders
) -> LayerChange:
    own = parameters_equal(before, after, first, second)
    fed_by: tuple[str, ...] = ()
    if own is not False:  # else the rest need not be read
        fed_by, fed_alike = feeders.compare(before.name)
        own = own if fed_alike is None else fed_alike
    shift, broken = shift_between(before, after)
    return LayerChange(
        before,
        after,
        same_parameters=own,
        fed_by=fed_by,
        same_statistics=statistics_equal(before, after),
        shift=shift,
        broken=broken,
        counter_change=counter_change(before, after),
        settings=settings_changed(before, after),
    )


def shift_between(before: BatchNormLayer, after: BatchNormLayer) -> tuple[Shift | None, int]:
    """How far the statistics moved, measured by those before, and how many channels are no longer finite."""
    import numpy as np

    arrays = [getattr(layer, part) for layer in (before, after) for part in STATISTICS]
    if any(array is None or array.shape != arrays[0].shape for array in arrays):
        return None, 0
    mean, var, new_mean, new_var = (array.astype(np.float64) for array in arrays)
    mean_shift, variance_shift = distances(mean, var, new_mean, new_var, before.assumed_eps)
    was, is_ = np.isfinite(mean) & np.isfinite(var), np.isfinite(new_mean) & np.isfinite(new_var)
    usable = was & is_
    broken = int((was & ~is_).sum())
    return Shift(np.where(usable, mean_shift, np.nan), np.where(usable, variance_shift, np.nan)), broken


def counter_change(before: BatchNormLayer, after: BatchNormLayer) -> int | None:
    first, second = before.num_batches_tracked, after.num_batches_tracked
    if any(dtype in ("float16", "bfloat16") for dtype in (before.counter_dtype, after.counter_dtype)):
        return None  # every second batch, or every hundredth, cannot be told from the next
    if first is None or second is None or not (math.isfinite(first) and math.isfinite(second)):
        return None
    return int(second - first)


def settings_changed(before: BatchNormLayer, after: BatchNormLayer) -> dict[str, tuple[object, object]]:
    """Settings that both files hold and that differ, and the dtype of the statistics."""
    changed: dict[str, tuple[object, object]] = {}
    for name in ("eps", "momentum", "affine", "track_running_stats", "training", "kind"):
        own: Setting[object] = getattr(before, name)
        other: Setting[object] = getattr(after, name)
        if not (own.is_known and other.is_known) or (name == "kind" and own.known is not other.known):
            continue
        if not same_setting(own.value, other.value):
            changed[name] = (own.value, other.value)
    if before.dtype != after.dtype:
        changed["dtype"] = (before.dtype, after.dtype)
    return changed


def same_setting(own: object, other: object) -> bool:
    if isinstance(own, float) and isinstance(other, float):
        return math.isclose(own, other, rel_tol=SINGLE_PRECISION) or (math.isnan(own) and math.isnan(other))
    return own == other
