"""Averaged weights whose running statistics belong to other weights.

## What it checks

Two sets of weights of one network in one file, as training checkpoints hold them ("model" and "ema"; a group with
n_averaged; a part of one state_dict that is called ema, swa or teacher; or two groups with the same layers). Of the
averaged one (diff compares two files in the same way, where the name of one, or of its group, says that it holds
an average or a merge):

- statistics still at mean 0 and variance 1 where the raw network has others: they were never averaged nor copied
  (error);
- statistics equal in every bit to those of the raw network in every layer, while the parameters differ by more than
  0.1 %, ||a - b|| / ||a||: the buffers were copied, and fit the raw weights only (warning).

Measured on the digits of the samples, an average with a decay of 0.98 over ten epochs:

- parameters of the average against the raw ones 5.5 to 5.9 % (learning rates 0.005 to 0.05), of a copy in half
  precision 0.02 %;
- statistics equal to the raw ones: with copied buffers all five layers, with averaged buffers none;
- accuracy on images that were held out, learning rate 0.02: raw 0.88, average with copied statistics 0.77, with
  averaged ones 0.975, after update_bn 0.978; learning rate 0.005: all four 0.97.

## Why it matters

The activations of averaged weights have their own means and variances. With the statistics of the last raw weights
the average can be worse than what it averages, which is then blamed on the averaging; with initial ones it does not
work at all.

## When it is wrong

Copying is what torch.optim.swa_utils.AveragedModel does unless it is told use_buffers=True, and with a small learning
rate the two sets of statistics are close enough to do no harm: measure it. Where BatchNorm was frozen in training, the
statistics of both are the pretrained ones by right; layers that count 0 updates, or fewer than the optimizer made
steps, are left out for that reason. A teacher that is only used in train mode never reads its statistics.

## What to do

After averaging run torch.optim.swa_utils.update_bn(loader, averaged_model), or average the buffers, too:
use_buffers=True in AveragedModel, or every entry of the state_dict in an average of your own, as timm does it.

## Seen in

pytorch/ignite#2590 (an average without buffers), pytorch/pytorch#71763, lucidrains/ema-pytorch#8,
fadel/pytorch_ema#13, CuriousAI/mean-teacher#9, facebookresearch/moco#70, timgaripov/swa#15
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.pairing.averages import compare, parameter_change
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.pairing.averages import Comparison, LayerPair
    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.pair import CheckpointPair

# ||a - b|| / ||a|| above which parameters are others: rounding to half precision makes 2e-4, an average that has just
# started less, one of some epochs several per cent.
SAME_PARAMETERS = 1e-3
# What averaged weights are called: a word of the name of a group, or of a module inside a group.
AVERAGED = re.compile(r"(^|[._-])(ema|swa|avg|averaged?|shadow|teacher|polyak)($|[._-])", re.IGNORECASE)
# What files of merged weights are called besides.
MERGED = re.compile(r"(^|[._-])(merged?|soups?)($|[._-])", re.IGNORECASE)
COUNT_OF_AVERAGED_MODEL = "n_averaged"
AVERAGE_BUFFERS = "Run torch.optim.swa_utils.update_bn on training data, or average the buffers as well."


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    groups = [part for group in checkpoint.groups for part in parts(group) if part.layers]
    averaged = [group for group in groups if is_averaged(group)]
    raw = [group for group in groups if not is_averaged(group)]
    pairs = list(product(raw, averaged))
    named = bool(averaged)
    if not named and len(raw) == 2:
        pairs = [(raw[0], raw[1]), (raw[1], raw[0])]
    told: set[str] = set()
    for first, second in pairs:
        found = compare(first, second)
        if found is None or second.name in told:
            continue
        initial = found.initial if named or not has_initial_parameters(second) else ()
        if initial:
            yield from (never_averaged(pair, first) for pair in initial)
            told.add(second.name)
        elif evidence := copied(first, second, found, checkpoint.optimizer_steps, named=named):
            yield evidence
            told.update((second.name,) if named else (first.name, second.name))


def check_pair(pair: CheckpointPair) -> Iterator[Evidence | CannotTell]:
    """The same of two files, of which one holds averaged weights by its name or that of its group."""
    for group in pair.groups:
        sides = ((group.before, pair.before), (group.after, pair.after))
        raw = [in_file(*side) for side in sides if not holds_average(*side)]
        averaged = [in_file(*side) for side in sides if holds_average(*side)]
        found = compare(raw[0], averaged[0]) if raw and averaged else None
        if found is None:
            continue
        steps = (pair.after if holds_average(*sides[0]) else pair.before).optimizer_steps
        if found.initial:
            yield from (never_averaged(layers, raw[0]) for layers in found.initial)
        elif evidence := copied(raw[0], averaged[0], found, steps, named=True):
            yield evidence


def in_file(group: Group, checkpoint: Checkpoint) -> Group:
    """The group, named as a report of two files names it: `last.pt: ema`."""
    return replace(group, name=f"{checkpoint.source}: {group.name}" if group.name else checkpoint.source)


def holds_average(group: Group, checkpoint: Checkpoint) -> bool:
    file = re.split(r"[\\/]", checkpoint.source)[-1]  # folders say nothing of a file
    return is_averaged(group) or bool(AVERAGED.search(file) or MERGED.search(file))


def copied(raw: Group, averaged: Group, found: Comparison, steps: int | None, *, named: bool) -> Evidence | None:
    """What to say where the statistics of all layers that are in training are those of the raw weights."""
    moving = [pair for pair in found.copied if is_in_training(pair, steps)]
    if not moving or found.different:
        return None
    change = parameter_change(raw, averaged, SAME_PARAMETERS)
    if change <= SAME_PARAMETERS:
        return None
    where = f"in {count(len(moving), 'layer')}"
    if named:
        message = (
            f"the parameters of {shown(averaged)} differ by {change:.2%} from those of {shown(raw)}, but {where} the "
            "statistics are equal to theirs, in every bit: they were copied, and belong to other weights"
        )
    else:
        message = (
            f"the parameters of {shown(averaged)} differ by {change:.2%} from those of {shown(raw)}, but {where} the "
            "statistics are equal, in every bit: they cannot belong to both"
        )
    return Evidence(
        message,
        AVERAGE_BUFFERS,
        measured={"parameter_change": change, "layers_copied": len(moving), "raw_group": raw.name},
        group=averaged.layers[0].group,
    )


def never_averaged(pair: LayerPair, raw: Group) -> Evidence:
    return Evidence(
        f"running_mean is 0 and running_var is 1 in every channel, while {shown(raw)} has statistics: the average "
        "never took them over",
        AVERAGE_BUFFERS,
        pair.second,
        {"raw_group": raw.name, "raw_num_batches_tracked": pair.first.num_batches_tracked},
        Severity.ERROR,
    )


def is_in_training(pair: LayerPair, steps: int | None) -> bool:
    """Whether the raw layer may have updated its statistics all along, as far as counter and optimizer tell."""
    counter = pair.first.num_batches_tracked
    return counter is None or (counter > 0 and counter >= (steps or 0))


def has_initial_parameters(group: Group) -> bool:
    """Whether weight and bias of every layer are as they were made: 1 (0 by zero_init_residual) and 0."""
    return all(layer.has_initial_parameters for layer in group.layers)


# -- which weights are averages


def is_averaged(group: Group) -> bool:
    return bool(AVERAGED.search(group.name)) or COUNT_OF_AVERAGED_MODEL in group.tensors


def parts(group: Group) -> tuple[Group, ...]:
    """The group, or what it holds apart: the network, and each average that is a module beside it (Lightning)."""
    prefixes = dict.fromkeys(prefix for layer in group.layers if (prefix := averaged_prefix(layer.name)))
    if is_averaged(group) or not prefixes:
        return (group,)
    averages = [part(group, f"{group.name}.{prefix}".strip("."), f"{prefix}.") for prefix in prefixes]
    taken = tuple(f"{prefix}." for prefix in prefixes)
    rest = replace(
        group,
        layers=tuple(layer for layer in group.layers if not layer.name.startswith(taken)),
        tensors={name: tensor for name, tensor in group.tensors.items() if not name.startswith(taken)},
    )
    return (rest, *averages)


def part(group: Group, name: str, prefix: str) -> Group:
    return replace(
        group,
        name=name,
        layers=tuple(layer for layer in group.layers if layer.name.startswith(prefix)),
        tensors={key: tensor for key, tensor in group.tensors.items() if key.startswith(prefix)},
    )


def averaged_prefix(name: str) -> str | None:
    """`ema_model` of `ema_model.layer1.bn`, None where no module on the way is called an average."""
    modules = name.split(".")[:-1]
    for depth, module in enumerate(modules, 1):
        if AVERAGED.search(module):
            return ".".join(modules[:depth])
    return None


def shown(group: Group) -> str:
    return group.name or "the raw network"


RULE = Rule(
    "stale-averaged-statistics",
    Severity.WARNING,
    "two sets of weights of one network in one file",
    __doc__,
    checkpoint=check,
    pair=check_pair,
    supersedes=("never-updated-statistics", "statistics-lost"),
    headline="averaged weights with the statistics of others",
)
