"""Running statistics that lie far from what the layers see on the data.

## What it checks

The mean and variance of every BatchNorm's input over the data, in eval mode, against the stored ones: d is
|mean - running_mean| / sqrt(running_var + eps), l is half of |ln((variance + eps) / (running_var + eps))|, with the
within-batch or the pooled variance, whichever is nearer. A layer speaks when the median of its channels lies above a
threshold and above four times what sampling alone gives (the spread of single images over the root of their number,
plus the noise of the running average):

- the first layer: median d above 0.1. It sees the images themselves, so that nothing but data and preprocessing, or
  spoilt statistics, moves it;
- a later layer: median d above 0.5. A sound network that was trained at a high rate lags by 0.22 in its last layer;
  statistics that were reset lie at 1.4;
- any layer: median l above 0.25. Training crops, scales and distorts its images otherwise than an evaluation does:
  sound networks lie at 0.11 and 0.16 in their first layer.

Where no layer speaks, more than 10 % of the predictions changed by the statistics of the data do, with an allowance of
1.25 / sqrt(N) for N samples: statistics that are estimated from few samples change predictions by themselves.

With --in-distribution, d above 1.0 or l above 0.5 in any layer, or more than 20 % of the predictions changed (with the
same allowance), is an error.

Measured with a small CNN (median d of the first and of the last layer, predictions that change):

- averaged weights with statistics estimated again: 0.001, 0.02, 0.0 %
- sound, learning rate 0.05: 0.002, 0.22, 4.6 %
- ten updates after a reset: 0.003, 0.26 (0.64 in the middle), 16 %
- twenty batches of other data in train mode: 0.20, 0.43, 45 %
- statistics reset: 0.005 (l 0.25), 1.4, 53 %

With a MobileNetV2 on twenty photographs, in the first layer: 0.02 when right, 0.37 without subtracting the mean and
dividing by the standard deviation, 85 with pixels from 0 to 255. Swapped color channels (0.01) do not show.

With an EfficientNet-Lite0 on the same photographs (d and l of the first layer, right predictions of 20):

- (pixel - 127) / 128, as it was trained: 0.06, 0.15, 17
- the mean and deviation of ImageNet, as its package recommends: 0.06, 0.65, 16
- pixels from 0 to 1: 0.13, 0.83, 15
- pixels from 0 to 255: 52, 4.7, none
- statistics reset: 0.23, 0.45, none; later layers up to 52

A sound network on so few images is no proof of itself: 25 to 35 % of its predictions change with their statistics.

## Why it matters

In eval mode a layer subtracts the stored mean and divides by the stored deviation. Where these are not those of the
data, everything behind the layer works on inputs it was not trained for.

## When it is wrong

The data may be of another domain than those of the training: then the model, and not its statistics, is at fault; one
checkpoint and one folder cannot tell the two apart. Hence a warning, unless --in-distribution vouches for the data.
Statistics of 0 and 1 are right where a converter has put the true ones into weight and bias, and in a network that was
trained in eval mode from the start.

## What to do

Already at the first layer: check size, scaling, mean and standard deviation of the preprocessing. Growing with depth:
the statistics lag behind the weights; estimate them again on training data. Beginning at a layer with 0 and 1: it was
reset or never loaded.

## Seen in

wasidennis/AdaptSegNet#79 (statistics of the target domain), pytorch/pytorch#1206, timgaripov/swa#10
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import count, number, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.evaluation import EvaluatedLayer, Evaluation, Fit

PROBE = "fit to the data"
# See the measurements in the explanation: between sound networks and spoilt ones.
FIRST_LAYER_MEAN, LATER_LAYER_MEAN = 0.1, 0.5
ANY_LAYER_VARIANCE = 0.25
CERTAIN_MEAN, CERTAIN_VARIANCE = 1.0, 0.5
# Four standard deviations of sampling noise: one channel in 16,000 lies beyond by chance.
NOISE_FACTOR = 4.0
# Predictions that change when the statistics of the data replace the stored ones: 4.6 % in a sound network that lags,
# 16 % ten updates after a reset.
CHANGED_PREDICTIONS, MANY_CHANGED_PREDICTIONS = 0.1, 0.2
# What statistics of N samples change by chance is at most this over sqrt(N): 25 to 35 % on 20 photographs in a sound
# EfficientNet-Lite0, which has 1,000 classes to choose from; 0 to 1.6 % on 64 digits in DigitNet.
CHANGED_BY_CHANCE = 1.25
# With less, a sound network can lie beyond the thresholds of later layers; silence then proves nothing.
FEWEST_SAMPLES, FEWEST_BATCHES = 64, 4


def check(evaluation: Evaluation) -> Iterator[Evidence | CannotTell]:
    broken = [layer for layer in evaluation.layers if layer.fit is not None and not judged(layer)]
    for layer in broken:
        yield not_finite(layer)
    fitted = [layer for layer in evaluation.layers if layer.fit is not None and judged(layer)]
    if not fitted:
        if evaluation.layers and not broken:
            yield CannotTell(evaluation.unable.get(PROBE, "no layer with running statistics was called"))
        return
    beyond = [layer for layer in fitted if exceeds(layer, is_first=layer is fitted[0])]
    for layer in beyond:
        yield evidence(layer, evaluation, pattern(fitted, beyond))
    if beyond or broken:
        return
    if changed_beyond(evaluation, CHANGED_PREDICTIONS) and enough(evaluation):
        yield predictions_alone(evaluation)
    elif not enough(evaluation):
        yield CannotTell(
            f"{count(evaluation.samples, 'sample')} in {count(evaluation.batches, 'batch')} are too few to say that "
            f"the statistics fit ({FEWEST_SAMPLES} in {FEWEST_BATCHES} are enough)"
        )


def judged(evaluated: EvaluatedLayer) -> bool:
    """Whether the statistics are numbers that a distance can be measured from."""
    import numpy as np

    layer = evaluated.layer
    return all(
        values is not None and bool(np.isfinite(values).all()) for values in (layer.running_mean, layer.running_var)
    )


def not_finite(evaluated: EvaluatedLayer) -> Evidence:
    import numpy as np

    layer = evaluated.layer
    assert layer.running_mean is not None
    assert layer.running_var is not None
    bad = int((~(np.isfinite(layer.running_mean) & np.isfinite(layer.running_var))).sum())
    return Evidence(
        f"running_mean or running_var is not finite in {bad:,} of {count(layer.running_mean.size, 'channel')}: no data "
        "fit that",
        "Reset the statistics and estimate them again on training data.",
        layer,
        {"broken_channels": bad},
        Severity.ERROR,
    )


def enough(evaluation: Evaluation) -> bool:
    return evaluation.samples >= FEWEST_SAMPLES and evaluation.batches >= FEWEST_BATCHES


def medians(fit: Fit) -> tuple[float, float, float]:
    """Of d, of l, and of the noise of d; over the channels that are alive in the layer or in the data."""
    import numpy as np

    alive = np.maximum(fit.population_variance, fit.within_batch_variance) > 0
    chosen = alive if alive.any() else np.ones_like(alive)
    return tuple(float(np.median(values[chosen])) for values in (fit.shift.mean, fit.shift.variance, fit.mean_noise))  # type: ignore[return-value]


def exceeds(evaluated: EvaluatedLayer, *, is_first: bool) -> bool:
    assert evaluated.fit is not None
    mean, variance, noise = medians(evaluated.fit)
    mean_limit = max(FIRST_LAYER_MEAN if is_first else LATER_LAYER_MEAN, NOISE_FACTOR * noise)
    variance_limit = max(ANY_LAYER_VARIANCE, NOISE_FACTOR * evaluated.fit.variance_noise)
    return mean > mean_limit or variance > variance_limit


def changed_beyond(evaluation: Evaluation, limit: float) -> bool:
    """Whether the statistics of the data change more of the predictions than the limit, and than chance explains."""
    changed = evaluation.fit.predictions_changed if evaluation.fit else None
    return changed is not None and changed > limit + CHANGED_BY_CHANCE / math.sqrt(max(evaluation.samples, 1))


def pattern(fitted: list[EvaluatedLayer], beyond: list[EvaluatedLayer]) -> str:
    """What the first drifting layer says, by its place and its statistics."""
    first = beyond[0]
    if first.layer.has_initial_statistics:
        return (
            f"It begins at {quoted(first.layer.name)}, whose statistics are those of a new layer, 0 and 1: they were "
            "reset or never loaded. Take them from another checkpoint, or estimate them again on training data."
        )
    if first is fitted[0]:
        return (
            "It begins at the first layer: look at the preprocessing (scaling, mean and standard deviation) and at "
            "where the data come from; if both are right, the statistics were spoilt by other data."
        )
    return (
        f"The layers before {quoted(first.layer.name)} fit: the statistics lag behind the weights. Estimate them again "
        "on training data."
    )


def evidence(evaluated: EvaluatedLayer, evaluation: Evaluation, reading: str) -> Evidence:
    assert evaluated.fit is not None
    mean, variance, noise = medians(evaluated.fit)
    far = mean > CERTAIN_MEAN or variance > CERTAIN_VARIANCE
    certain = far or changed_beyond(evaluation, MANY_CHANGED_PREDICTIONS)
    return Evidence(
        f"the input of the layer lies {number(mean)} standard deviations from running_mean (median of the channels; "
        f"{number(noise)} is chance), its standard deviation at {number(ratio(evaluated))} of the stored one",
        reading,
        evaluated.layer,
        {"median_mean_shift": mean, "median_variance_shift": variance, "noise": noise},
        Severity.ERROR if certain and evaluation.in_distribution else Severity.WARNING,
    )


def ratio(evaluated: EvaluatedLayer) -> float:
    """The median over the channels of the input's standard deviation over the stored one."""
    import numpy as np

    fit, var = evaluated.fit, evaluated.layer.running_var
    assert fit is not None
    assert var is not None
    eps = evaluated.layer.assumed_eps
    with np.errstate(all="ignore"):
        found = np.sqrt((fit.within_batch_variance + eps) / np.maximum(var.astype(np.float64) + eps, 1e-300))
    return float(np.median(found))


def predictions_alone(evaluation: Evaluation) -> Evidence:
    assert evaluation.fit is not None
    changed = evaluation.fit.predictions_changed
    certain = changed_beyond(evaluation, MANY_CHANGED_PREDICTIONS)
    return Evidence(
        f"{changed:.0%} of the predictions change when the statistics of the data replace the stored ones, though no "
        "single layer is far off",
        "Estimate the statistics again on training data, and compare the accuracy.",
        None,
        {"predictions_changed": changed},
        Severity.ERROR if certain and evaluation.in_distribution else Severity.WARNING,
    )


RULE = Rule(
    "statistics-do-not-fit-data",
    Severity.WARNING,
    "drift: data like those of the training",
    __doc__,
    evaluation=check,
    headline="the statistics of {layers} do not fit the data",
    all_clear="they fit the data",
)
