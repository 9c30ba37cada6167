"""Running statistics that still have their initial values, mean 0 and variance 1.

## What it checks

running_mean is exactly 0 and running_var exactly 1 in every channel of a layer. What that means is told from the other
layers, the counter and the parameters:

- other layers of the file have statistics: part of it was not loaded, or not saved (error);
- the counter says that updates were made: something reset or overwrote the buffers afterwards (error), or momentum
  is 0 (note);
- no layer has statistics, and the parameters are at their initial values too: the model never ran (error);
- no layer has statistics, but the parameters are trained: the buffers were not saved or not loaded (error);
- no layer has statistics or a counter, and weight and bias are far from 1 and 0: statistics that were folded into
  the parameters, as detectron2 and Caffe backbones have it (note).

## Why it matters

In eval mode such a layer does not normalise at all. The usual symptom is an accuracy near chance in eval mode and a
good one in train mode.

## When it is wrong

A freshly initialised model that is saved on purpose. A network that was trained in eval mode from beginning to end has
BatchNorm as a fixed affine map and is consistent with itself; the file looks like one whose buffers were lost.

## What to do

Load with strict=True and look at the keys that are reported; add or strip the prefix that differs ("module.",
"model.", "_orig_mod."). Save state_dict(), which has the buffers, not parameters(). If the parameters are trained and
the statistics are lost, estimate them again on training data.

## Seen in

pytorch/examples#1029 (strict=False and a prefix load nothing), torch/nn#1165 (only parameters were saved),
huggingface/transformers#43520 (buffers initialised again after loading), huggingface/peft#1732 (an adapter saved
without buffers), isht7/pytorch-deeplab-resnet#39 (trained in eval mode)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

# FrozenBatchNorm2d of detectron2 starts at a variance of 1 - eps.
DETECTRON2_INITIAL_VARIANCE = 1 - 1e-5
LOAD = "Load with strict=True, match the prefixes of the keys, and save state_dict(), which holds the buffers."


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        yield from check_group(group)


def check_group(group: Group) -> Iterator[Evidence | CannotTell]:
    with_statistics = [
        layer for layer in group.layers if layer.running_mean is not None and layer.running_var is not None
    ]
    initial = [layer for layer in with_statistics if is_initial(layer)]
    if not initial:
        return
    updated = len(with_statistics) - len(initial)
    untrained = all(layer.has_initial_parameters for layer in with_statistics)
    counted = any(layer.num_batches_tracked is not None for layer in with_statistics)
    for layer in initial:
        message, fix, severity = explain(layer, updated, untrained=untrained, counted=counted)
        yield Evidence(
            f"running_mean is 0 and running_var is 1 in every channel{message}",
            fix,
            layer,
            {
                "num_batches_tracked": layer.num_batches_tracked,
                "layers_never_updated": len(initial),
                "layers_updated": updated,
                "parameters_are_initial": layer.has_initial_parameters,
            },
            severity,
        )


def explain(layer: BatchNormLayer, updated: int, *, untrained: bool, counted: bool) -> tuple[str, str, Severity]:
    """Which of the explanations holds: how the message goes on, the fix, the severity."""
    updates = layer.num_batches_tracked
    if updates and math.isfinite(updates):
        if layer.momentum.value == 0.0:
            return f" after {count(int(updates), 'update')}: momentum is 0", "None, if that is meant.", Severity.NOTE
        return (
            f", yet num_batches_tracked counts {count(int(updates), 'update')}: they were reset after training",
            "Copy the statistics from an earlier checkpoint, or estimate them again on training data.",
            Severity.ERROR,
        )
    if updated:
        trained = f", while {count(updated, 'other layer')} {'has' if updated == 1 else 'have'} statistics"
        return f"{trained}: this part was not loaded or never ran", LOAD, Severity.ERROR
    if untrained:
        return ", and weight and bias are initial, too: the model never ran", LOAD, Severity.ERROR
    if not counted or layer.use is StatisticsUse.FROZEN:
        return (
            ", without a counter, and the parameters are trained: statistics folded into weight and bias",
            "None, if the backbone was converted so (detectron2, Caffe); otherwise load the buffers, too.",
            Severity.NOTE,
        )
    return ", while weight and bias are trained: the buffers were not saved or not loaded", LOAD, Severity.ERROR


def is_initial(layer: BatchNormLayer) -> bool:
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None or not mean.size or not (mean == 0).all():
        return False
    if (var == 1).all():
        return True
    without_counter = layer.num_batches_tracked is None
    return bool(without_counter and (abs(var - DETECTRON2_INITIAL_VARIANCE) < 1e-7).all())


RULE = Rule(
    "never-updated-statistics",
    Severity.ERROR,
    "running_mean, running_var of all layers; the counter and parameters tell why",
    __doc__,
    checkpoint=check,
)
