"""Settings that an export or a rebuild changed: eps, momentum, or a dtype that does not hold the variance.

## What it checks

- eps of the two checkpoints, where both hold it. What it does to a channel is sqrt((variance before + eps before) /
  (variance after + eps after)), the ratio of what the two multiply by: an error where it changes by more than 5 %, else
  a warning;
- momentum: a warning where it became PyTorch's default of 0.1, which is what a reset leaves, a note otherwise. It
  matters only when training goes on;
- a change of dtype that makes a variance infinite or 0, or changes that ratio by more than 5 %: an error.

Mode, kind, affine and tracking are listed among the measurements. A change of them is part of everyday work.

Measured: the switch of torchao from train to eval mode made eps 1e-5 of 1e-3 and momentum 0.1 of 0.03. For a variance
of 0.001 that is a factor of 1.41, of 1 a factor of 1.0005. In half precision variances below 6e-8 become 0; with eps
1e-5 that changes the ratio by 0.3 %.

## Why it matters

The weights and the statistics are those that were measured, and the function is another one. Nothing in a state_dict
shows it.

## When it is wrong

An eps that a port corrects. A schedule that lowers momentum during training.

## What to do

Set eps and momentum of every layer to those of the training when the network is rebuilt, and export again with a
version that keeps them. Keep the statistics in float32.

## Seen in

pytorch/ao#4758, pytorch/vision#2599 (eps 0 in half precision), pytorch/vision#2940, apple/coreai-torch#54 (a variance
above 65504 became infinite)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import DEFAULT_MOMENTUM, StatisticsUse
from bncheck.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.pair import CheckpointPair, LayerChange

# The change of a channel's scale from which on results are expected to change.
NOTABLE = 0.05
CHECKED = ("eps", "momentum")
SET_EPS = "Set eps to that of the training when the network is rebuilt, or export again."
SET_MOMENTUM = "Set momentum to that of the training when the network is rebuilt, or export again."
KEEP_FLOAT32 = "Keep running_mean and running_var in float32, or convert again from the first checkpoint."


def check(pair: CheckpointPair) -> Iterator[Evidence | CannotTell]:
    for change in pair.changes:
        if "eps" in change.settings:
            yield of_eps(change)
        if "momentum" in change.settings:
            yield of_momentum(change)
        if "dtype" in change.settings:
            yield from of_dtype(change)
        if StatisticsUse.FROZEN in (change.before.use, change.after.use):
            continue
        for name in CHECKED:
            if not (getattr(change.before, name).is_known and getattr(change.after, name).is_known):
                yield CannotTell(f"the file does not hold {name}", change.after)


def of_eps(change: LayerChange) -> Evidence:
    old, new = change.settings["eps"]
    most = scale_change(change)
    return Evidence(
        f"eps was {shown(old)} and is {shown(new)}, which changes the scale of a channel by up to {most:.2%}",
        SET_EPS,
        change.after,
        {"setting": "eps", "before": old, "after": new, "scale_change": most},
        Severity.ERROR if most > NOTABLE else Severity.WARNING,
    )


def of_momentum(change: LayerChange) -> Evidence:
    old, new = change.settings["momentum"]
    is_default = isinstance(new, float) and math.isclose(new, DEFAULT_MOMENTUM, rel_tol=1e-6)
    return Evidence(
        f"momentum was {shown(old)} and is {shown(new)}{', the default of PyTorch' * is_default}",
        SET_MOMENTUM,
        change.after,
        {"setting": "momentum", "before": old, "after": new},
        Severity.WARNING if is_default else Severity.NOTE,
    )


def of_dtype(change: LayerChange) -> Iterator[Evidence]:
    """Speaks where rounding alone made a variance infinite or too small; other statistics are another matter."""
    old, new = change.settings["dtype"]
    if not change.same_statistics and not change.broken:
        return
    most = math.inf if change.broken else scale_change(change, eps_changes=False)
    if most <= NOTABLE:
        return
    effect = "NaN or infinite" if change.broken else f"so small that a channel is scaled by {most:.2%} more"
    yield Evidence(
        f"the statistics were {old} and are {new}, in which some are {effect}",
        KEEP_FLOAT32,
        change.after,
        {"setting": "dtype", "before": old, "after": new, "scale_change": most, "channels": change.broken},
        Severity.ERROR,
    )


def scale_change(change: LayerChange, *, eps_changes: bool = True) -> float:
    """The largest change of what a channel is multiplied by, with the statistics of both, as a share."""
    import numpy as np

    old, new = change.before.running_var, change.after.running_var
    if old is None or new is None or old.shape != new.shape:
        return 0.0
    old_eps = change.before.assumed_eps
    new_eps = change.after.assumed_eps if eps_changes else old_eps
    # Training between the two is no change of a setting.
    variance = new if change.same_statistics else old
    with np.errstate(all="ignore"):
        ratio = np.sqrt((old.astype(np.float64) + old_eps) / (variance.astype(np.float64) + new_eps))
        change_of_scale = np.maximum(ratio, 1 / ratio) - 1
    usable = change_of_scale[~np.isnan(change_of_scale)]
    return float(usable.max()) if usable.size else 0.0


def shown(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


RULE = Rule(
    "settings-changed",
    Severity.WARNING,
    "two checkpoints that hold eps and momentum, or whose dtypes differ",
    __doc__,
    pair=check,
    headline="settings changed in {layers}",
    prevails=-1,
)
