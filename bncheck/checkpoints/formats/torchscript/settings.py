"""What the calls of batch_norm say of the settings of their layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from bncheck.checkpoints.encodings.pickles import Dictionary, Object
from bncheck.checkpoints.formats.torchscript.calls import Use
from bncheck.checkpoints.formats.torchscript.code import Attribute, BatchNormCall, Literal, TensorConstant, Value
from bncheck.checkpoints.formats.torchscript.tree import Tree, holder_of, is_of_torch
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, Known, Setting, StatisticsUse, stored

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


def settle(layer: BatchNormLayer, module: Object, uses: list[Use], tree: Tree) -> BatchNormLayer:
    """The layer with what its calls say, where that does not contradict what its class says."""
    if layer.use is StatisticsUse.FROZEN:
        return layer
    calls = [use.call for use in uses]
    training, baked = mode(layer, module, uses, tree)
    return replace(
        layer,
        eps=agreed(layer.eps, {number for call in calls for number in numbers(call.eps)}),
        momentum=agreed(layer.momentum, {number for call in calls for number in momenta(call)}),
        affine=agreed(layer.affine, {flag for call in calls for flag in affine_flags(call)}),
        track_running_stats=agreed(
            layer.track_running_stats, {flag for call in calls for flag in tracking_flags(call)}
        ),
        training=training,
        baked=baked,
    )


def agreed(setting: Setting[T], said: set[T]) -> Setting[T]:
    """The one value that the class and all calls say; unknown where they differ."""
    if setting.known is Known.STORED and setting.value is not None:
        said = said | {setting.value}
    if not said:
        return setting
    if setting.known is Known.STORED and setting.value is None:
        return UNKNOWN
    return stored(said.pop()) if len(said) == 1 else UNKNOWN


def numbers(value: Value) -> Iterator[float]:
    if isinstance(value, Literal) and isinstance(value.value, (int, float)) and not isinstance(value.value, bool):
        yield float(value.value)


def momenta(call: BatchNormCall) -> Iterator[float]:
    """The momentum of a call. A trace in eval mode has 0 for momentum=None, too, and 0 says nothing there."""
    for number in numbers(call.momentum):
        if number or call.training != Literal(False):
            yield number


def affine_flags(call: BatchNormCall) -> Iterator[bool]:
    if call.weight == Literal(None):
        yield False
    elif isinstance(call.weight, (Attribute, TensorConstant)):
        yield True


def tracking_flags(call: BatchNormCall) -> Iterator[bool]:
    """In eval mode a call is given the statistics whatever track_running_stats says."""
    if call.running_mean == Literal(None):
        yield False
    elif isinstance(call.running_mean, (Attribute, TensorConstant)) and call.training == Literal(True):
        yield True


def mode(layer: BatchNormLayer, module: Object, uses: list[Use], tree: Tree) -> tuple[Setting[bool], bool]:
    """Whether the layer runs in train mode, and whether that is a constant of the code."""
    if not uses:
        # A scripted class has constants, and its attribute decides. Of a traced layer, the call was not found.
        return (layer.training if tree.codes[id(module)].constants else UNKNOWN), False
    modes = {mode_of_call(layer, module, use) for use in uses}
    values = {value for value, _ in modes}
    if len(values) != 1 or None in values:
        return UNKNOWN, False
    return stored(values.pop()), all(baked for _, baked in modes)


def mode_of_call(layer: BatchNormLayer, module: Object, use: Use) -> tuple[bool | None, bool]:
    """The mode that a call has, None if unknown, and whether it is a constant."""
    call = use.call
    if call.running_mean == Literal(None):
        # Without statistics the constant says True in either mode, and the mode changes nothing.
        return layer.training.value, False
    given = isinstance(call.running_mean, (Attribute, TensorConstant))
    if given and isinstance(call.training, Literal) and isinstance(call.training.value, bool):
        return call.training.value, True
    holder = holder_of(call.training, use.caller)
    if holder:
        state = holder[0].state
        value = state.get(holder[1]) if isinstance(state, Dictionary) else None
        return (value if isinstance(value, bool) else None), False
    # torch's own BatchNorm asks its attribute, in a way that changes with its version.
    return (layer.training.value if use.caller is module and is_of_torch(module) else None), False
