"""An eps of 0, or so small that nothing keeps the denominator away from 0.

## What it checks

eps is a positive number of usual size. The smallest in use is 1e-7 (EfficientViT of timm); most networks have 1e-5,
ports from TensorFlow 1e-3. Below 9e-8, each channel is compared with what PyTorch's default would give:
sqrt((running_var + 1e-5) / (running_var + eps)) - 1 is how much too large its output is. That exceeds 5 % where
running_var is below 9.8e-5. Channels with a weight of 0 do not count.

- eps negative, NaN or infinite: an error
- eps 0 and running_var 0 in one channel: an error, eval mode divides by 0
- some channel changes by more than 5 %: a warning
- no channel does: a note

How often that is the case was measured on 14 released checkpoints as if their eps were lost: in 12 of them no variance
is below 0.003. A MobileNetV2 has 1018 of 17,056 channels under the limit, and eps 0 changes its features by 45 %; an
EfficientNet-Lite0 has 131 of 21,008, of which 130 would divide by 0.

## Why it matters

Trained networks have channels whose variance is next to nothing. eps is what bounds their scale, and the network has
been trained with that bound. Without it they are multiplied by whatever 1 / sqrt(running_var) is. Rounding a small
variance to half precision makes it 0, and the result NaN.

## When it is wrong

The detection models of torchvision have FrozenBatchNorm2d with eps 0 on purpose, as their weights were made so: for
frozen layers only a division by 0 is reported. A network that was trained with this eps is consistent with itself.

## What to do

Set eps to the value of the training, which the original code or configuration tells.

## Seen in

pytorch/vision#2599 (eps 0 and half precision give NaN), pytorch/vision#1947 (outputs explode), pytorch/vision#2169,
gzuidhof/nn-transfer#3, huggingface/transformers#18597, pytorch/ao#4758 (a rewrite of the graph sets eps back)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import DEFAULT_EPS, StatisticsUse
from bncheck.wording import MOST_LISTED, channels, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import Array, BatchNormLayer

# The smallest eps in use is 1e-7, of which float32 in a graph may leave a little less.
SMALLEST_USUAL_EPS = 9e-8
# A channel that is off by this much is worth a word: sqrt((running_var + DEFAULT_EPS) / (running_var + eps)) - 1.
NOTICEABLE = 0.05
SET = "Set eps to that of the training: PyTorch's default is 1e-5, TensorFlow's 1e-3."


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    eps = layer.eps.value
    if eps is None:
        if layer.running_var is not None and layer.use is not StatisticsUse.FROZEN:
            yield CannotTell("the file does not hold eps", layer)
    elif eps < 0 or not math.isfinite(eps):
        yield Evidence(f"eps is {number(eps)}, not a small positive number", SET, layer, {"eps": eps}, Severity.ERROR)
    elif eps < SMALLEST_USUAL_EPS and layer.running_var is not None:
        yield from judge(layer, eps, layer.running_var)


def judge(layer: BatchNormLayer, eps: float, variance: Array) -> Iterator[Evidence]:
    """What a tiny eps does to the channels; negative and non-finite variances have rules of their own."""
    import numpy as np

    variance = variance.astype(np.float64)
    denominator = variance + eps
    divided_by_zero = np.flatnonzero(denominator == 0).tolist()
    if divided_by_zero:
        yield Evidence(
            f"eps is {number(eps)} and running_var is 0 in {channels(divided_by_zero, variance.size)}: eval mode "
            "divides by 0 and gives NaN",
            SET,
            layer,
            measured(eps, divided_by_zero, None),
            Severity.ERROR,
        )
        return
    if layer.use is StatisticsUse.FROZEN:
        return
    used = np.isfinite(variance) & (denominator > 0)
    if layer.weight is not None and layer.weight.size == variance.size:
        used &= layer.weight != 0
    impact = np.zeros(variance.size)
    impact[used] = np.sqrt((variance[used] + DEFAULT_EPS) / denominator[used]) - 1
    affected = np.flatnonzero(impact > NOTICEABLE).tolist()
    if affected:
        yield Evidence(
            f"eps is {number(eps)} and running_var as low as {number(float(variance[affected].min()))} in "
            f"{channels(affected, variance.size)}: the output is up to {float(impact.max()) + 1:.3g} times that with "
            f"eps {number(DEFAULT_EPS)}",
            SET,
            layer,
            measured(eps, affected, float(impact.max())),
        )
    else:
        yield Evidence(
            f"eps is {number(eps)}; no running_var is small enough for that to matter",
            "None needed, if it was so in training.",
            layer,
            measured(eps, affected, float(impact.max(initial=0))),
            Severity.NOTE,
        )


def measured(eps: float, affected: list[int], impact: float | None) -> dict[str, object]:
    return {
        "eps": eps,
        "channels": tuple(affected[:MOST_LISTED]),
        "channel_count": len(affected),
        "largest_impact": impact,
    }


RULE = Rule(
    "lost-eps",
    Severity.WARNING,
    "eps: a pickled module, a graph, or --model",
    __doc__,
    layer=check,
    supersedes=("low-precision-statistics",),  # which names rounding as the cause of the same division by 0
)
