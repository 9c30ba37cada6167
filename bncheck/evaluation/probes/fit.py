"""The input of a layer beside its stored statistics, and how far sampling alone would put them: numpy, no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bncheck.subjects.evaluation import Fit
from bncheck.subjects.shift import shift

if TYPE_CHECKING:
    from bncheck.subjects.layer import Array, BatchNormLayer

# The batch size of a training of which nothing is known: small, so that noise is rather over- than underestimated.
ASSUMED_TRAINING_BATCH = 16


@dataclass(frozen=True, slots=True)
class InputMoments:
    """The input of a layer over all data; arrays per channel, float64.

    `image_spread` is the standard deviation, over samples, of the mean over the positions of one sample.
    """

    mean: Array
    population_variance: Array
    within_batch_variance: Array
    image_spread: Array
    samples: int


def fit_of(moments: InputMoments, layer: BatchNormLayer) -> Fit | None:
    """The input of a layer beside its stored statistics; None where the layer has none.

    running_var tracks the variance within a batch, which is smaller than that of all samples where batches are small
    or ordered. The nearer of the two is compared, so that the batch size of this evaluation decides nothing.

    The noise of a mean over N samples is s / sqrt(N), s the spread of the means of single samples, and that of a
    running mean with momentum m over batches of B samples is s * sqrt(m / ((2 - m) B)). The variance of ln(std) of
    N independent samples is 1 / (2 N); samples and not positions are counted, since neighbouring positions agree.
    """
    if layer.running_mean is None or layer.running_var is None:
        return None
    eps = layer.assumed_eps
    candidates = np.sort(np.stack([moments.within_batch_variance, moments.population_variance]), axis=0)
    nearest = np.clip(layer.running_var.astype(np.float64), candidates[0], candidates[1])
    away = shift(moments.mean, np.where(np.isnan(nearest), moments.population_variance, nearest), layer)
    assert away is not None
    training_noise = momentum_noise(layer)
    with np.errstate(all="ignore"):
        scale = np.sqrt(np.maximum(layer.running_var.astype(np.float64) + eps, np.finfo(np.float64).tiny))
        mean_noise = moments.image_spread * np.sqrt(1 / moments.samples + training_noise) / scale
    return Fit(
        moments.mean,
        moments.population_variance,
        moments.within_batch_variance,
        away,
        mean_noise,
        float(np.sqrt((1 / moments.samples + training_noise) / 2)),
    )


def momentum_noise(layer: BatchNormLayer) -> float:
    """The variance of a running mean, in units of the variance of a single sample's mean."""
    momentum = layer.assumed_momentum
    if momentum is None:  # a cumulative average: as many batches as were counted
        counted = 1 if layer.num_batches_tracked is None else layer.num_batches_tracked
        return 1 / (ASSUMED_TRAINING_BATCH * max(float(counted), 1.0))
    momentum = min(max(momentum, 0.0), 1.0)
    return momentum / ((2 - momentum) * ASSUMED_TRAINING_BATCH)
