"""Statistics that moved although the weights did not: a frozen network that was left in train mode.

## What it checks

Layers whose weight and bias, and the weight of the convolution or linear layer that feeds them, are equal in every bit
in the two checkpoints, while running_mean or running_var are not. How far they moved is |mean after - mean before| /
sqrt(variance before + eps) and half of the absolute logarithm of the ratio of the variances; an error where the median
of the channels is above 0.1 in one of the two, a warning below. Also a warning where a layer further up did change its
weights: then the input is another one, and statistics that follow may be meant.

Measured on the network of the samples, which reads 0.997 of its images, over 22 batches of 64:

- in eval mode no statistic moves;
- in train mode on the images it was trained on: 0.001 to 0.007 (100 batches: the same), accuracy 0.997;
- on inverted images: 0.05 to 0.59, accuracy 0.74;
- on images without the normalisation: 0.60 in the first layer, 0.03 to 0.06 in the others, accuracy 0.26.

## Why it matters

requires_grad=False and torch.no_grad() stop the optimizer, not BatchNorm: in train mode every forward pass rewrites the
running statistics. The frozen network is no longer the one that was measured, and what was trained on its features does
not find them again.

## When it is wrong

Statistics that were estimated again on purpose: update_bn, PreciseBN, AdaBN, recalibration for another domain. Linear
probes whose recipe keeps BatchNorm in train mode.

## What to do

The weights are equal, so the repair is without loss: copy running_mean, running_var and num_batches_tracked of the
first checkpoint back. Then keep the frozen part in eval mode: train() of the module around it switches it back, so that
eval() has to come after every train(), or into an overridden train().

## Seen in

pytorch/pytorch#86590, Lightning-AI/pytorch-lightning#15062, Lightning-AI/pytorch-lightning#18930,
lightly-ai/lightly#1438, chemprop/chemprop#952, wasidennis/AdaptSegNet#79, facebookresearch/unbiased-teacher#47,
tianweiy/CenterPoint#168
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import Array
    from bncheck.subjects.pair import CheckpointPair, GroupPair, LayerChange

# Median of the channels, in standard deviations: max(d, l), see above. The same kind of data moves the statistics of a
# trained layer by some thousandths, another kind of data by tenths in the layer that meets it first.
FAR = 0.1
# Averages keep 0 or 1 in num_batches_tracked, whatever happens to the statistics.
NOT_A_COUNT = (0, 1)
COPY_BACK = (
    "Copy running_mean, running_var and num_batches_tracked of the first checkpoint back: the weights are equal, so "
    "that nothing is lost. Then call eval() on the frozen part after every train()."
)


def check(pair: CheckpointPair) -> Iterator[Evidence | CannotTell]:
    for group in pair.groups:
        yield from check_group(group, several=pair.several)


def check_group(group: GroupPair, *, several: bool) -> Iterator[Evidence | CannotTell]:
    weights_changed = False
    for change in group.changes:
        if change.same_parameters is False:
            weights_changed = True
        elif change.same_statistics is False and not is_of_another_process(change, several=several):
            if change.same_parameters is None:
                yield CannotTell("whether the weights changed cannot be read from the two files", change.after)
            else:
                yield drifted(change, weights_changed=weights_changed)


def is_of_another_process(change: LayerChange, *, several: bool) -> bool:
    """Whether as many batches were counted, as by another rank of the same run, or fewer, as in another run."""
    if change.counter_change is None:
        return several
    if change.counter_change == 0:
        return several or change.after.num_batches_tracked not in NOT_A_COUNT
    return change.counter_change < 0


def drifted(change: LayerChange, *, weights_changed: bool) -> Evidence:
    mean, mean_most = spread(change.shift.mean if change.shift else None)
    variance, variance_most = spread(change.shift.variance if change.shift else None)
    far = change.broken > 0 or max(mean, variance) > FAR
    batches = change.counter_change or None
    who = f"{count(batches, 'batch')} in train mode" if batches else "forward passes in train mode"
    message = (
        f"the weights are equal in every bit, but {who} moved the statistics: the means by {number(mean)} standard "
        f"deviations (median of the channels; at most {number(mean_most)}), the standard deviations by a factor of "
        f"{number(math.exp(min(variance, 700.0)))}"
    )
    if change.broken:
        message += f"; {count(change.broken, 'channel')} became NaN or infinite"
    if weights_changed:
        message += ". Weights of a layer before it changed, so that its input is another one"
    return Evidence(
        message,
        COPY_BACK,
        change.after,
        {
            "train_mode_batches": batches,
            "mean_shift_median": mean,
            "mean_shift_max": mean_most,
            "variance_shift_median": variance,
            "variance_shift_max": variance_most,
            "channels_not_finite": change.broken,
            "fed_by": change.fed_by,
        },
        Severity.ERROR if far and not weights_changed else Severity.WARNING,
    )


def spread(values: Array | None) -> tuple[float, float]:
    """Median and maximum of the channels that are finite."""
    import numpy as np

    finite = np.empty(0) if values is None else values[np.isfinite(values)]
    return (float(np.median(finite)), float(finite.max())) if finite.size else (0.0, 0.0)


RULE = Rule(
    "frozen-but-drifting",
    Severity.ERROR,
    "two checkpoints: weights and running statistics",
    __doc__,
    pair=check,
    headline="weights frozen, statistics moved in {layers}",
)
