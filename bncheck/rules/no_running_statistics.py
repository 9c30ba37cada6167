"""A BatchNorm without running statistics, whose results depend on the batch.

## What it checks

A layer has neither running_mean nor running_var: it was made with track_running_stats=False, or its buffers were set
to None.

## Why it matters

Without running statistics a layer normalises by the batch in eval mode, too. The same image gives different results in
different company, a batch of one image with 1x1 features raises an error, and ONNX export writes a BatchNorm in
training mode.

## When it is wrong

Some networks are meant so: pix2pix, CycleGAN and pix2pixHD generators, FastGAN, and meta-learning normalise by the
batch at test time. Exclude their layers by name. A state_dict shows such a layer only through `_metadata`, which
safetensors files and rewritten dicts lack, and there it looks like an InstanceNorm: then the rule is undecided.

## What to do

Train with track_running_stats=True, or estimate the statistics of the trained network; or use InstanceNorm or
GroupNorm, which do not depend on the batch.

## Seen in

pytorch/pytorch#156051, pytorch/pytorch#75252 (exported in training mode), xu-ji/IIC#49; meant so in
junyanz/pytorch-CycleGAN-and-pix2pix#693
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    if layer.use is StatisticsUse.FROZEN or layer.has("running_mean") or layer.has("running_var"):
        return
    if "InstanceNorm" in (layer.kind.value or ""):
        yield CannotTell("without statistics, the file does not tell a BatchNorm from an InstanceNorm", layer)
        return
    yield Evidence(
        "no running_mean and no running_var: results depend on the batch, in eval mode, too",
        "Train with track_running_stats=True or estimate the statistics; ignore the layer if it is meant so (GANs).",
        layer,
        {"track_running_stats": layer.track_running_stats.value, "training": layer.training.value},
    )


RULE = Rule(
    "no-running-statistics",
    Severity.WARNING,
    "a pickled module, or --model",
    __doc__,
    layer=check,
    supersedes=("saved-in-train-mode",),
)
