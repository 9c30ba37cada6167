"""A channel that the layer multiplies by more than a thousand.

## What it checks

The gain |weight| / sqrt(running_var + eps) of each channel, which is what is left of the layer when it is folded into
the convolution before it. A note above 1000, and a warning above 6550 (a tenth of the largest half-precision number)
where the statistics are stored in float16, since then the model is meant to run in that precision. Where the file
does not hold eps, 1e-5 is assumed.

## Why it matters

In float32 a large gain does no harm. In half precision an activation of 10 times such a gain is infinite; in eight
bits, folding makes one channel set the scale of all others. And the rounding of the convolution is multiplied too.

## When it is wrong

A gain of 1902 occurs in a released MobileNetV2 that works well, 754 in an EfficientNet-Lite0; other released networks
stay below 15, fresh ones below 320 (1 / sqrt(eps) with eps 1e-5). It is a note for that reason.

## What to do

Nothing, as long as the model runs in float32. Before half precision or quantisation: prune the channels that are dead,
clip the gain, and compare the results with those in float32.

## Seen in

pytorch/vision#648 (Inception v3), hanson-young/nniefacelib#27 (folded weights of 1000), pytorch/pytorch#85744
(quantisation-aware training divides by the gain)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import MOST_LISTED, channels, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer

# Three times what a variance of 0 gives with eps 1e-5 and weight 1: 1 / sqrt(1e-5) = 316.
LARGE_GAIN = 1e3
LARGEST_HALF = 65504
# Ten standard deviations of the input are rare; ten times this overflows.
HALF_PRECISION_GAIN = LARGEST_HALF / 10


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    import numpy as np

    var, weight = layer.running_var, layer.weight
    eps = layer.assumed_eps
    if var is None or not var.size or (weight is not None and weight.shape != var.shape):
        return
    with np.errstate(all="ignore"):
        scale = np.float64(1) if weight is None else np.abs(weight.astype(np.float64))
        gain = scale / np.sqrt(var.astype(np.float64) + eps)
        gain = np.where(np.isfinite(gain), gain, 0)  # what is not finite is told by other rules
    large = np.flatnonzero(gain > LARGE_GAIN).tolist()
    if not large:
        return
    highest = float(gain.max())
    overflows = layer.dtype == "float16" and highest > HALF_PRECISION_GAIN
    assumed = "" if layer.eps.is_known else ", with eps assumed to be 1e-5"
    yield Evidence(
        f"the gain |weight| / sqrt(running_var + eps) reaches {number(highest)} in {channels(large, var.size)}{assumed}"
        + ": in float16, as the layer is stored, activations overflow" * overflows,
        "Keep the layer in float32, prune dead channels or clip the gain."
        if overflows
        else "None needed in float32; check the results before half precision or quantisation.",
        layer,
        {
            "channels": tuple(large[:MOST_LISTED]),
            "channel_count": len(large),
            "highest_gain": highest,
            "eps": layer.eps.value,
        },
        Severity.WARNING if overflows else Severity.NOTE,
    )


RULE = Rule(
    "extreme-gain",
    Severity.NOTE,
    "running_var, weight; eps where the file holds it",
    __doc__,
    layer=check,
)
