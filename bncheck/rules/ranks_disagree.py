"""Checkpoints of equal weights whose running statistics were made by different processes.

## What it checks

Layers with equal weights and equally many updates in the two checkpoints, but other statistics: each rank of a
distributed training has its own, from its own part of the data. Measured is |difference of the means| /
sqrt(variance + eps) and half of the absolute logarithm of the ratio of the variances, the larger of the two medians of
the channels: an error above 0.3, a warning above 0.05. With more than two checkpoints each is compared with the first.

Measured on the digits of the samples, two ranks of equal weights after 66 batches of 32, momentum 0.1; one rank that
has seen all classes reads 0.997 of the images:

- shards drawn at random: 0.003 to 0.015, accuracy of the second rank 0.997;
- shards that were not shuffled, five classes on each rank: 0.02 to 0.22, accuracy 0.964;
- two classes on each rank: 0.03 to 0.32, accuracy 0.894.

## Why it matters

Gradients are averaged, statistics are not. The evaluation during training used those of each rank, the released file
holds those of one: its results differ from all that were logged, and by the share of the data that this rank has seen.

## When it is wrong

DistributedDataParallel copies the statistics of rank 0 to the others before each forward pass, unless it is told
broadcast_buffers=False; what then differs is the last batch. FedBN keeps statistics apart by design. Statistics that
were estimated again and whose counter was put back look the same.

## What to do

Give all ranks the same statistics before evaluation and saving: an average over the ranks, broadcast_buffers=True, or
SyncBatchNorm in training.

## Seen in

huggingface/pytorch-image-models#110, huggingface/pytorch-image-models#62, pytorch/pytorch#30718,
open-mmlab/mmdetection#4582, open-mmlab/mmdetection#2539, open-mmlab/mmaction2#675, mlcommons/training#289,
facebookresearch/ClassyVision#304, facebookresearch/detectron2#5398
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import Evidence, Rule, Severity
from bncheck.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import Array
    from bncheck.subjects.pair import CheckpointPair, LayerChange

# Median of the channels, max(d, l), see above: shards that are alike make some hundredths at most.
NOTABLE = 0.05
FAR = 0.3
# Averages keep 0 or 1 in num_batches_tracked, whatever happens to the statistics.
NOT_A_COUNT = (0, 1)


def check(pair: CheckpointPair) -> Iterator[Evidence]:
    for change in pair.changes:
        if change.same_parameters and change.same_statistics is False and counted_alike(change, several=pair.several):
            apart = max(median(change.shift.mean), median(change.shift.variance)) if change.shift else 0.0
            if apart > NOTABLE:
                yield disagreement(change, apart)


def counted_alike(change: LayerChange, *, several: bool) -> bool:
    if change.counter_change is None:
        return several
    return change.counter_change == 0 and (several or change.after.num_batches_tracked not in NOT_A_COUNT)


def disagreement(change: LayerChange, apart: float) -> Evidence:
    counter = change.after.num_batches_tracked
    updates = "" if counter is None else f" and both count {counter:,} batches"
    return Evidence(
        f"the weights are equal in every bit{updates}, but the statistics are {number(apart)} standard deviations "
        "apart (median of the channels): they come from different data",
        "Give all ranks the same statistics before saving: average them, use broadcast_buffers=True or SyncBatchNorm.",
        change.after,
        {"apart": apart, "num_batches_tracked": counter},
        Severity.ERROR if apart > FAR else Severity.WARNING,
    )


def median(values: Array) -> float:
    import numpy as np

    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else 0.0


RULE = Rule(
    "ranks-disagree",
    Severity.WARNING,
    "two or more checkpoints of equal weights",
    __doc__,
    pair=check,
    headline="equal weights, different statistics in {layers}",
)
