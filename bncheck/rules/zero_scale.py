"""A layer of a trained network whose weight is 0 in every channel.

## What it checks

weight is exactly 0 in all channels while the network is trained: the biases of another layer differ from channel to
channel, which no initialisation does, and this layer ran (its statistics are not the initial ones).

- bias is 0 too: the layer gives out zeros, and the residual branch that ends in it never contributed (warning);
- bias is not 0, or other layers have single weights of exactly 0: the layer was pruned or set to 0 (note).

## Why it matters

Many residual networks start with a weight of 0 in the last layer of each branch (zero_init_residual). The first
optimizer step changes that. A weight that is still exactly 0 got no gradient: the branch was frozen, left out of the
optimizer, or cut off by a detach(). Its parameters are dead weight, and the network is shallower than it looks.

## When it is wrong

Networks that have not been trained are quiet, with statistics or without. Pruning by zeroing whole branches on purpose
leaves the same trace, and is a note where it can be recognised.

## What to do

Check that the optimizer got all parameters and that they require a gradient. If it is meant, remove the branch.

## Seen in

Not reported: the rule follows from how zero_init_residual works. The weight of a trained block moves with its first
step (measured on the sample network).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import Array, BatchNormLayer


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        yield from check_group(group)


def check_group(group: Group) -> Iterator[Evidence]:
    zeros = [layer for layer in group.layers if is_zero(layer.weight) and ran(layer)]
    if not zeros or not any(is_trained(layer.bias) for layer in group.layers):
        return
    pruned = any(has_single_zeros(layer.weight) for layer in group.layers)
    for layer in zeros:
        constant = layer.bias is not None and bool((layer.bias != 0).any())
        measured: dict[str, object] = {
            "num_batches_tracked": layer.num_batches_tracked,
            "bias_is_zero": not constant,
            "other_layers_have_zeros": pruned,
        }
        if constant or pruned:
            yield Evidence(
                f"weight is 0 in every channel: the layer gives out {'its bias' if constant else 'zeros'}, "
                "whatever comes in",
                "None, if it was pruned on purpose; the branch can be removed.",
                layer,
                measured,
                Severity.NOTE,
            )
        else:
            yield Evidence(
                "weight and bias are 0 in every channel although the network is trained: the layer gives out zeros, "
                "so that its branch never contributed",
                "Check that the optimizer got the parameters of the branch and that they require a gradient.",
                layer,
                measured,
            )


def is_zero(weight: Array | None) -> bool:
    return weight is not None and weight.size > 0 and bool((weight == 0).all())


def has_single_zeros(weight: Array | None) -> bool:
    return weight is not None and 0 < int((weight == 0).sum()) < weight.size


def is_trained(bias: Array | None) -> bool:
    """Whether the channels differ. Initial biases are all 0, or all the same."""
    return bias is not None and bias.size > 1 and bool((bias != bias[0]).any())


def ran(layer: BatchNormLayer) -> bool:
    """Whether a forward pass has changed the statistics."""
    mean, var = layer.running_mean, layer.running_var
    return mean is not None and var is not None and bool((mean != 0).any() or (var != 1).any())


RULE = Rule(
    "zero-scale",
    Severity.WARNING,
    "weight, bias and statistics of all layers",
    __doc__,
    checkpoint=check,
)
