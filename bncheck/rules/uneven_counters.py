"""BatchNorm layers of one network that count different numbers of updates.

## What it checks

num_batches_tracked of all layers, as clusters of equal values; the value that most layers have is the one that the
others are compared with:

- twice as many: gradient checkpointing runs the forward pass of a block again, or each step has two forward passes
  (SAM, siamese networks, a discriminator that sees real and made images);
- k times as many: the layer is called k times in each step, as the heads of RetinaNet and FCOS are, once for a level;
- a few more or fewer, up to 3 or 1 %: forward passes that failed on the way (the counter moves before the size of the
  batch is checked), or that ran through a part of the network only;
- fewer: the layer was frozen in eval mode from some point on, or added later;
- more, by no whole factor: most layers were frozen, or these ran in passes of their own;
- 0 with trained statistics: loaded without its counter, or frozen.

Layers at 0 whose statistics are initial are left to never-updated-statistics.

## Why it matters

The counter is the only trace in a state_dict of what ran in train mode. A block that counts less than the rest was
frozen, meant or not; one that counts more forgets faster, since each step moves its statistics more than once, and
where its calls see different inputs the statistics are a mixture that fits none of them.

## When it is wrong

Each of the readings is legitimate, hence a note. Recomputed blocks see the same batch twice, and only their memory is
shorter: 1 - sqrt(1 - momentum) restores it. Shared heads, auxiliary heads and partly frozen backbones are meant so.

## What to do

Compare the reading with how the network was trained. If a block should have been trained and counts less, look for
an eval() that was never undone; if it should have been frozen and counts the same, see saved-in-train-mode.

## Seen in

pytorch/pytorch#96136 and pytorch/pytorch#62471 (checkpointing counts twice), pfnet/pytorch-pfn-extras#117,
facebookresearch/fairscale#1035, Tencent/YOLO-Master#262 (equal gradients, other statistics), davda54/sam#17
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.pairing.names import blocks
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count, few, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

    Counted = dict[str, int | float]  # the counter by the name of the layer

# How far a counter may be off a multiple of another: passes that failed, or an epoch that was cut short.
FEW_UPDATES = 3
FEW_SHARE = 0.01
# No layer is called more often in a step: detection heads have 5 levels, unrolled networks some dozens of steps.
MOST_CALLS = 1000
# More clusters than this are no blocks: layers are skipped at random, each with a count of its own.
MOST_CLUSTERS = 6
# Clusters that the message reads out; all of them are measured.
MOST_TOLD = 3


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        yield from check_group(group)


def check_group(group: Group) -> Iterator[Evidence | CannotTell]:
    counted = {layer.name: layer.num_batches_tracked for layer in group.layers if is_counted(layer)}
    counters: Counted = {name: value for name, value in counted.items() if value is not None}
    sizes = Counter(counters.values())
    if len(sizes) < 2:
        return
    usual = max(sizes, key=lambda value: (sizes[value], value))
    others = sorted((value for value in sizes if value != usual), key=lambda value: (-sizes[value], value))
    most = f"num_batches_tracked is {shown(usual)} in {sizes[usual]:,} of {count(len(counters), 'layer')}"
    if len(sizes) > MOST_CLUSTERS:
        low, high = min(sizes), max(sizes)
        message = (
            f"num_batches_tracked has {len(sizes):,} values from {shown(low)} to {shown(high)} in "
            f"{count(len(counters), 'layer')}: parts ran in some steps only, or bring counts of their own"
        )
    else:
        told = [describe(value, usual, counters) for value in others[:MOST_TOLD]]
        rest = f", and {count(len(others) - MOST_TOLD, 'other value')}" if len(others) > MOST_TOLD else ""
        message = f"{most}, {', '.join(told)}{rest}"
    yield Evidence(
        message,
        "Compare with how the network was trained: which blocks were frozen, shared or run twice.",
        measured={"clusters": tuple((value, size) for value, size in sorted(sizes.items()))},
        group=group.name,
    )


def is_counted(layer: BatchNormLayer) -> bool:
    """Whether the counter is a count that belongs to the statistics: a layer that never ran is not looked at."""
    value = layer.num_batches_tracked
    if layer.use is StatisticsUse.FROZEN or value is None or not math.isfinite(value) or value < 0:
        return False
    has_statistics = layer.running_mean is not None and layer.running_var is not None
    return value > 0 or (has_statistics and not layer.has_initial_statistics)


def describe(value: int | float, usual: int | float, counters: Counted) -> str:
    """`2,000 in layer4 (10 layers): twice as many, by ...`."""
    names = [name for name, own in counters.items() if own == value]
    return f"{shown(value)} in {few(list(blocks(names, counters.keys() - set(names))))} ({reading(value, usual)})"


def reading(value: int | float, usual: int | float) -> str:
    """What the counter of a block says beside the usual one."""
    if value == 0:
        return "statistics of another source, loaded without a counter, or frozen"
    larger, smaller = max(value, usual), min(value, usual)
    if smaller == 0:
        return "the others were loaded without a counter, or frozen"
    factor = round(min(larger / smaller, MOST_CALLS))
    off = abs(larger - factor * smaller)
    if off <= min(max(FEW_UPDATES, FEW_SHARE * larger), (smaller - 1) / 2):
        if factor == 1:
            return f"{count(round(off), 'update')} apart: passes that failed or ran through a part only"
        about = "" if off == 0 else "about "
        times = "twice" if factor == 2 else f"{factor:,} times"
        if value < usual:
            return f"the others ran {about}{times} as often"
        cause = (
            "recomputed by gradient checkpointing, or two passes a step" if factor == 2 else "called so often a step"
        )
        return f"{about}{times} as many: {cause}"
    if value < usual:
        return "frozen from then on, or added later"
    return "the others were frozen, or these ran in more passes"


def shown(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


RULE = Rule(
    "uneven-counters",
    Severity.NOTE,
    "num_batches_tracked of all layers",
    __doc__,
    checkpoint=check,
)
