"""Trained running statistics that the later checkpoint no longer has.

## What it checks

A layer with statistics in the first checkpoint whose weight or bias is in the second, but whose running_mean and
running_var are not; or are there at 0 and 1 in every channel, as a new layer has them.

## Why it matters

What loads the second checkpoint keeps the statistics of a new layer, or fails. With mean 0 and variance 1 the network
of the samples reads 20 % of the digits, with its own 99.7 %.

## When it is wrong

Statistics that were reset on purpose, to be estimated again: then the file is not finished. Converters to frozen layers
put mean and variance into weight and bias and leave 0 and 1; where the parameters changed and the counter is gone, that
is taken to be the reason. A fused model holds no BatchNorm, and is not compared.

## What to do

Save state_dict() instead of parameters(), tell the adapter or the aggregation to include buffers, and convert again.
What the first checkpoint holds is still good as long as the weights are the same.

## Seen in

torch/nn#1165 (parameters only), huggingface/peft#1732 (an adapter without buffers), huggingface/transformers#43520
(initialised again while loading), SymbioticLab/FedScale#57, TsingZ0/PFLlib#260 (parameters aggregated, buffers not)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import Evidence, Rule, Severity
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer
    from bncheck.subjects.pair import CheckpointPair, LayerChange

SAVE_BUFFERS = (
    "Save state_dict(), which holds the buffers, not parameters() alone; statistics of the first checkpoint can be "
    "copied over if the weights are the same."
)


def check(pair: CheckpointPair) -> Iterator[Evidence]:
    for group in pair.groups:
        for layer in group.without_statistics:
            if not layer.has_initial_statistics:
                yield lost(layer, layer, "its parameters are in the second checkpoint, but neither running_mean nor")
        for change in group.changes:
            if not has_statistics(change.before) or change.before.has_initial_statistics:
                continue
            if not any(change.after.has(part) for part in ("running_mean", "running_var")):
                yield lost(
                    change.before, change.after, "the layer of the second checkpoint has neither running_mean nor"
                )
            elif change.after.has_initial_statistics and not was_folded(change):
                yield initial(change)


def has_statistics(layer: BatchNormLayer) -> bool:
    return layer.running_mean is not None and layer.running_var is not None


def was_folded(change: LayerChange) -> bool:
    """Whether a converter put the statistics into weight and bias."""
    return change.same_parameters is False and change.after.num_batches_tracked is None


def lost(before: BatchNormLayer, layer: BatchNormLayer, where: str) -> Evidence:
    return Evidence(
        f"{where} running_var, which were trained in the first{updates(before)}",
        SAVE_BUFFERS,
        layer,
        {"num_batches_tracked_before": before.num_batches_tracked},
    )


def initial(change: LayerChange) -> Evidence:
    return Evidence(
        "running_mean is 0 and running_var is 1 in every channel, as in a new layer; they were trained in the first "
        f"checkpoint{updates(change.before)}",
        SAVE_BUFFERS,
        change.after,
        {
            "num_batches_tracked_before": change.before.num_batches_tracked,
            "num_batches_tracked": change.after.num_batches_tracked,
        },
    )


def updates(layer: BatchNormLayer) -> str:
    counter = layer.num_batches_tracked
    return f" ({count(int(counter), 'update')})" if isinstance(counter, int) and counter > 0 else ""


RULE = Rule(
    "statistics-lost",
    Severity.ERROR,
    "two checkpoints: running_mean and running_var",
    __doc__,
    pair=check,
    supersedes=("frozen-but-drifting", "impossible-lineage", "ranks-disagree", "settings-changed"),
    headline="the statistics of {layers} are lost",
)
