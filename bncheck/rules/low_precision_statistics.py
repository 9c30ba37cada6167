"""Running statistics that are stored with 16 or 8 bits.

## What it checks

The dtype of running_mean and running_var: float16, bfloat16 or a float8.

- a note, once, for statistics that were merely cast, as released inference weights are;
- a warning in a training checkpoint (the file has optimizer steps, an epoch or a step), where the spacing of the dtype
  relative to its numbers, finfo(dtype).eps, is more than 0.05 of momentum. Where the file does not hold momentum,
  0.1 is assumed;
- an error where running_var was rounded to 0 in channels with a weight, and eps is known to be below 1e-7: the
  scale is then thousands of times what it was.

Overflow to infinity is told by `non-finite-statistics`.

## Why it matters

An update adds momentum * (batch value - running value). What is less than half the spacing of the dtype is lost in
rounding, so that the statistics stop short of the value by up to finfo(dtype).eps / momentum of it. Measured where
the true mean is 10:

- bfloat16 (eps 0.0078), momentum 0.1: 9.63, bound 8 %;
- bfloat16, momentum 0.01: 6.69, bound 78 %;
- bfloat16, momentum 0.001: 4.0;
- float16 (eps 0.00098), momentum 0.003: 9.33, bound 33 %;
- float16, momentum 0.1, and float32: 10.0.

## When it is wrong

Casting once costs half a spacing, 0.05 % in float16 and 0.4 % in bfloat16, and no accuracy that one could measure: a
MobileNetV2 in float16 has dozens of variances of exactly 0 and classifies as before. A checkpoint whose copy was cast
when it was saved, with training in float32, cannot be told from one that was trained so; counters of 0 or 1 (averages
of weights) are taken for casts.

## What to do

Keep BatchNorm layers in float32 while training: autocast does; model.half() and model.bfloat16() do not. Estimate
statistics that stalled anew, in float32, on training data.

## Seen in

facebookresearch/fairscale#442, pytorch/pytorch#75478, facebookresearch/d2go#585, NVIDIA/apex#144 ("occasionally
results in NaNs"), apple/coreai-torch#54 (variances above 65504 become infinite)
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import DEFAULT_MOMENTUM, StatisticsUse
from bncheck.wording import MOST_LISTED, channels, count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

# torch.finfo(dtype).eps, the spacing of the numbers just above 1.
SPACING = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-3,
    "float8_e4m3fnuz": 2.0**-3,
    "float8_e5m2": 2.0**-2,
    "float8_e5m2fnuz": 2.0**-2,
    "float8_e8m0fnu": 1.0,
}
# spacing / momentum bounds how far from their value, relative to it, the statistics stall: 0.0098 for float16 and 0.078
# for bfloat16 with momentum 0.1, where a mean of 10 was measured to stall at 10.0 and 9.63.
MOST_RELATIVE_ERROR = 0.05
# half of the smallest float16, 6e-8, is where eps itself becomes 0
TINY_EPS = 1e-7
# Names under which training loops save how far they are.
PROGRESS = ("epoch", "epochs", "step", "global_step", "iter", "iteration", "num_updates")


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    training = is_training_checkpoint(checkpoint)
    for group in checkpoint.groups:
        yield from check_group(group, training=training)


def check_group(group: Group, *, training: bool) -> Iterator[Evidence]:
    merely_cast: defaultdict[str, int] = defaultdict(int)
    for layer in group.layers:
        if layer.dtype not in SPACING or layer.running_var is None:
            continue
        found = rounded_to_zero(layer) or (stalled(layer) if training else None)
        if found:
            yield found
        else:
            merely_cast[layer.dtype] += 1
    for dtype, layers in merely_cast.items():
        yield Evidence(
            f"the running statistics of {count(layers, 'layer')} are stored in {dtype}",
            "None needed to run the model; keep BatchNorm layers in float32 to train it.",
            measured={"dtype": dtype, "layers": layers},
            severity=Severity.NOTE,
            group=group.name,
        )


def is_training_checkpoint(checkpoint: Checkpoint) -> bool:
    """Whether the file says how far a training is. Ultralytics writes epoch -1 into what it releases."""
    progress = (
        value
        for name, value in checkpoint.facts.items()
        if name.rpartition(".")[2].lower() in PROGRESS and isinstance(value, (int, float))
    )
    return checkpoint.optimizer_steps is not None or any(value > 0 for value in progress)


def rounded_to_zero(layer: BatchNormLayer) -> Evidence | None:
    """Channels that have a weight but no variance and hardly an eps."""
    import numpy as np

    var, weight, eps = layer.running_var, layer.weight, layer.eps.value
    if var is None or eps is None or not 0 <= eps < TINY_EPS or (weight is not None and weight.shape != var.shape):
        return None
    zero = np.flatnonzero((var == 0) & (True if weight is None else weight != 0)).tolist()
    if not zero:
        return None
    return Evidence(
        f"running_var was rounded to 0 in {channels(zero, var.size)} by {layer.dtype}, and eps is only {number(eps)}",
        "Keep BatchNorm layers in float32, or convert with the eps of training.",
        layer,
        {"dtype": layer.dtype, "channels": tuple(zero[:MOST_LISTED]), "channel_count": len(zero), "eps": eps},
        Severity.ERROR,
    )


def stalled(layer: BatchNormLayer) -> Evidence | None:
    """Statistics that cannot follow the data, since their updates are lost in rounding."""
    updates, momentum = layer.num_batches_tracked, effective_momentum(layer)
    if layer.use is StatisticsUse.FROZEN or not momentum or (updates is not None and not updates > 1):
        return None
    spacing = SPACING[layer.dtype or ""]
    error = spacing / momentum
    if error <= MOST_RELATIVE_ERROR:
        return None
    assumed = "" if layer.momentum.is_known else " (assumed: the file does not hold it)"
    return Evidence(
        f"the running statistics of a training checkpoint are stored in {layer.dtype}: with momentum {number(momentum)}"
        f"{assumed}, small updates are lost in rounding, and the statistics stop up to "
        f"{'100' if error > 1 else number(100 * error)} % short of their value",
        "Keep BatchNorm layers in float32 in training, and estimate the statistics anew.",
        layer,
        {
            "dtype": layer.dtype,
            "spacing": spacing,
            "momentum": layer.momentum.value,
            "momentum_is_assumed": not layer.momentum.is_known,
            "relative_error": error,
        },
        Severity.WARNING,
    )


def effective_momentum(layer: BatchNormLayer) -> float | None:
    """What the last update weighed: 1/n for momentum=None; None where nothing is averaged."""
    momentum, updates = layer.momentum.value, layer.num_batches_tracked
    if not layer.momentum.is_known:
        return DEFAULT_MOMENTUM
    if momentum is None:
        return 1 / updates if updates and 0 < updates < math.inf else None
    return momentum if 0 < momentum <= 1 else None


RULE = Rule(
    "low-precision-statistics",
    Severity.WARNING,
    "the dtype of the statistics; momentum, eps and the progress of training where the file holds them",
    __doc__,
    checkpoint=check,
)
