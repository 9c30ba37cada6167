"""A BatchNorm that was saved in train mode and will rewrite its statistics.

## What it checks

The layer of a pickled module has training=True, so that forward, as saved, normalises by the batch and updates the
running statistics; or a graph has that mode as a constant. A layer that never ran is left to
`never-updated-statistics`: every module starts in train mode.

## Why it matters

Whoever loads the module and calls it without eval() gets results that depend on the batch, and each call moves
running_mean and running_var: with no optimizer step, and under torch.no_grad() as well. The accuracy that was
published cannot be reproduced, and the damage is saved with the next checkpoint.

## When it is wrong

Every nn.Module starts in train mode, so a checkpoint that is only there to resume training has it by right; hence a
warning and not an error. Loaders that always call eval() repair it.

## What to do

Call model.eval() before saving, and in the code that loads. Where only a part is to be trained, override train() so
that frozen BatchNorm layers stay in eval mode. Where the mode is a constant of a graph (a traced module, an
exported program, ONNX), which is an error, eval() comes too late: call it before tracing or exporting, and do that
again.

## Seen in

yaodongyu/TRADES#3 (a released model "depending on batch size and contents"), pytorch/vision#2079 (one forward in
train mode changes later predictions), Lightning-AI/pytorch-lightning#18813,
princeton-vl/pytorch_stacked_hourglass#44, pytorch/pytorch#151726 (the mode is baked into an exported program)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    if layer.use is StatisticsUse.FROZEN:
        return
    if not layer.training.is_known:
        yield CannotTell("the file does not hold the mode", layer)
        return
    if not layer.training.value or (not layer.baked and never_ran(layer)):
        return
    updates = layer.behaviour.updates_statistics
    what = "forward normalises by the batch" + " and rewrites the statistics" * bool(updates)
    measured = {"updates_statistics": updates, "baked": layer.baked}
    if layer.baked:
        yield Evidence(
            f"train mode is part of the graph: {what}, and eval() does not change it",
            "Call model.eval() and trace or export again.",
            layer,
            measured,
            Severity.ERROR,
        )
    else:
        yield Evidence(
            f"training is True: as saved, {what}", "Call model.eval() before saving and after loading.", layer, measured
        )


def never_ran(layer: BatchNormLayer) -> bool:
    """Whether the layer is as its constructor left it, train mode included: another rule says so."""
    return layer.num_batches_tracked == 0 and layer.has_initial_statistics


RULE = Rule("saved-in-train-mode", Severity.WARNING, "a pickled module or a graph", __doc__, layer=check)
