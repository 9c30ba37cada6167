"""A momentum by the convention of TensorFlow, with which the statistics are those of the last batch or two.

## What it checks

momentum is below 0.5. PyTorch weights the new batch by momentum, TensorFlow and Keras weight the old value by it, so
that 0.99 there is 0.01 here. As a measure of what the average still remembers, it is as noisy as the plain mean of
(2 - momentum) / momentum batches:

- 0.01: 199 batches
- 0.1, PyTorch's default: 19 batches
- 0.5, the limit: 3 batches
- 0.9: 1.22 batches
- 0.99: 1.02 batches
- 1: the last batch alone

Of 804 networks of timm and torchvision that have BatchNorm, all use between 0.0003 and 0.1; the swapped values in
use start at 0.9. The limit lies a factor of 5 above the ones, and 1.8 below the others.

## Why it matters

The statistics that eval mode uses are those of whichever images came last. Validation is noisy from epoch to epoch, and
which checkpoint looks best is luck. Fine-tuning on small batches or a few unusual images replaces the statistics
within one step.

## When it is wrong

If the statistics were estimated again after training (update_bn, which averages over all batches, or PreciseBN) they
are good, and momentum only matters to whoever trains on. Online adaptation and meta-learning choose a short memory on
purpose. MaxViT of torchvision was trained with 0.99 and its published accuracy is that of such statistics.

## What to do

Set momentum to one minus the value, and estimate the statistics again on training data. A momentum of exactly 1 is
also what fvcore's PreciseBN leaves behind if it is interrupted.

## Seen in

transformers 5.23.0 ships MobileNetV1 with 0.9997, MobileNetV2 with 0.997 and 112 layers of EfficientNet with 0.99;
pytorch/vision#8250 (MaxViT), eriklindernoren/PyTorch-YOLOv3#230, kazuto1011/deeplab-pytorch#79 (0.999),
r9y9/tacotron_pytorch#19, lukemelas/EfficientNet-PyTorch#3
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer

# The average remembers (2 - m) / m batches: 3 at this m. No network of timm or torchvision is above 0.1.
HIGHEST_MOMENTUM = 0.5
# Momenta that PyTorch networks are trained with; where one minus momentum is among them, the two were swapped.
USUAL_MOMENTA = (0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001, 0.0005, 0.0003, 0.0001)
# 1 - 0.9997 is 0.00029999999999996696, and graphs keep float32. The usual values lie 1e-4 apart or more.
TOLERANCE = 1e-6


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    if layer.use is StatisticsUse.FROZEN or not (layer.has("running_mean") or layer.has("running_var")):
        return
    if not layer.momentum.is_known:
        yield CannotTell("the file does not hold momentum", layer)
        return
    momentum = layer.momentum.value
    if momentum is None or not HIGHEST_MOMENTUM <= momentum <= 1:  # what is above 1, or NaN, has a rule of its own
        return
    window = (2 - momentum) / momentum
    meant = meant_by(momentum)
    message = f"momentum is {number(momentum)}: the statistics remember about {window:.3g} batches"
    if momentum == 1:
        message = "momentum is 1: the statistics are those of the last batch alone"
        fix = "Set momentum back to what training used (PyTorch's default is 0.1) and estimate the statistics again."
    elif meant:
        message += f"; what TensorFlow calls {number(momentum)} is {number(meant)} in PyTorch"
        fix = f"Set momentum to {number(meant)} and estimate the statistics again on training data."
    else:
        fix = "Set momentum lower (PyTorch's default is 0.1) and estimate the statistics again on training data."
    yield Evidence(message, fix, layer, {"momentum": momentum, "window": window, "meant": meant})


def meant_by(momentum: float) -> float | None:
    """The momentum that was meant, if the value is a usual one in TensorFlow's convention."""
    return next((usual for usual in USUAL_MOMENTA if math.isclose(1 - momentum, usual, abs_tol=TOLERANCE)), None)


RULE = Rule("swapped-momentum", Severity.WARNING, "momentum: a pickled module, or --model", __doc__, layer=check)
