"""Running statistics that have seen nothing but a constant input, such as a tensor of zeros.

## What it checks

running_var is the same number below 1 in every channel, to a relative 1e-6, and running_mean is exactly 0. An update
with an input that does not vary multiplies the variance by 1 - momentum and adds nothing, so that k of them leave
(1 - momentum)^k: 0.9, 0.81, 0.729 with the usual momentum of 0.1. A mean other than 0 (the bias of a convolution) is
accepted where the counter and momentum give that number.

How far the channels of a layer lie apart, as (highest - lowest) / highest, and what is left of the power:

- small networks, samples and released networks (54 files): 0.08 at least; 69 networks of torchvision and timm: 1.5e-5
- the first layer of 37 families of networks after up to 50 batches of zeros: 0, and off (1 - momentum)^k by 2.6e-6 at
  most, where the smallest momentum in use makes a difference of 1e-4

It is an error where another layer has real statistics or the parameters are trained, and a warning in a model that is
otherwise fresh. Where the variance has become 0 or almost (below the smallest normal float32), `dead-channels` speaks.

## Why it matters

A tool ran the model in train mode before anyone had called eval(): to find the strides, to print a table of layers, to
count operations, to trace. The layer now normalises by numbers that say nothing about images, and the weights that
are loaded afterwards meet statistics that do not belong to them.

## When it is wrong

A new model that will be trained forgets these numbers within some dozens of batches; hence only a warning there.
Layers of one channel are never reported, and neither is 1 - eps without a counter: detectron2 starts its frozen layers
there.

## What to do

Build, probe and profile in eval mode, or load the weights and buffers afterwards with strict=True. If the parameters
are trained and the right statistics are nowhere, estimate them on training data (torch.optim.swa_utils.update_bn).

## Seen in

ultralytics/ultralytics#17469 and ultralytics/ultralytics#18149 (zeros are run through a new model to find its
strides: "why is running_var 0.8999?"), sksq96/pytorch-summary#67 (three points of accuracy lost by printing a
summary), TylerYep/torchinfo#21
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

# The channels go through the same multiplications, so their variances are equal to the last bit or nearly so.
# In 69 networks, released and fresh, the channels of a layer differ by 1.5e-5 at least. That little only where one
# BatchNorm follows another, so that each channel has a variance of nearly 1; its mean is tiny then, but not 0.
EQUAL = 1e-6
# A multiplication in float32 loses about 6e-8. Momenta down to 3e-4 are in use: (1 - 3e-4)^1 must not look like 1.
SAME_POWER = 1e-5
# Below the smallest normal number the float32 product sticks at a fixed point, and so do channels that died later.
SMALLEST_NORMAL = 2.0**-126
# FrozenBatchNorm2d of detectron2 starts at 1 - eps, with eps up to 1e-3.
LARGEST_USUAL_EPS = 1e-3


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        yield from check_group(group)


def check_group(group: Group) -> Iterator[Evidence]:
    dummies = [layer for layer in group.layers if saw_a_constant(layer)]
    if not dummies:
        return
    names = {id(layer) for layer in dummies}
    real = sum(id(layer) not in names and has_statistics(layer) for layer in group.layers)
    trained = real > 0 or any(varies(layer.bias) for layer in group.layers)
    for layer in dummies:
        assert layer.running_var is not None
        variance = float(layer.running_var[0])
        yield Evidence(
            f"running_var is {number(variance)} in every channel{history(layer, variance)}",
            "Estimate the statistics on training data or load them with strict=True; probe and profile in eval mode."
            if trained
            else "None, if the model is trained from here; probe and profile in eval mode.",
            layer,
            {
                "running_var": variance,
                "num_batches_tracked": layer.num_batches_tracked,
                "momentum": layer.momentum.value,
                "layers_with_statistics": real,
            },
            Severity.ERROR if trained else Severity.WARNING,
        )


def saw_a_constant(layer: BatchNormLayer) -> bool:
    """Whether the statistics are those of an input that never varied."""
    import numpy as np

    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None or var.size < 2 or not mean.size:
        return False
    lowest, highest = float(var.min()), float(var.max())  # NaN fails each comparison below
    if not (lowest >= SMALLEST_NORMAL and highest < 1 and highest - lowest <= EQUAL * highest):
        return False
    without_counter = layer.use is StatisticsUse.FROZEN or layer.num_batches_tracked is None
    if without_counter and lowest >= 1 - 2 * LARGEST_USUAL_EPS:
        return False
    return bool((mean == 0).all()) or (is_power(layer, lowest) and bool(np.isfinite(mean).all()))


def is_power(layer: BatchNormLayer, variance: float) -> bool:
    """Whether the variance is (1 - momentum)^num_batches_tracked."""
    updates, momentum = layer.num_batches_tracked, momentum_of(layer)
    if not updates or not 0 < updates < math.inf or momentum is None or not 0 < momentum < 1:
        return False
    expected = (1 - momentum) ** updates
    return abs(variance - expected) <= SAME_POWER * expected


def momentum_of(layer: BatchNormLayer) -> float | None:
    return layer.assumed_momentum


def history(layer: BatchNormLayer, variance: float) -> str:
    """What the number says: how many updates made it."""
    if is_power(layer, variance):
        momentum, updates = momentum_of(layer), int(layer.num_batches_tracked or 0)
        assumed = "" if layer.momentum.is_known else " (momentum is assumed to be 0.1)"
        return (
            f", which is (1 - {momentum:g})^{updates}{assumed}: what {count(updates, 'update')} with a constant input "
            "leave, zeros for example, and nothing else"
        )
    return " and running_mean is 0: what updates with a constant input leave, zeros for example, and nothing else"


def has_statistics(layer: BatchNormLayer) -> bool:
    """Whether some input has left its trace: neither missing nor initial."""
    mean, var = layer.running_mean, layer.running_var
    return mean is not None and var is not None and bool((mean != 0).any() or (var != 1).any())


def varies(values: object) -> bool:
    """Whether the channels have different values; no initialisation of a bias does that."""
    import numpy as np

    return isinstance(values, np.ndarray) and values.size > 1 and bool((values != values[0]).any())


RULE = Rule(
    "dummy-input-statistics",
    Severity.ERROR,
    "running_mean, running_var of all layers; the counter and momentum tell how many updates",
    __doc__,
    checkpoint=check,
    supersedes=("under-converged-statistics", "dead-channels"),
)
