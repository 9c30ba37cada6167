"""Some BatchNorm layers of a model are in train mode and others in eval mode.

## What it checks

All BatchNorm layers of a module that hold statistics are in the same mode. Layers without running statistics and
FrozenBatchNorm2d do not count, since the mode changes nothing there. Where it is a constant of a graph,
saved-in-train-mode speaks instead.

## Why it matters

As saved, one part of the network normalises by its running statistics and another by the batch, whose statistics it
rewrites. There are two ways to get there, and both are worth a look. Either eval() did not reach every layer, since a
module overrides train() or eval(), or does not register a submodule; then the layers in train mode are wrong. Or a part
was frozen for fine-tuning, and the model was saved in the middle of it; then check that the frozen part is really the
one that was meant, since model.train() of the next epoch silently undoes bn.eval().

## When it is wrong

A checkpoint of a fine-tuning that goes on has mixed modes by right: detection backbones with norm_eval=True, partial
BatchNorm for video, a frozen stem. Adaptation at test time leaves BatchNorm in train mode on purpose.

## What to do

Call model.eval() before saving a model that is released, and look at the modes again: whatever is still in train mode
overrides train(), or is not registered. To freeze a part, override train() of the model and put the part into eval mode
there.

## Seen in

open-mmlab/mmdetection#560, open-mmlab/mmdetection#577 (frozen stages whose BatchNorm is in train mode),
pytorch/pytorch#20875 (eval() did not reach a layer), LiamMaclean216/Pytorch-Transfomer#6
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.pairing.names import blocks
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count, few

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        yield from check_group(group)


def check_group(group: Group) -> Iterator[Evidence | CannotTell]:
    concerned = [layer for layer in group.layers if mode_matters(layer)]
    in_train = [layer for layer in concerned if layer.training.value is True]
    in_eval = [layer for layer in concerned if layer.training.value is False]
    if not (in_train and in_eval):
        if len(concerned) > max(len(in_train), len(in_eval), 1):
            yield CannotTell("the file does not hold the mode", group=group.name)
        return
    message = f"train mode: {named(in_train, in_eval)}; eval mode: {named(in_eval, in_train)}"
    for layer in in_train:
        if not layer.baked:
            yield Evidence(
                message,
                "Call model.eval() before saving; to freeze a part for training, do it in an overridden train().",
                layer,
                {"layers_in_train_mode": len(in_train), "layers_in_eval_mode": len(in_eval)},
            )


def mode_matters(layer: BatchNormLayer) -> bool:
    return layer.use is not StatisticsUse.FROZEN and (layer.has("running_mean") or layer.has("running_var"))


def named(layers: Sequence[BatchNormLayer], others: Sequence[BatchNormLayer]) -> str:
    """`layer4 (12 layers)`, `conv1 (1 layer), layer1 (6 layers), layer2 (8 layers) and 1 more`."""
    held = blocks([layer.name for layer in layers], [layer.name for layer in others])
    return few([f"{name or 'the module itself'} ({count(size, 'layer')})" for name, size in held.items()])


RULE = Rule(
    "mixed-modes",
    Severity.WARNING,
    "the modes of all layers: a pickled module",
    __doc__,
    checkpoint=check,
    supersedes=("saved-in-train-mode",),
)
