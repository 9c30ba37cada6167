"""Which call of batch_norm is that of which layer: the one whose statistics it is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bncheck.checkpoints.contents.modules import walk
from bncheck.checkpoints.contents.state_dicts import TENSORS
from bncheck.checkpoints.encodings.pickles import Object
from bncheck.checkpoints.formats.torchscript.code import Attribute, BatchNormCall, Literal, TensorConstant
from bncheck.checkpoints.formats.torchscript.tree import Tree, holder_of, is_of_torch, part_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# The calls of batch_norm that are assigned to layers, counted for each module of their class.
MAX_CALLS = 20_000


class Use(NamedTuple):
    """A call of batch_norm, and the module whose method makes it."""

    caller: Object
    call: BatchNormCall


@dataclass(frozen=True, slots=True)
class Assigned:
    """The calls by the identity of the layer that they belong to, and those on constants, by a name made for each."""

    of_module: Mapping[int, list[Use]]
    frozen: Mapping[str, BatchNormCall]


def assign_calls(tree: Tree) -> Assigned | None:
    """Finds the layer of each call; None if that is too much to do."""
    of_module: dict[int, list[Use]] = {}
    frozen: dict[str, BatchNormCall] = {}
    total = 0
    for path, module, _ in walk(tree.root):
        code = tree.codes[id(module)]
        total += len(code.calls)
        if total > MAX_CALLS:
            return None
        for index, call in enumerate(code.calls, 1):
            layer = layer_of(call, module)
            if layer:
                of_module.setdefault(id(layer), []).append(Use(module, without_missing(call, module)))
            elif isinstance(call.running_mean, TensorConstant) and isinstance(call.running_var, TensorConstant):
                frozen[f"{path}.{call.method}.batch_norm_{index}".lstrip(".")] = call
    return Assigned(of_module, frozen)


def layer_of(call: BatchNormCall, caller: Object) -> Object | None:
    """The module whose statistics, or failing that whose weight, the call is given.

    A call without either is that of the BatchNorm in whose method it stands. Elsewhere it may be anything: weights
    are standardised like that, too.
    """
    holders = [
        holder
        for value, name in ((call.running_mean, "running_mean"), (call.running_var, "running_var"))
        if (holder := holder_of(value, caller)) and holder[1] == name
    ]
    if holders:
        return holders[0][0] if all(holder[0] is holders[0][0] for holder in holders) else None
    if isinstance(call.running_mean, (Attribute, TensorConstant)):
        return None
    weight = holder_of(call.weight, caller)
    if weight and weight[1] == "weight":
        return weight[0]
    return caller if is_of_torch(caller) else None


def without_missing(call: BatchNormCall, caller: Object) -> BatchNormCall:
    """The call with None for the attributes that are None: a scripted layer without affine has such a weight."""
    missing: dict[str, Any] = {
        name: Literal(None)
        for name in TENSORS
        if (holder := holder_of(getattr(call, name), caller)) and part_of(holder[0], "_buffers").get(holder[1]) is None
    }
    return replace(call, **missing) if missing else call
