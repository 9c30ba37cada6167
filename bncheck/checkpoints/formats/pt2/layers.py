"""The layers that the calls of a graph make, and which of them feeds which."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints.contents.connections import (
    CONVOLUTIONS,
    HARMLESS,
    Joined,
    Trail,
    activation_of,
    is_linear,
    is_pointwise,
)
from bncheck.checkpoints.contents.kinds import KIND_BY_DIMENSIONS, UNTOLD
from bncheck.checkpoints.contents.modules import BATCH_NORM
from bncheck.checkpoints.contents.state_dicts import (
    COUNTER,
    STATISTICS,
    TENSORS,
    prefix_stripper,
    read_counter,
    read_tensors,
)
from bncheck.checkpoints.formats.pt2.archive import MODELS, Archive
from bncheck.checkpoints.formats.pt2.graph import (
    MODES,
    Call,
    Scope,
    batchnorm_calls,
    first_name,
    named_arguments,
    nodes_of,
    tensor_names,
)
from bncheck.subjects.checkpoint import Connection, Group, Tensor
from bncheck.subjects.layer import BatchNormLayer, Known, Setting, inferred, stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    Json = dict[str, Any]


def group_of(name: str, program: Json, tensors: dict[str, Tensor], source_name: str) -> Group:
    """The group that an exported program makes."""
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    for call in batchnorm_calls(program, source_name):
        calls[layer_name(call)].append(call)
    strip = prefix_stripper(tensors)
    layers = tuple(layer_of(strip(layer), layer, name, made, tensors) for layer, made in calls.items())
    return Group(name, "module", {strip(key): tensor for key, tensor in tensors.items()}, layers)


def layer_name(call: Call) -> str:
    """The name of the module that holds the tensors of a call, or of the node where it has none."""
    for part in (*STATISTICS, "weight", "bias"):
        target = call.tensors.get(part)
        if target is not None:
            prefix, _, last = target.rpartition(".")
            return prefix if last == part else target  # a module may hold several, by names of its own
    return call.module if call.module and is_batchnorm_class(call.class_path) else call.node


def is_batchnorm_class(class_path: str) -> bool:
    return bool(BATCH_NORM.search(class_path.rpartition(".")[2]))


def layer_of(
    name: str, stored_name: str, group: str, calls: list[Call], tensors: Mapping[str, Tensor]
) -> BatchNormLayer:
    """The layer that makes these calls: one, or more where it is shared."""
    call = calls[0]
    prefix = f"{stored_name}." if stored_name else ""
    # A layer in train mode with track_running_stats=False keeps buffers that its call is not given.
    names = {part: f"{prefix}{part}" for part in STATISTICS} | dict(call.tensors)
    own = {part: tensors[names[part]] for part in TENSORS if names.get(part) in tensors}
    statistic = own.get("running_mean") or own.get("running_var")
    named = is_batchnorm_class(call.class_path)
    kind = KIND_BY_DIMENSIONS.get(len(call.shape), UNTOLD)
    channels = call.shape[1] if len(call.shape) > 1 else None
    modes = [made.training for made in calls]
    counter = tensors.get(f"{prefix}{COUNTER}")
    return BatchNormLayer(
        name=name,
        group=group,
        stored_name=stored_name,
        kind=Setting(call.class_path.rpartition(".")[2], Known.STORED) if named else inferred(kind),
        class_path=call.class_path if named else None,
        num_features=next((tensor.size for tensor in own.values()), channels if isinstance(channels, int) else None),
        eps=call.eps,
        momentum=call.momentum,
        affine=stored("weight" in call.given or "bias" in call.given),
        track_running_stats=stored("running_mean" in call.given),
        training=next((mode for mode in modes if mode.value), modes[0]),
        baked=True,
        num_batches_tracked=read_counter(counter),
        counter_dtype=counter.dtype if counter else None,
        dtype=statistic.dtype if statistic else None,
        **read_tensors(own),
    )


# -- which layer feeds which


def connections_of(archive: Archive, model: str, tensors: Mapping[str, Tensor]) -> tuple[Connection, ...]:
    """The pairs of layers that a graph joins; it is read once more, as few ask for them."""
    program = archive.json(f"{MODELS}{model}.json")
    strip = prefix_stripper(tensors)
    joined = Joined(archive.source.name)
    for node in nodes_of(program, archive.source.name):
        trails = node.scope.trails
        operator, _, _ = node.operator.partition(".")
        arguments = dict(named_arguments(node.inputs))
        trail = trails.get(first_name([arguments.get("input", arguments.get("self"))]) or "")
        if operator not in HARMLESS:
            # It may change its arguments, and so what is known of them.
            for _, argument in named_arguments(node.inputs):
                for name in tensor_names(argument):
                    trails.pop(name, None)
        made = first_name(node.outputs)
        onward = trail_through(operator, trail, arguments, node.scope, tensors) if trail else None
        if node.operator in MODES:
            call = node.batchnorm_call()
            onward = joined.normalised(trail, strip(layer_name(call)) if call else None)
        if onward and made:
            trails[made] = onward
    return joined.connections()


def trail_through(
    operator: str, trail: Trail, arguments: Mapping[str, object], scope: Scope, tensors: Mapping[str, Tensor]
) -> Trail | None:
    """Where a trail leads through an operator, other than BatchNorm."""
    plain = {name: plain_value(argument) for name, argument in arguments.items()}
    activation = activation_of(operator.removesuffix("_"), plain)
    if activation:
        return trail.activated(activation)
    names = [first_name([arguments.get(part)]) for part in ("weight", "bias")]
    weight, bias = (tensors.get(scope.targets.get(name or "", "")) for name in names)
    shape = scope.shape(first_name([arguments.get("input")])) or []
    fits = (operator in CONVOLUTIONS and is_pointwise(weight, plain)) or (
        operator == "linear" and is_linear(weight, two_dimensional=len(shape) == 2)
    )
    return trail.mixed(weight, bias) if fits and (bias is not None or names[1] is None) else None


def plain_value(argument: object) -> object:
    """A number, truth value or list of numbers of a graph; None where it is None or anything else."""
    match argument:
        case {"as_int": value} | {"as_float": value} | {"as_bool": value} | {"as_ints": value} | {"as_string": value}:
            return value
        case {"as_none": _}:
            return None
        case _:
            return argument
