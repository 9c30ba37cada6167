"""What the architecture that the user named knows of its layers, for a file that does not say it."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bncheck.checkpoints.contents.state_dicts import prefix_stripper
from bncheck.evaluation.models.foreign import build, foreign_code, importable, load_callable
from bncheck.evaluation.models.live import describe, live_group, tensor_of
from bncheck.pairing.names import align
from bncheck.subjects.checkpoint import Checkpoint, Group, Tensor
from bncheck.subjects.layer import BatchNormLayer, Known, Setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from bncheck.options.model import Architecture


def architecture(options: Architecture) -> Callable[[Checkpoint], Checkpoint]:
    """A function that adds to a checkpoint what the architecture knows: eps, momentum, affine, tracking, kind.

    Args:
        options: which architecture, its arguments, and where to import it from.

    Raises:
        UsageError: no callable is named.
        ModelError: the code cannot be imported or fails.
    """
    spec = options.model or ""
    with importable(options.python_path), contextlib.redirect_stdout(sys.stderr):
        module, note = build(load_callable(spec), spec, options.arguments)
    with foreign_code(f"--model {spec} has no state_dict", "Name a module whose weights can be saved."):
        known = replace(live_group(module), tensors=saved_tensors(module))
    notes = (note,) if note else ()

    def complete(checkpoint: Checkpoint) -> Checkpoint:
        said = list(notes)
        groups = []
        for group in checkpoint.groups:
            completed, remarks = with_architecture(group, known)
            groups.append(completed)
            said.extend(remarks)
        return replace(checkpoint, groups=tuple(groups), notes=(*checkpoint.notes, *said))

    return complete


def with_architecture(group: Group, known: Group) -> tuple[Group, list[str]]:
    """The group with the settings of the architecture where the file has none, and where they were found.

    What does not match is for the rule to say, which compares the tensors of the file with `expected`.
    """
    by_name = {layer.name: layer for layer in known.layers}
    naming = align([layer.name for layer in group.layers], list(by_name))
    remarks = []
    if naming.instead_of:
        remarks.append(f"layers of the architecture were found below {naming.instead_of!r}")
    if naming.put:
        remarks.append(f"layers of the file were found below {naming.put!r} of the architecture")
    layers = []
    matched: set[str] = set()
    for layer in group.layers:
        name = naming.name(layer.name)
        other = by_name.get(name) if name is not None else None
        if other is None:
            layers.append(layer)
            continue
        matched.add(other.name)
        layers.append(completed(layer, other))
    for name, other in by_name.items():
        stored_name = None if name in matched else naming.inverse.name(name)
        if stored_name is not None and has_all_tensors(other, stored_name, group, known):
            layers.append(untracked(other, stored_name, group))
    where = f"{group.name}: " if group.name else ""
    completed_group = replace(group, layers=tuple(layers), expected=known.tensors)
    return completed_group, [f"{where}{remark}" for remark in remarks]


def saved_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """What the state_dict of a module holds. Names of one tensor have one Tensor."""
    state = module.state_dict(keep_vars=True)
    own = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    strip = prefix_stripper(own)
    made = {id(value): tensor_of(name, describe(value)) for name, value in own.items()}
    return {strip(name): made[id(value)] for name, value in own.items()}


def completed(layer: BatchNormLayer, other: BatchNormLayer) -> BatchNormLayer:
    """The layer with each setting that the file does not store taken from the architecture; never the mode."""

    def chosen(own: Setting[Any], its: Setting[Any]) -> Setting[Any]:
        return own if own.known is Known.STORED or not its.is_known else Setting(its.value, Known.ARCHITECTURE)

    return replace(
        layer,
        kind=chosen(layer.kind, other.kind),
        class_path=layer.class_path or other.class_path,
        num_features=other.num_features if layer.num_features is None else layer.num_features,
        use=other.use,
        eps=chosen(layer.eps, other.eps),
        momentum=chosen(layer.momentum, other.momentum),
        affine=chosen(layer.affine, other.affine),
        track_running_stats=chosen(layer.track_running_stats, other.track_running_stats),
    )


def has_all_tensors(layer: BatchNormLayer, stored_name: str, group: Group, known: Group) -> bool:
    """Whether the file holds all that a layer without statistics stores: weight and bias, or nothing."""
    parts = [key for key in known.tensors if key.rpartition(".")[0] == layer.name]
    return not layer.has("running_mean") and all(
        f"{stored_name}.{key.rpartition('.')[2]}" in group.tensors for key in parts
    )


def untracked(layer: BatchNormLayer, name: str, group: Group) -> BatchNormLayer:
    """A layer that leaves no statistics in the file, as the architecture describes it."""
    values: dict[str, Any] = {}
    for part in ("weight", "bias"):
        tensor = group.tensors.get(f"{name}.{part}")
        if tensor is not None and tensor.read is not None:
            values[part] = tensor.read().reshape(-1)
    described = completed(BatchNormLayer(name, group.name, layer.kind, layer.num_features, name), layer)
    return replace(described, kind=Setting(layer.kind.value, Known.ARCHITECTURE), **values)
