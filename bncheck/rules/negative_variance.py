"""A running variance below zero, of which eval mode takes the square root.

## What it checks

running_var is nowhere negative. With eps known: an error where running_var + eps <= 0, since the output is then
certainly NaN or infinite, and a warning between -eps and 0. With eps unknown, as in every state_dict: an error below
-0.001, which no usual eps (1e-5, 1e-3) makes positive, and a warning for what is nearer to 0. The lowest value of a
file is 0 or more in all of 54 healthy ones, minus eps where a converter subtracted it, and -0.8 in the sample, whose
server overshot.

## Why it matters

A variance is a mean of squares; no forward pass makes it negative. Something else has written the buffer: a converter
that subtracted eps or read the wrong bytes, or an optimiser on the server of a federated training that treated buffers
as parameters and overshot. Just above -eps nothing is NaN but the scale explodes: with running_var = -0.99e-5 and
eps = 1e-5 the output is 3162 times too large.

## When it is wrong

Some converters store variance minus eps and divide by the stored value plus the same eps; then the warning can be
ignored as long as eps is that of the converter.

## What to do

Find out what wrote the buffer, and convert again. Only when the origin is known to be rounding is clamping at 0 right.
Otherwise estimate the statistics again on training data.

## Seen in

facebookresearch/detectron2#3160 (a loader subtracted eps), shicai/MobileNet-Caffe#87 (-9.9999e-06, variance minus
eps), marvis/pytorch-caffe-darknet-convert#48 (a misread layout), flwrlabs/flower#1060 (federated averaging)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import MOST_LISTED, channels, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer

# The largest eps in use is 1e-3 (TensorFlow's default, kept by ports). Below minus that, no usual eps helps.
LARGEST_USUAL_EPS = 1e-3


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    import numpy as np

    var = layer.running_var
    if var is None:
        return
    negative = np.flatnonzero(var < 0).tolist()  # NaN is not below 0: it has a rule of its own
    if not negative:
        return
    lowest = float(var[negative].min())
    eps = layer.eps.value
    if eps is not None:
        certain = lowest + eps <= 0
        consequence = f"with eps {number(eps)} the square root is that of {number(lowest + eps)}: " + (
            "the output is NaN or infinite" if certain else "the output is not NaN, but far too large"
        )
    else:
        certain = lowest < -LARGEST_USUAL_EPS
        consequence = (
            "no usual eps makes it positive, so that eval mode gives NaN"
            if certain
            else "whether eval mode gives NaN depends on eps, which the file does not hold"
        )
    yield Evidence(
        f"running_var is negative in {channels(negative, var.size)}, down to {number(lowest)}: {consequence}",
        "Find what wrote the buffer (no forward pass does) and convert again, or estimate the statistics again.",
        layer,
        {"channels": tuple(negative[:MOST_LISTED]), "channel_count": len(negative), "lowest": lowest, "eps": eps},
        Severity.ERROR if certain else Severity.WARNING,
    )


RULE = Rule("negative-variance", Severity.ERROR, "running_var; eps where the file holds it", __doc__, layer=check)
