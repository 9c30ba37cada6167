"""Running means that the weights between two layers contradict, whatever data the network was trained on.

## What it checks

In train mode the output of a BatchNorm has the mean `bias` in every channel, exactly and for any data. If nothing but
a 1x1 convolution or a linear layer with weight W stands between two of them, then the input of the second has the mean
W @ bias (plus the bias of the convolution), and that is what its running_mean must hold. No data is needed, only a
graph that proves what stands between the two: TorchScript, .pt2 and ONNX files have one. Asked only with --deep, since
the weights are read for it.

Through a ReLU or ReLU6, W meets the mean of the activation in place of the bias. It is approximated as that of a normal
distribution with mean b = bias and standard deviation s = |weight|: with the normal distribution's Phi and density phi,
m(b) = b Phi(b/s) + s phi(b/s) for ReLU, and m(b) - m(b - 6) for ReLU6.

What is compared is the share of the spread of running_mean over the channels that the prediction p explains:
R2 = 1 - sum((running_mean - p)^2) / sum((running_mean - mean)^2). Measured on a released MobileNetV2 and
EfficientNet-Lite0, and on small networks trained for the purpose:

- direct, healthy: 1.0000 in the released models; 0.976 and more in the middle of training at a high learning rate
- direct, averaged weights with the statistics of the last step: 0.41 to 0.90 (one such network was right about 44 % of
  its test images, and about 99 % of them with new statistics)
- direct, noise of 30 % of the weights' spread: 0.92 in the median; half of the weights pruned: 0.94 in the median;
  10 updates after a reset: 0.72 and less
- through ReLU or ReLU6, healthy: 0.915 to 0.9996
- through ReLU or ReLU6, 10 updates after a reset: 0.74 and less; 70 % of the weights pruned: 0.61 to 0.89; noise as
  large as the weights: 0.37 and less

It speaks below 0.95 of direct pairs and below 0.8 through an activation, and only of layers with at least 8 channels.
Means that lie nearer to 0 than what float32 resolves leave nothing to compare (an error below 1e-5 standard deviations
is none). That is often so in direct pairs: where the first layer feeds nothing but the second, its bias has no
gradient, stays at its initial 0, or decays towards it.

## Why it matters

Weights have changed, and the statistics were not estimated again: in eval mode the layer subtracts means that its
input does not have. Averaging (EMA, SWA), merging, pruning, a partial load and a reset leave this trace, and nothing
else in the file shows it.

## When it is wrong

Where a network was fine-tuned with its BatchNorm layers frozen in eval mode, running_mean is that of the earlier
training, and all is well. The same holds where statistics were adapted to data of another kind in a way of its own.
The other way round, silence proves little: of statistics that are wrong in the same way in all layers, from shifted
data for instance, nothing is visible here, and few networks have such pairs in more than some places.

## What to do

Estimate the statistics again: torch.optim.swa_utils.update_bn over some thousand training images, then compare the
accuracy in eval mode. If the layers were frozen on purpose, ignore the note.

## Seen in

No report is known that found it in this way; it was measured. The causes are reported: pytorch/ignite#2590,
CuriousAI/mean-teacher#9 and timgaripov/swa#15 (averaged weights), megvii-model/SinglePathOneShot#4 (one-shot pruning).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import number, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Connection, Group
    from bncheck.subjects.layer import Array, BatchNormLayer

# Between the worst of the healthy (0.976, at a high learning rate) and the best of the averaged without new statistics
# (0.90).
LEAST_EXPLAINED = 0.95
# Activations are not normally distributed: the worst of 33 pairs in released models is 0.915, so that its error may
# more than double. 10 updates after a reset give 0.74 and less.
LEAST_EXPLAINED_THROUGH_ACTIVATION = 0.8
# Errors below these, in standard deviations of the input, are none. Directly: a float32 mean over a batch is exact to
# 6e-8; layers of MobileNetV2 with all means below 1e-6 have R2 of 0.97. Through an activation, the approximation is
# wrong by 0.02 to 0.05 in small healthy networks, which is much where all means are alike.
LEAST_ERROR = 1e-5
LEAST_ERROR_THROUGH_ACTIVATION = 0.1
# The spread of fewer values says little.
LEAST_CHANNELS = 8
RELU6_CEILING = 6.0

NO_GRAPH = "the file has no graph that shows what stands between two layers"
NO_PAIR = "no two layers have only a 1x1 convolution or linear layer, and at most a ReLU, between them"
FIX = (
    "Estimate the statistics again with the weights as they are (torch.optim.swa_utils.update_bn); "
    "ignore this where BatchNorm was frozen during fine-tuning."
)


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        if len(group.layers) > 1:
            yield from check_group(group)


def check_group(group: Group) -> Iterator[Evidence | CannotTell]:
    if group.connections is None:
        yield CannotTell(NO_GRAPH, group=group.name)
        return
    layers = {layer.name: layer for layer in group.layers}
    connections = group.connections()
    if not connections:
        yield CannotTell(NO_PAIR, group=group.name)
    for connection in connections:
        before, after = layers.get(connection.before), layers.get(connection.after)
        fit = fit_of(connection, before, after) if before and after else None
        if fit and fit.contradicts:
            yield evidence(connection, after, fit)


class Fit(NamedTuple):
    """How well the running means fit the weights: R2, and the root mean square error in standard deviations."""

    explained: float
    error: float
    through_activation: bool

    @property
    def contradicts(self) -> bool:
        if self.through_activation:
            return self.explained < LEAST_EXPLAINED_THROUGH_ACTIVATION and self.error > LEAST_ERROR_THROUGH_ACTIVATION
        return self.explained < LEAST_EXPLAINED and self.error > LEAST_ERROR


def fit_of(connection: Connection, before: BatchNormLayer, after: BatchNormLayer) -> Fit | None:
    """None where there is nothing to compare: too few channels, broken numbers, or statistics that never moved."""
    import numpy as np

    actual, variance = after.running_mean, after.running_var
    if actual is None or variance is None or before.without_data or is_frozen(before) or is_frozen(after):
        return None
    if actual.size < LEAST_CHANNELS or variance.shape != actual.shape or never_updated(actual, variance):
        return None
    scale, shift = affine(before, connection.weight.shape[1])
    added = np.zeros(1) if connection.bias is None else connection.bias
    fits = connection.weight.shape == (actual.size, shift.size) and added.size in (1, actual.size)
    numbers = (actual, variance, scale, shift, connection.weight, added)
    if not fits or scale.shape != shift.shape or not all(np.isfinite(values).all() for values in numbers):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        actual = actual.astype(np.float64)
        predicted = connection.weight.astype(np.float64) @ mean_of_output(scale, shift, connection.activation) + added
        wrong = float(np.square(actual - predicted).mean())
        spread = float(np.square(actual - actual.mean()).mean())
        total_variance = float(variance.astype(np.float64).mean()) + after.assumed_eps
    if not math.isfinite(wrong) or not math.isfinite(spread) or not 0 < total_variance < math.inf:
        return None
    explained = 1 - wrong / spread if spread else -math.inf
    return Fit(explained, math.sqrt(wrong / total_variance), bool(connection.activation))


def is_frozen(layer: BatchNormLayer) -> bool:
    """Whether the layer never normalised by the batch, so that the mean of its output is not its bias."""
    return layer.use is StatisticsUse.FROZEN


def never_updated(mean: Array, variance: Array) -> bool:
    """Another rule says so."""
    return bool((mean == 0).all() and (variance == 1).all())


def affine(layer: BatchNormLayer, channels: int) -> tuple[Array, Array]:
    """Standard deviation and mean of what a layer gives in train mode, by channel."""
    import numpy as np

    scale = np.ones(channels) if layer.weight is None else np.abs(layer.weight.astype(np.float64))
    shift = np.zeros(channels) if layer.bias is None else layer.bias.astype(np.float64)
    return scale, shift


def mean_of_output(scale: Array, shift: Array, activation: str) -> Array:
    """The mean after the activation, of normally distributed values."""
    if not activation:
        return shift
    mean = mean_of_relu(scale, shift)
    return mean - mean_of_relu(scale, shift - RELU6_CEILING) if activation == "relu6" else mean


def mean_of_relu(scale: Array, shift: Array) -> Array:
    """E[max(x, 0)] for x normally distributed: b Phi(b/s) + s phi(b/s)."""
    import numpy as np

    error_function = np.vectorize(math.erf, otypes=[np.float64])  # numpy has none
    with np.errstate(over="ignore", under="ignore"):
        ratio = shift / np.maximum(scale, np.finfo(np.float64).tiny)
        below = 0.5 * (1 + error_function(ratio / math.sqrt(2)))
        density = np.exp(-0.5 * np.square(ratio)) / math.sqrt(2 * math.pi)
    mean: Array = shift * below + scale * density
    return mean


def evidence(connection: Connection, after: BatchNormLayer | None, fit: Fit) -> Evidence:
    named = {"": "", "relu": " through a ReLU", "relu6": " through a ReLU6"}[connection.activation]
    expected = LEAST_EXPLAINED_THROUGH_ACTIVATION if connection.activation else LEAST_EXPLAINED
    return Evidence(
        f"running_mean is not what the bias of {quoted(connection.before)}{named} and the weights between them give: "
        f"R2 is {number(fit.explained)}, where statistics of these weights have {number(expected)} or more, and the "
        f"values are {number(fit.error)} standard deviations off",
        FIX,
        after,
        {
            "fed_by": connection.before,
            "activation": connection.activation,
            "r_squared": fit.explained if math.isfinite(fit.explained) else None,
            "error_in_standard_deviations": fit.error,
        },
    )


RULE = Rule(
    "statistics-do-not-fit-weights",
    Severity.NOTE,
    "a graph (TorchScript, .pt2, ONNX) and the weights between two layers; --deep",
    __doc__,
    checkpoint=check,
    deep=True,
)
