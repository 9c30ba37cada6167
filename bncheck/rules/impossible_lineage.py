"""A checkpoint that cannot have come from the other by training.

## What it checks

The second checkpoint is taken for a later one. Then num_batches_tracked has not gone back. And an update puts
(1 - momentum) times the old variance plus something that is not negative in place of the old variance, so that after n
updates no channel is below (1 - momentum)^n times what it was. With momentum=None, the average of all batches, it is
the old count divided by the new one. Where the file does not hold momentum, 0.1 is assumed, and said. A tolerance of
one in a thousand leaves room for rounding, of one in ten where the statistics have 16 bits.

Measured with PyTorch, 1 to 50 updates with momentum 0.1 and 0.01 on inputs that are exactly constant, the least that a
variance can become: it misses the bound by 1.4e-6 of itself at most.

## Why it matters

One of the two is not what its name says: a run that began anew instead of resuming, files of two runs in one folder,
statistics that were reset or loaded from elsewhere in between. What was measured with the first says nothing about the
second.

## When it is wrong

update_bn and PreciseBN reset the counter and count their own batches. Counters of 0 and 1, which averages carry, are
left out unless the weights are equal and the statistics are not, and so is what AveragedModel saved. A training with a
momentum above 0.1, read from a state_dict, may shrink a variance faster than is assumed.

## What to do

Find out which run wrote each file. If the statistics were estimated again on purpose, nothing is wrong.

## Seen in

No report is known; it was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import Evidence, Rule, Severity
from bncheck.subjects.layer import DEFAULT_MOMENTUM, StatisticsUse
from bncheck.wording import MOST_LISTED, channels, count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer
    from bncheck.subjects.pair import CheckpointPair, LayerChange

# Rounding of float32 over some hundred updates stays below the first; 16 bits round each update by up to 2^-9.
TOLERANCE = 1e-3
TOLERANCE_OF_16_BITS = 0.1
# Below this a float32 loses digits.
SMALLEST_NORMAL = 1e-37
# Averages keep 0 or 1 in num_batches_tracked, whatever happens to the statistics.
NOT_A_COUNT = (0, 1)
COUNT_OF_AVERAGED_MODEL = "n_averaged"
FIND_THE_RUN = "Find out which run wrote each file, and whether statistics were reset or estimated again in between."


def check(pair: CheckpointPair) -> Iterator[Evidence]:
    for group in pair.groups:
        if COUNT_OF_AVERAGED_MODEL in group.after.tensors:
            continue
        for change in group.changes:
            updates = change.counter_change
            if updates is None or change.after.use is StatisticsUse.FROZEN:
                continue
            if updates < 0:
                if change.after.num_batches_tracked not in NOT_A_COUNT or is_no_average(change):
                    yield went_back(change)
            elif updates > 0:
                yield from below_bound(change, updates)


def is_no_average(change: LayerChange) -> bool:
    """Whether a count of 0 or 1 has no excuse: an average has other weights, a conversion the same statistics."""
    return change.same_parameters is True and change.same_statistics is False


def went_back(change: LayerChange) -> Evidence:
    first, second = change.before.num_batches_tracked, change.after.num_batches_tracked
    return Evidence(
        f"num_batches_tracked went back from {first:,} to {second:,}: the second does not continue the first",
        FIND_THE_RUN,
        change.after,
        {"before": first, "after": second},
    )


def below_bound(change: LayerChange, updates: int) -> Iterator[Evidence]:
    import numpy as np

    old, new = change.before.running_var, change.after.running_var
    kept, assumed = share_kept(change, updates)
    if old is None or new is None or old.shape != new.shape or kept is None:
        return
    narrow = any(layer.dtype not in ("float32", "float64") for layer in (change.before, change.after))
    tolerance = TOLERANCE_OF_16_BITS if narrow else TOLERANCE
    with np.errstate(all="ignore"):
        bound = old.astype(np.float64) * kept
        below = (new < bound * (1 - tolerance)) & np.isfinite(old) & (new >= 0) & (bound > SMALLEST_NORMAL)
    found = np.flatnonzero(below).tolist()
    if found:
        worst = min(found, key=lambda channel: float(new[channel] / bound[channel]))
        yield Evidence(
            f"running_var of {channels(found, old.size)} is below what {count(updates, 'update')} with "
            f"momentum {assumed} leave of it: {number(float(new[worst]))} in channel {worst}, which had "
            f"{number(float(old[worst]))} and keeps at least {number(float(bound[worst]))}",
            FIND_THE_RUN,
            change.after,
            {"channels": tuple(found[:MOST_LISTED]), "channel_count": len(found), "updates": updates},
        )


def share_kept(change: LayerChange, updates: int) -> tuple[float | None, str]:
    """The share of the old variance that is left after the updates, and which momentum says so."""
    momentum = known_momentum(change.after) or known_momentum(change.before)
    if momentum is None:
        return (1 - DEFAULT_MOMENTUM) ** updates, f"{DEFAULT_MOMENTUM} (assumed)"
    value, words = momentum
    if value is None:
        before = max(change.before.num_batches_tracked or 0, 0)
        return before / (before + updates), words
    return ((1 - value) ** updates if 0 <= value <= 1 else None), words


def known_momentum(layer: BatchNormLayer) -> tuple[float | None, str] | None:
    if not layer.momentum.is_known:
        return None
    value = layer.momentum.value
    return value, "None" if value is None else number(value)


RULE = Rule(
    "impossible-lineage",
    Severity.WARNING,
    "two checkpoints: num_batches_tracked and running_var; momentum where a file holds it",
    __doc__,
    pair=check,
    supersedes=("frozen-but-drifting",),
    headline="the second does not continue the first: {layers}",
)
