"""Channels whose input does not vary, so that the layer gives out a constant.

## What it checks

How running_var compares with eps. The output of a channel has a standard deviation of
|weight| * sqrt(running_var / (running_var + eps)): where running_var is below eps, eps rules and the signal is
weak; where it is below a hundredth of eps, less than a tenth of weight is left, and the channel is called dead. Where
the file does not hold eps, 1e-5 is assumed.

A note from 5 % of a layer below eps. A warning from 95 % of a layer dead, and an error when every channel is dead
although every weight is other than 0: the layer then hands on its bias and nothing of the image.

## Why it matters

A few dead channels cost time and nothing else. A layer in which nearly all are dead has lost its input: a ReLU before
it that never fires, a branch that gets zeros, images that were scaled down twice.

## When it is wrong

Both are normal in good networks, which is why they are only a note. Measured, the largest share of one layer below
eps and below a hundredth of it:

- released MobileNetV2: 60 % (578 of 960 channels, at 0.2 to 1 eps) and 47 % (15 of 32), otherwise 2 % and 1 %;
- released EfficientNet-Lite0: 12.5 % and 12.5 %, otherwise 1.4 %;
- fresh MobileNetV3 and EfficientNetV2, with eps 1e-3: 100 % in up to seven layers and 0.2 %;
- 51 other fresh networks of torchvision and timm: 7 % and 6 %;
- a branch behind a ReLU that never fires: 100 % and 100 %.

So eps itself is no limit for more than a note. A half-precision copy turns variances below 3e-8 into 0, which changes
nothing.

## What to do

Nothing about a few. They can be pruned, and flushed to 0 where subnormal numbers slow a CPU down. Where a whole layer
is dead, look at what feeds it, and check that the images have the scale of those in training.

## Seen in

pytorch/vision#648 (variances of 1e-14 in Inception v3), hanson-young/nniefacelib#27, FasterAI-Labs/fasterai#82 (folded
subnormal numbers make a network five times slower)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import MOST_LISTED, channels, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer

# sqrt(v / (v + eps)) < 1/10 where v < eps / 99: what is left of the signal.
DEAD_SHARE_OF_EPS = 0.01
# Healthy networks have up to 2 % below eps by chance in any layer, 7 % and more in the few where it means something.
WORTH_A_NOTE = 0.05
# Healthy networks stay below a half of a layer dead; one that lost its input has all channels dead or all but a few.
NEARLY_ALL = 0.95
SMALLEST_NORMAL = 2.0**-126  # of float32
NOTHING = "None needed; dead channels can be pruned."
LOOK = "Look at what feeds the layer (a ReLU that never fires, zeros) and at the scale of the images."


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    import numpy as np

    var = layer.running_var
    if var is None or not var.size or not var.min() >= 0:  # negative variances and NaN have rules of their own
        return
    eps = layer.assumed_eps
    if not 0 < eps < np.inf:
        return
    weak = np.flatnonzero(var < eps).tolist()
    if len(weak) < WORTH_A_NOTE * var.size:
        return
    dead = np.flatnonzero(var < DEAD_SHARE_OF_EPS * eps).tolist()
    severity, consequence = judge(layer, len(dead) / var.size)
    known = f"eps ({number(eps)}{'' if layer.eps.is_known else ', assumed'})"
    message = (
        f"running_var is below {known} in {channels(weak, var.size)}, below 1 % of it and dead in {len(dead) or 'none'}"
        if severity is Severity.NOTE
        else f"running_var is below 1 % of {known} in {channels(dead, var.size)}"
    )
    yield Evidence(
        message + consequence,
        NOTHING if severity is Severity.NOTE else LOOK,
        layer,
        {
            "channels": tuple((dead or weak)[:MOST_LISTED]),
            "below_eps_count": len(weak),
            "dead_count": len(dead),
            "subnormal_count": int(((var > 0) & (var < SMALLEST_NORMAL)).sum()),
            "lowest": float(var.min()),
            "eps": layer.eps.value,
        },
        severity,
    )


def judge(layer: BatchNormLayer, dead: float) -> tuple[Severity, str]:
    """How bad it is that this share of the channels is dead, and what follows from it."""
    weight = layer.weight
    unused = weight is not None and bool((weight == 0).all())
    if dead < NEARLY_ALL or unused:
        return Severity.NOTE, ""
    if dead == 1 and (weight is None or bool((weight != 0).all())):
        return Severity.ERROR, ": the layer gives out its bias, whatever comes in"
    return Severity.WARNING, ": hardly anything of the input gets through"


RULE = Rule(
    "dead-channels",
    Severity.NOTE,
    "running_var; eps where the file holds it, weight",
    __doc__,
    layer=check,
)
