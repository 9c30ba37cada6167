"""Tensors of the file that do not fit the architecture that --model names.

## What it checks

The names and shapes of the tensors in the file against the state_dict of the architecture, as load_state_dict with
strict=True does, without loading: which are missing, which are not known to the architecture, and which have another
shape. BatchNorm layers are named one by one, other tensors after them. If everything fits below one prefix, as the
keys of a Lightning checkpoint do below "model.", that is a warning which names the prefix; anything else is an error.

Left out, since torch takes it as well: num_batches_tracked, which files from before torch 0.4.1 do not have; the
prefixes of wrappers (DataParallel, torch.compile, AveragedModel); second names of one tensor. Of a file that holds
modules or a graph, only the BatchNorm layers are compared.

## Why it matters

With strict=True the load fails, which is the better case. With strict=False nothing of what does not fit is loaded,
and nobody is told: a wrong prefix leaves a network with random weights and statistics of 0 and 1 that runs.

## When it is wrong

A classification head that was replaced on purpose does not fit by right, and then no BatchNorm is concerned; the
message says so. A class whose own hooks rename old keys while it loads (some detection models of torchvision) takes
files that differ from its state_dict.

## What to do

Name the architecture that the file was saved from, with its arguments (--model-arg num_classes=10). Strip or add the
prefix before loading, load with strict=True, and where strict=False is needed look at what it returns.

## Seen in

pytorch/examples#1029 (strict=False and the prefix "model." load nothing), pytorch/pytorch#8430 and
pytorch/pytorch#8481 (missing num_batches_tracked)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.pairing.names import SAME_NAMES, align, modules_of
from bncheck.wording import MOST_LISTED, count, few, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bncheck.pairing.names import Alignment
    from bncheck.subjects.checkpoint import Checkpoint, Group, Tensor

STATISTICS = ("running_mean", "running_var")
# Not compared: torch fills in a counter that is missing, FrozenBatchNorm2d drops one that is there, AveragedModel
# counts beside the network, and an extra state is no tensor of the network.
NOT_COMPARED = ("num_batches_tracked", "n_averaged", "_extra_state")
# The share of tensors that must fit below a prefix for it to be one. Of real prefixes all do, but for a head or so.
LEAST_BELOW_PREFIX = 0.5
LOAD_HINT = "Name the architecture that the file was saved from, with its --model-arg, or save the file from this one."


@dataclass(frozen=True, slots=True)
class Difference:
    """What keeps a state_dict from being loaded. Names are those of the file, missing ones those of the architecture.

    `shift` is what the names of the file have before those of the architecture, `cut` the other way round;
    `outside` counts the tensors of the file that are not below `shift`.
    """

    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, Tensor, Tensor], ...]  # name, as it is in the file, as it is in the architecture
    shift: str = ""
    cut: str = ""
    outside: int = 0

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped)


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    compared = [
        (group, group.expected, difference(group, group.expected))
        for group in checkpoint.groups
        if group.expected is not None and (group.layers or group.contents == "state_dict")
    ]
    # Beside the network, a file may hold others: a discriminator, a teacher. They are not what --model names.
    related = [one for one in compared if one[2].matched] or [one for one in compared if one[0].layers]
    for group, expected, found in related:
        if not found.fits:
            yield mismatch(group, expected, found)
        elif found.shift or found.cut:
            yield below_prefix(group, found)


def difference(group: Group, expected: Mapping[str, Tensor]) -> Difference:
    """What differs between the tensors of a group and those of the architecture."""
    held, wanted = compared_tensors(group.tensors), compared_tensors(expected)
    if group.contents != "state_dict":  # a module has buffers that are not saved, and one name for each tensor
        norms = norm_layers(held) | norm_layers(wanted)
        held = {name: tensor for name, tensor in held.items() if parent(name) in norms}
        wanted = {name: tensor for name, tensor in wanted.items() if parent(name) in norms}
    found = below(held, wanted, align(modules_of(held), modules_of(wanted)))
    # Below a prefix that fits a module or two, the file is not the architecture: it is another one.
    if found.matched >= LEAST_BELOW_PREFIX * min(len(held), len(wanted)):
        return found
    return below(held, wanted, SAME_NAMES)


def below(held: Mapping[str, Tensor], wanted: Mapping[str, Tensor], naming: Alignment) -> Difference:
    """What differs when the names of the file become those of the architecture in this way."""
    inside = {name: own for own in held if (name := naming.name(own)) is not None}
    both = inside.keys() & wanted.keys()
    loaded = {id(wanted[name]) for name in both}
    reshaped = [
        (inside[name], held[inside[name]], wanted[name])
        for name in inside
        if name in both and not same_shape(held[inside[name]], wanted[name])
    ]
    return Difference(
        matched=len(both),
        missing=tuple(name for name in wanted if name not in both and id(wanted[name]) not in loaded),
        unexpected=tuple(own for name, own in inside.items() if name not in both),
        reshaped=tuple(reshaped),
        shift=naming.instead_of,
        cut=naming.put,
        outside=len(held) - len(inside),
    )


def compared_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if last(name) not in NOT_COMPARED}


def same_shape(stored: Tensor, wanted: Tensor) -> bool:
    """Lazy tensors take any shape, and torch loads a single number as a scalar."""
    lazy = "uninitialized" in (stored.dtype, wanted.dtype)
    return stored.shape == wanted.shape or lazy or (not wanted.shape and stored.shape == (1,))


def parent(name: str) -> str:
    return name.rpartition(".")[0]


def last(name: str) -> str:
    return name.rpartition(".")[2]


def norm_layers(tensors: Iterable[str]) -> set[str]:
    return {parent(name) for name in tensors if last(name) in STATISTICS}


# -- how it is told


def below_prefix(group: Group, found: Difference) -> Evidence:
    if found.shift:
        message = f"every tensor of the architecture is in the file, below {quoted(found.shift)}"
        fix = (
            f"Strip {quoted(found.shift)} from the keys before loading; strict=False would load nothing and not say so."
        )
    else:
        message = f"every tensor of the architecture is in the file, without {quoted(found.cut)}"
        fix = f"Put {quoted(found.cut)} before the keys for loading; strict=False would load nothing and not say so."
    if found.outside:
        message += f"; beside them {count(found.outside, 'tensor')} of something else"
    return Evidence(message, fix, measured=measured(found), severity=Severity.WARNING, group=group.name)


def mismatch(group: Group, expected: Mapping[str, Tensor], found: Difference) -> Evidence:
    norms_of_file, norms_of_model = norm_layers(group.tensors), norm_layers(expected)
    parts = []
    if found.missing:
        parts.append(f"missing in the file: {listed(found.missing, norms_of_model, expected)}")
    if found.unexpected:
        parts.append(f"unknown to the architecture: {listed(found.unexpected, norms_of_file, group.tensors)}")
    if found.reshaped:
        parts.append(f"of another shape: {shapes(found.reshaped, norms_of_file)}")
    where = f" (below {quoted(found.shift or found.cut)})" if found.shift or found.cut else ""
    names = (*found.missing, *found.unexpected, *(name for name, _, _ in found.reshaped))
    concerned = any(parent(name) in norms_of_file | norms_of_model for name in names)
    without = "" if concerned else "; no BatchNorm layer is concerned"
    return Evidence(
        f"it does not fit the architecture{where}: {'; '.join(parts)}{without}",
        LOAD_HINT,
        measured={**measured(found), "batchnorm_is_concerned": concerned},
        group=group.name,
    )


def measured(found: Difference) -> dict[str, object]:
    return {
        "missing": found.missing[:MOST_LISTED],
        "missing_count": len(found.missing),
        "unexpected": found.unexpected[:MOST_LISTED],
        "unexpected_count": len(found.unexpected),
        "of_another_shape": tuple((name, own.shape, other.shape) for name, own, other in found.reshaped[:MOST_LISTED]),
        "of_another_shape_count": len(found.reshaped),
        "prefix_of_file": found.shift,
        "prefix_of_architecture": found.cut,
    }


def listed(names: Sequence[str], norms: set[str], tensors: Mapping[str, Tensor]) -> str:
    """`2 BatchNorm layers (a, b), 1 tensor of BatchNorm layers (c.bias) and 3 other tensors (...)`."""
    of_layer: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        of_layer[parent(name)].append(name)
    total: defaultdict[str, int] = defaultdict(int)
    for name in compared_tensors(tensors):
        total[parent(name)] += 1
    layers = [layer for layer, own in of_layer.items() if layer in norms and len(own) == total[layer]]
    whole = set(layers)
    partial = [name for name in names if parent(name) in norms and parent(name) not in whole]
    others = [name for name in names if parent(name) not in norms]
    parts = []
    if layers:
        parts.append(f"{count(len(layers), 'BatchNorm layer')} ({few(layers)})")
    if partial:
        parts.append(f"{count(len(partial), 'tensor')} of BatchNorm layers ({few(partial)})")
    if others:
        parts.append(f"{count(len(others), 'other tensor' if norms else 'tensor')} ({few(others)})")
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def shapes(reshaped: Sequence[tuple[str, Tensor, Tensor]], norms: set[str]) -> str:
    """`bn1 (64 channels in the file and 32 in the architecture), fc.weight ((10, 8) and (2, 8))`, BatchNorm first."""
    layers: dict[str, str] = {}
    others = []
    for name, own, wanted in reshaped:
        if parent(name) not in norms:
            others.append(f"{name} ({own.shape} in the file and {wanted.shape} in the architecture)")
        elif len(own.shape) == len(wanted.shape) == 1:
            layers.setdefault(
                parent(name), f"{parent(name)} ({own.size} channels in the file and {wanted.size} in the architecture)"
            )
        else:
            layers.setdefault(name, f"{name} ({own.shape} in the file and {wanted.shape} in the architecture)")
    return few([*layers.values(), *others])


RULE = Rule(
    "architecture-mismatch",
    Severity.ERROR,
    "--model, and the names and shapes of all tensors",
    __doc__,
    checkpoint=check,
)
