"""The graph of an exported program: its nodes in the order in which they run, and which of them are BatchNorms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bncheck.checkpoints.contents.connections import Trail
from bncheck.checkpoints.contents.modules import INSTANCE_NORM, TORCH_BATCHNORM
from bncheck.checkpoints.contents.state_dicts import STATISTICS, TENSORS
from bncheck.checkpoints.encodings.tensors import MAX_DIMENSIONS, is_count
from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.subjects.layer import UNKNOWN, Setting, stored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Json = dict[str, Any]

OPERATORS = "torch.ops.aten."
# The operators that normalise by the batch or by running statistics, and the mode of those that have it by name.
MODES: dict[str, bool | None] = {
    "batch_norm.default": None,
    "native_batch_norm.default": None,
    "_batch_norm_impl_index.default": None,
    "cudnn_batch_norm.default": None,
    "miopen_batch_norm.default": None,
    "_native_batch_norm_legit.default": None,
    "_native_batch_norm_legit.no_stats": None,
    "_native_batch_norm_legit_functional.default": None,
    "_native_batch_norm_legit_no_training.default": False,
    "_batch_norm_with_update.default": True,
    "_batch_norm_with_update_functional.default": True,
    "_batch_norm_no_update.default": False,
}
# Operators of a functional graph return the new running statistics as their last two outputs.
RETURNS_STATISTICS = "_functional.default"
VIEWS = {"view.default", "reshape.default", "_unsafe_view.default"}
# A tensor of the model stays the same tensor through these.
COPIES = {
    "alias.default", "clone.default", "detach.default", "contiguous.default", "lift_fresh_copy.default",
    "_to_copy.default", "to.dtype", "to.device", "to.dtype_layout",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a BatchNorm operator.

    `tensors` are the names in the model of its arguments, by part; `given` the parts that are given at all.
    """

    node: str
    module: str
    class_path: str
    shape: list[int | str | None]  # of what is normalised; empty where the file does not say
    tensors: Mapping[str, str]
    given: frozenset[str]
    training: Setting[bool]
    eps: Setting[float]
    momentum: Setting[float]


@dataclass(slots=True)
class Scope:
    """What is known of the values of a graph, by their names in it."""

    values: Mapping[str, Any]  # dtype and shape
    targets: dict[str, str]  # parameters and buffers: their names in the model
    constant: set[str]  # depends on parameters and buffers alone, not on an input of the model
    viewed: dict[str, str] = field(default_factory=dict)  # of which value this one is a view
    trails: dict[str, Trail] = field(default_factory=dict)  # of values that follow from a BatchNorm

    def shape(self, name: str | None) -> list[int | str | None] | None:
        match self.values.get(name or ""):
            case {"sizes": list(sizes)} if len(sizes) <= MAX_DIMENSIONS:
                return [extent(size) for size in sizes]
            case _:
                return None

    def merges_samples(self, name: str) -> bool:
        """Whether the value is a view that moves the samples of a batch into its channels, as InstanceNorm needs it."""
        shape, source = self.shape(name), self.shape(self.viewed.get(name))
        return bool(shape and source and len(shape) == len(source) and shape[0] == 1 and shape[2:] == source[2:])


def extent(size: object) -> int | str | None:
    """A number, or the expression of a dynamic shape."""
    match size:
        case {"as_int": int(number)} if is_count(number):
            return number
        case {"as_expr": {"expr_str": str(expression)}}:
            return expression
        case _:
            return None


def batchnorm_calls(program: Json, source_name: str) -> Iterator[Call]:
    """The calls that are BatchNorm layers, in the order in which they run, those in subgraphs included."""
    for node in nodes_of(program, source_name):
        call = node.batchnorm_call()
        if call:
            yield call


class Node(NamedTuple):
    """A call of an operator, with what is known of the values before it."""

    operator: str
    inputs: list[Any]
    outputs: list[Any]
    metadata: Json
    scope: Scope

    def batchnorm_call(self) -> Call | None:
        """The call of a BatchNorm layer; None for any other operator, and where this one serves another purpose."""
        if self.operator not in MODES:
            return None
        arguments = dict(named_arguments(self.inputs))
        return batchnorm_call(self.operator, arguments, first_name(self.outputs), self.metadata, self.scope)


def nodes_of(program: Json, source_name: str) -> Iterator[Node]:
    """All calls of operators, in the order in which they run, those in subgraphs included."""
    damaged = UnreadableError(f"{source_name} has a graph that is not one of torch.export", DAMAGED_HINT)
    match program:
        case {"graph_module": {"graph": dict(graph), "signature": {"input_specs": list(specs)}}}:
            pass
        case _:
            raise damaged
    targets = targets_of(specs)
    running = [enter(graph, targets, set(targets), damaged)]
    while running:
        nodes, scope = running[-1]
        node = next(nodes, None)
        if node is None:
            running.pop()
            continue
        match node:
            case {"target": str(target), "inputs": list(inputs), "outputs": list(outputs), "metadata": dict(metadata)}:
                pass
            case _:
                raise damaged
        operator = target.removeprefix(OPERATORS)
        yield Node(operator, inputs, outputs, metadata, scope)
        follow(operator, inputs, outputs, scope)
        running.extend(reversed([enter(*subgraph, damaged) for subgraph in subgraphs(inputs, scope)]))


def targets_of(specs: list[Any]) -> dict[str, str]:
    """The names in the model of the inputs of a graph that are its parameters and buffers."""
    targets = {}
    for spec in specs:
        match spec:
            case (
                {"parameter": {"arg": {"name": str(name)}, "parameter_name": str(target)}}
                | {"buffer": {"arg": {"name": str(name)}, "buffer_name": str(target)}}
                | {"tensor_constant": {"arg": {"name": str(name)}, "tensor_constant_name": str(target)}}
            ):
                targets[name] = target
            case _:
                pass  # an input of the user, a token, a number
    return targets


def named_arguments(inputs: list[Any]) -> Iterator[tuple[str, object]]:
    """The arguments of a node and their names, which are empty for operators that run graphs."""
    for item in inputs:
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            yield item["name"], item.get("arg")


def enter(
    graph: object, targets: dict[str, str], constant: set[str], damaged: UnreadableError
) -> tuple[Iterator[object], Scope]:
    match graph:
        case {"nodes": list(nodes), "tensor_values": dict(values)}:
            return iter(nodes), Scope(values, targets, constant)
        case _:
            raise damaged


def subgraphs(inputs: list[Any], scope: Scope) -> Iterator[tuple[object, dict[str, str], set[str]]]:
    """The graphs that a node runs, such as the body of torch.no_grad(), and what is known of their inputs.

    The values for the inputs of a graph are the tensors that follow the last graph among the arguments.
    """
    graphs: list[tuple[object, list[Any]]] = []
    operands: list[str] = []
    for _, argument in named_arguments(inputs):
        match argument:
            case {"as_graph": {"graph": {"inputs": list(formal)} as graph}}:
                graphs.append((graph, formal))
                operands.clear()
            case _:
                operands.extend(tensor_names(argument))
    for graph, formal in graphs:
        names = [name for argument in formal for name in tensor_names(argument)]
        pairs = list(zip(names, operands, strict=True)) if len(names) == len(operands) else []
        targets = {name: scope.targets[operand] for name, operand in pairs if operand in scope.targets}
        yield graph, targets, {name for name, operand in pairs if operand in scope.constant}


def follow(operator: str, inputs: list[Any], outputs: list[Any], scope: Scope) -> None:
    """Writes down what the outputs of a node are made from."""
    sources = [name for _, argument in named_arguments(inputs) for name in tensor_names(argument)]
    made = [name for output in outputs for name in tensor_names(output)]
    if sources and scope.constant.issuperset(sources):
        scope.constant.update(made)
    if not sources or not made:
        return
    if operator in VIEWS:
        scope.viewed[made[0]] = sources[0]
    if operator in COPIES and sources[0] in scope.targets:
        scope.targets[made[0]] = scope.targets[sources[0]]
    if operator in MODES and operator.endswith(RETURNS_STATISTICS) and len(made) > 2:
        # A layer that runs twice is given the second time what the first one returned.
        arguments = dict(named_arguments(inputs))
        for part, name in zip(STATISTICS, made[-2:], strict=True):
            target = scope.targets.get(first_name([arguments.get(part)]) or "")
            if target:
                scope.targets[name] = target


def tensor_names(argument: object) -> Iterator[str]:
    """The names of the tensors in an argument."""
    match argument:
        case {"as_tensor": tensor} | {"as_optional_tensor": {"as_tensor": tensor}}:
            tensors = [tensor]
        case {"as_tensors": list(listed)}:
            tensors = listed
        case {"as_optional_tensors": list(listed)}:
            tensors = [item.get("as_tensor") for item in listed if isinstance(item, dict)]
        case _:
            tensors = []
    for tensor in tensors:
        if isinstance(tensor, dict) and isinstance(tensor.get("name"), str):
            yield tensor["name"]


def first_name(arguments: Iterable[object]) -> str | None:
    return next((name for argument in arguments for name in tensor_names(argument)), None)


def batchnorm_call(
    operator: str, arguments: Mapping[str, object], node: str | None, metadata: Json, scope: Scope
) -> Call | None:
    """The call of a BatchNorm layer; None where the operator serves another purpose."""
    parts = {part: name for part in TENSORS if (name := first_name([arguments.get(part)]))}
    tensors = {part: scope.targets[name] for part, name in parts.items() if name in scope.targets}
    normalised = first_name([arguments.get("input")]) or ""
    module, class_path = innermost_module(metadata)
    if INSTANCE_NORM.search(class_path):
        return None
    has_statistics = "running_mean" in tensors or "running_var" in tensors
    if not has_statistics and not class_path.startswith(TORCH_BATCHNORM):
        if normalised in scope.constant:
            return None  # standardises weights, as timm's StdConv2d does
        if scope.merges_samples(normalised):
            return None  # an InstanceNorm
    fixed = MODES[operator]
    training = flag(arguments.get("training")) if fixed is None else stored(fixed)
    momentum = number(arguments.get("momentum", arguments.get("exponential_average_factor")))
    if momentum.value == 0.0 and training.value is False:
        momentum = UNKNOWN  # torch writes 0 for momentum=None, too, in eval mode
    return Call(
        node=node or normalised,
        module=module,
        class_path=class_path,
        shape=scope.shape(normalised) or [],
        tensors=tensors,
        given=frozenset(parts),
        training=training,
        eps=number(arguments.get("eps", arguments.get("epsilon"))),
        momentum=momentum,
    )


def innermost_module(metadata: Json) -> tuple[str, str]:
    """The name and class path of the module whose forward made a node; empty where the file does not say."""
    stack = metadata.get("nn_module_stack")
    if not isinstance(stack, str):
        return "", ""
    # "key,path,class;key,path,class", from the outermost to the innermost
    fields = stack.rpartition(";")[2].split(",", 2)
    return (fields[1], fields[2]) if len(fields) == 3 else ("", "")


def flag(argument: object) -> Setting[bool]:
    match argument:
        case {"as_bool": bool(value)}:
            return stored(value)
        case _:
            return UNKNOWN


def number(argument: object) -> Setting[float]:
    match argument:
        case {"as_float": float(value)} | {"as_int": int(value)} if not isinstance(value, bool) and abs(value) < 2**63:
            return stored(float(value))
        case _:
            return UNKNOWN
