"""A momentum with which the next update would spoil the statistics.

## What it checks

momentum lies between 0 and 1, or is None, which asks for the plain mean of all batches. Anything else is an error:
below 0, above 1, NaN, infinite. momentum=None is a warning where num_batches_tracked is 0 although the statistics are
trained.

## Why it matters

Each batch in train mode makes (1 - momentum) * old + momentum * new of the statistics. Outside 0 to 1 that is no
average: it leaves the range of what was seen, a variance can fall below 0, and the error grows with every batch:
momentum -0.1 multiplies what was there by 1.1 each time, momentum 2.5 by -1.5. NaN makes the statistics NaN at once.

With None the next batch gets the weight 1 / (num_batches_tracked + 1). At a counter of 0 that is 1: the first step of
a fine-tuning replaces the trained statistics by those of one batch.

## When it is wrong

Eval mode never uses momentum, so a model that nobody trains any more gives the right results. The statistics may have
been spoiled before it was saved. momentum 0, which keeps the statistics as they are, is usual in ports that only run,
and is not reported.

## What to do

Set momentum to a number between 0 and 1 (PyTorch's default is 0.1); clamp schedules that compute it. For None, set
num_batches_tracked to the number of batches that the statistics are made from, or give a number instead of None.

## Seen in

Measured, not reported: a momentum outside 0 to 1 grows as the formula says. A momentum of 0 that was not meant:
Cadene/pretrained-models.pytorch#5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    if layer.use is StatisticsUse.FROZEN or not (layer.has("running_mean") or layer.has("running_var")):
        return
    momentum = layer.momentum.value
    if not layer.momentum.is_known:
        yield CannotTell("the file does not hold momentum", layer)
    elif momentum is None:
        if layer.num_batches_tracked == 0 and is_trained(layer):
            yield Evidence(
                "momentum is None and num_batches_tracked is 0, while the statistics are trained: the next batch in "
                "train mode replaces them entirely",
                "Set num_batches_tracked to the number of batches that were averaged, or momentum to a number.",
                layer,
                {"momentum": None, "num_batches_tracked": 0},
                Severity.WARNING,
            )
    elif not 0 <= momentum <= 1:  # nor is NaN
        yield Evidence(
            f"momentum is {number(momentum)}, not between 0 and 1: each batch in train mode drives the statistics away",
            "Set momentum to a number between 0 and 1 and estimate the statistics again, if it was used in training.",
            layer,
            {"momentum": momentum},
        )


def is_trained(layer: BatchNormLayer) -> bool:
    """Whether the statistics differ from the initial mean 0 and variance 1."""
    mean, var = layer.running_mean, layer.running_var
    return bool((mean is not None and (mean != 0).any()) or (var is not None and (var != 1).any()))


RULE = Rule(
    "invalid-momentum",
    Severity.ERROR,
    "momentum: a pickled module, or --model; for None the counter, too",
    __doc__,
    layer=check,
)
