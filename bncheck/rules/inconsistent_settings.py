"""Layers of one model with another eps or momentum than the rest.

## What it checks

All BatchNorm layers of a model that keep statistics have the same eps and the same momentum. Values that have a rule of
their own (momentum from 0.5, eps below 9e-8) do not count.

A different momentum is a note. So is a different eps, unless it looks like an accident, which is a warning: at most
10 % of the layers have it, they stand among layers with the usual value rather than making up a part of the network,
and in one of their live channels (a weight other than 0, running_var above both values) it changes the output by more
than 5 %: sqrt((running_var + eps) / (running_var + usual eps)) - 1.

Of 804 networks of timm and torchvision with BatchNorm, 5 mix values of eps, 1 of them values of momentum, too: a
segmentation head beside its backbone (7 of 53 layers), the head of EfficientViT (1 of 32 and 1 of 42), half of CoAtNet.
In the first two the odd layers are a whole part of the network, in the last they are 46 %: all of them are notes. A
layer that was rebuilt with 1e-5 among layers of 1e-3 is off by 12 to 18 % where its variances go down to 0.002 to
0.005, by 3 % where they stay above 0.016.

## Why it matters

Layers that were built later, by another author or by a tool have the defaults of PyTorch, 1e-5 and 0.1, among layers
whose settings came from a port, 1e-3 and 0.01. If they were trained so, nothing is wrong. If a block was rebuilt, or a
graph was rewritten, after training, eps is not the one that the weights belong to, and channels of small variance come
out too large or too small.

## When it is wrong

A head with its own settings that was trained with them. Averages of different length are chosen on purpose in
self-supervised training.

## What to do

Compare with the code that made the model. Where the odd layers were meant to be like the rest, set eps to the value of
the training; a momentum only matters to whoever trains on.

## Seen in

pytorch/ao#4758 (a switch to eval mode rewrites eps and momentum of exported layers), huggingface/transformers#19454,
gzuidhof/nn-transfer#3
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count, few, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

# 0.01 is 0.010000000000000009 as 1 - 0.99, and graphs keep float32: what differs by less is the same value.
SAME = 1e-3
# Below and from here, other rules speak of a layer by itself.
SMALLEST_USUAL_EPS = 9e-8
HIGHEST_USUAL_MOMENTUM = 0.5
# More layers than this share are no accident: 1 of 42 in EfficientViT is none either, 7 of 53 in DeepLab.
FEW_LAYERS = 0.1
# As in lost-eps: sqrt((running_var + eps) / (running_var + usual eps)) - 1.
NOTICEABLE = 0.05

Clusters = list[tuple["float | None", "list[BatchNormLayer]"]]


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        layers = [layer for layer in group.layers if keeps_statistics(layer)]
        if len(layers) > 1:
            yield from check_eps(group, layers)
            yield from check_momentum(group, layers)


def keeps_statistics(layer: BatchNormLayer) -> bool:
    return layer.use is not StatisticsUse.FROZEN and (layer.has("running_mean") or layer.has("running_var"))


def check_eps(group: Group, layers: Sequence[BatchNormLayer]) -> Iterator[Evidence | CannotTell]:
    known = [layer for layer in layers if layer.eps.is_known]
    if len(known) < len(layers):
        yield CannotTell("the file does not hold eps", group=group.name)
    clusters = by_value([(layer.eps.value, layer) for layer in known if has_usual_eps(layer)])
    if len(clusters) < 2:
        return
    accidents = list(accidental(clusters, len(known)))
    yield from accidents
    if not accidents:
        yield different("eps", clusters, group)


def has_usual_eps(layer: BatchNormLayer) -> bool:
    eps = layer.eps.value
    return eps is not None and SMALLEST_USUAL_EPS <= eps < math.inf


def accidental(clusters: Clusters, total: int) -> Iterator[Evidence]:
    """The layers whose eps is unlikely to be meant, and matters."""
    (common, majority), *odd = clusters
    start = len(common_parts([layer.name for _, layers in clusters for layer in layers]))
    inside = {part_of(layer, start) for layer in majority}
    for eps, minority in odd:
        if eps is None or common is None or len(minority) > FEW_LAYERS * total:
            continue
        for layer in minority:
            change = impact(layer, eps, common) if part_of(layer, start) in inside else 0.0
            if change > NOTICEABLE:
                yield Evidence(
                    f"eps is {number(eps)}, but {number(common)} in {count(len(majority), 'layer')} around it: the "
                    f"output of some channels differs by a factor of up to {1 + change:.3g}",
                    "Set eps to that of the training: whatever made or rewrote this layer may not have kept it.",
                    layer,
                    {"eps": eps, "usual": common, "largest_impact": change},
                    Severity.WARNING,
                )


def part_of(layer: BatchNormLayer, start: int) -> str:
    """The part of the network that a layer stands in: what follows the beginning that all names share.

    The blocks of a list, `features.0` to `features.18`, are one part.
    """
    parts = layer.name.split(".")
    part = parts[min(start, len(parts) - 1)]
    return "" if part.isdecimal() else part


def common_parts(names: Sequence[str]) -> list[str]:
    """What all names begin with: `model`, `encoder` for names like `model.encoder.conv1.bn`."""
    split = [name.split(".") for name in names]
    first, last = min(split), max(split)
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: same.index(False)] if False in same else first[: len(same)]


def check_momentum(group: Group, layers: Sequence[BatchNormLayer]) -> Iterator[Evidence | CannotTell]:
    known = [layer for layer in layers if layer.momentum.is_known]
    if len(known) < len(layers):
        yield CannotTell("the file does not hold momentum", group=group.name)
    clusters = by_value([(layer.momentum.value, layer) for layer in known if has_usual_momentum(layer)])
    if len(clusters) > 1:
        yield different("momentum", clusters, group)


def has_usual_momentum(layer: BatchNormLayer) -> bool:
    momentum = layer.momentum.value
    return momentum is None or 0 <= momentum < HIGHEST_USUAL_MOMENTUM


def different(setting: str, clusters: Clusters, group: Group) -> Evidence:
    (common, majority), *odd = clusters
    parts = [f"{shown(common)} in {count(len(majority), 'layer')}"]
    for value, layers in odd:
        names = few([layer.name or "the module itself" for layer in layers])
        parts.append(f"{shown(value)} in {count(len(layers), 'layer')} ({names})")
    return Evidence(
        f"{setting} differs between the layers: {few(parts)}",
        "None, if it was so in training; otherwise give the odd layers the settings of the rest.",
        measured={
            "values": tuple(value for value, _ in clusters),
            "layers": tuple(len(layers) for _, layers in clusters),
        },
        severity=Severity.NOTE,
        group=group.name,
    )


def shown(value: float | None) -> str:
    return "None" if value is None else number(value)


def by_value(held: Sequence[tuple[float | None, BatchNormLayer]]) -> Clusters:
    """The layers by the value they have, the most frequent first."""
    clusters: Clusters = []
    for value, layer in held:
        for known, layers in clusters:
            if value is known or (value is not None and known is not None and math.isclose(value, known, rel_tol=SAME)):
                layers.append(layer)
                break
        else:
            clusters.append((value, [layer]))
    return sorted(clusters, key=lambda cluster: -len(cluster[1]))


def impact(layer: BatchNormLayer, eps: float, usual: float) -> float:
    """By how much the output of a live channel is off, if `usual` was right: 0.05 for 5 %, in either direction."""
    import numpy as np

    variance = layer.running_var
    if variance is None:
        return 0.0
    live = variance > max(eps, usual)  # neither NaN nor dead
    if layer.weight is not None and layer.weight.size == variance.size:
        live &= layer.weight != 0
    values = variance[live].astype(np.float64)
    ratio = np.sqrt((values + max(eps, usual)) / (values + min(eps, usual)))
    return float(ratio.max(initial=1.0)) - 1


RULE = Rule(
    "inconsistent-settings",
    Severity.NOTE,
    "eps and momentum of all layers: a pickled module, a graph, or --model",
    __doc__,
    checkpoint=check,
)
