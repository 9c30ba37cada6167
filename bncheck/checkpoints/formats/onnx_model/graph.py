"""The graph of an ONNX model: its nodes, those of subgraphs and functions among them, and which are BatchNorms."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bncheck.checkpoints.contents.connections import Trail
from bncheck.checkpoints.contents.modules import INSTANCE_NORM
from bncheck.checkpoints.contents.state_dicts import STATISTICS
from bncheck.checkpoints.formats.onnx_model.weights import Weight
from bncheck.errors import UnreadableError
from bncheck.subjects.layer import UNKNOWN, Setting, stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    # Messages of the package onnx, which makes its classes when it is imported.
    Message = Any

# A function that calls another one twice, and that one a third, makes more nodes than any file has.
MAX_NODES = 500_000
MAX_DEPTH = 100
STANDARD_DOMAINS = {"", "ai.onnx"}
# By the inputs of BatchNormalization after the first.
PARTS = ("weight", "bias", *STATISTICS)
COPIES = {"Identity", "Cast"}
# The versions of the operator: since the first, the outputs tell the mode; since the second, an attribute does.
OUTPUTS_TELL_MODE, ATTRIBUTE_TELLS_MODE = 7, 14
# What the operator uses where the attribute is left out, by its specification.
DEFAULT_EPSILON, DEFAULT_MOMENTUM = 1e-5, 0.9
# Written by torch.onnx: a Python list of texts.
CLASSES, SCOPES = "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes"
LISTED_TEXT = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class Call:
    """A BatchNormalization node and what its inputs are, by part.

    `names` are what the node calls them, `weights` what these hold, `computed` those computed from the data.
    """

    node: str
    names: Mapping[str, str]
    weights: Mapping[str, Weight]
    computed: frozenset[str]
    shape: list[int | str]
    training: Setting[bool]
    eps: Setting[float]
    momentum: Setting[float]
    classes: list[str]
    scopes: list[str]


@dataclass(slots=True)
class Scope:
    """What is known of the values of a graph, by name; a subgraph sees those of the graph around it."""

    nodes: Iterator[Message]
    opset: int
    outer: Scope | None = None
    path: str = ""
    weights: dict[str, Weight] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)  # depends on weights alone, not on an input of the model
    given: set[str] = field(default_factory=set)  # inputs of the graph
    shapes: dict[str, list[int | str]] = field(default_factory=dict)
    reshaped: dict[str, str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    trails: dict[str, Trail] = field(default_factory=dict)  # of values that follow from a BatchNorm
    attributes: dict[str, Message] = field(default_factory=dict)  # those of the call of a function

    @property
    def around(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.outer

    def find(self, name: str) -> Weight | None:
        return next((scope.weights[name] for scope in self.around if name in scope.weights), None)

    def is_fixed(self, name: str) -> bool:
        return any(name in scope.fixed for scope in self.around)

    def is_computed(self, name: str) -> bool:
        """Whether the value is made from data, and neither a weight nor given from outside."""
        return not any(name in known for scope in self.around for known in (scope.fixed, scope.weights, scope.given))

    def is_repeated(self, name: str) -> bool:
        """Whether the value is repeated for each sample, as InstanceNorm does with statistics to use BatchNorm."""
        return any(name in scope.repeated for scope in self.around)

    def shape(self, name: str) -> list[int | str]:
        return next((scope.shapes[name] for scope in self.around if name in scope.shapes), [])

    def merges_samples(self, name: str) -> bool:
        """Whether the value is a view that moves the samples of a batch into its channels, as InstanceNorm needs it."""
        shape, source = self.shape(name), self.shape(self.reshaped.get(name, ""))
        return bool(shape and len(shape) == len(source) and shape[0] == 1 and shape[2:] == source[2:])


def batchnorm_calls(model: Message, weights: Sequence[Weight], name: str) -> Iterator[Call]:
    """The nodes that are BatchNorm layers, in the order of the graph, those in subgraphs and functions included."""
    for node in nodes_of(model, weights, name):
        call = node.batchnorm_call()
        if call:
            yield call


class Node(NamedTuple):
    """A node that is no call of a function, with what is known of the values before it."""

    node: Message
    attributes: Mapping[str, Message]
    scope: Scope

    def batchnorm_call(self) -> Call | None:
        """The node as a layer; None for any other node, and where the operator serves another purpose."""
        if self.node.op_type != "BatchNormalization" or self.node.domain not in STANDARD_DOMAINS:
            return None
        return batchnorm_call(self.node, self.attributes, self.scope)


def nodes_of(model: Message, weights: Sequence[Weight], name: str) -> Iterator[Node]:
    """All nodes but calls of functions, in the order of the graph, those in subgraphs and functions included."""
    functions = {(function.domain, function.name): function for function in model.functions}
    running = [graph_scope(model.graph, opset_of(model), None, {weight.name: weight for weight in weights})]
    count = 0
    while running:
        scope = running[-1]
        node = next(scope.nodes, None)
        if node is None:
            running.pop()
            continue
        count += 1
        if count > MAX_NODES or len(running) > MAX_DEPTH:
            raise UnreadableError(
                f"{name} nests its functions and graphs further than a model does", "Check what the file holds."
            )
        attributes = attributes_of(node, scope)
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            running.append(function_scope(function, node, attributes, scope))
            continue
        yield Node(node, attributes, scope)
        graphs = [graph for given in attributes.values() for graph in (given.g, *given.graphs) if graph.node]
        if not graphs:
            follow(node, attributes, scope)
        running.extend(graph_scope(graph, scope.opset, scope, {}) for graph in reversed(graphs))


def opset_of(message: Message) -> int:
    """The version of the standard operators that a model or function uses."""
    versions = [opset.version for opset in message.opset_import if opset.domain in STANDARD_DOMAINS]
    return max(versions, default=1)


def graph_scope(graph: Message, opset: int, outer: Scope | None, initializers: dict[str, Weight]) -> Scope:
    own = initializers or {proto.name: Weight(proto.name, proto) for proto in graph.initializer}
    path = outer.path if outer else ""
    scope = Scope(iter(graph.node), opset, outer, path, dict(own), set(own))
    scope.given = {value.name for value in graph.input}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            scope.shapes[value.name] = [dim.dim_param or dim.dim_value for dim in dims]
    return scope


def function_scope(function: Message, node: Message, attributes: dict[str, Message], caller: Scope) -> Scope:
    """The scope of the body of a function, which sees nothing but what it is given."""
    scope = Scope(iter(function.node), opset_of(function), path=f"{caller.path}{node.name}/")
    scope.attributes = {default.name: default for default in function.attribute_proto} | attributes
    for formal, actual in zip(function.input, node.input, strict=False):
        weight = caller.find(actual)
        if weight:
            scope.weights[formal] = weight
        if caller.is_fixed(actual):
            scope.fixed.add(formal)
        elif not caller.is_computed(actual):
            scope.given.add(formal)
        scope.shapes[formal] = caller.shape(actual)
    return scope


def attributes_of(node: Message, scope: Scope) -> dict[str, Message]:
    """The attributes of a node by name. One that refers to an attribute of the function is that attribute."""
    attributes = {}
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            attributes[attribute.name] = attribute
        elif attribute.ref_attr_name in scope.attributes:
            attributes[attribute.name] = scope.attributes[attribute.ref_attr_name]
    return attributes


def follow(node: Message, attributes: Mapping[str, Message], scope: Scope) -> None:
    """Writes down what the outputs of a node are made from."""
    if not node.output:
        return
    made = node.output[0]
    if node.op_type == "Constant":
        scope.fixed.add(made)
        if "value" in attributes:
            scope.weights[made] = Weight(made, attributes["value"].t)
        return
    inputs = [name for name in node.input if name]
    if inputs and all(map(scope.is_fixed, inputs)):
        scope.fixed.update(node.output)
    if node.op_type in COPIES and inputs and (weight := scope.find(inputs[0])):
        scope.weights[made] = weight
    if node.op_type == "Tile":
        scope.repeated.add(made)
    if node.op_type == "Reshape" and inputs:
        scope.reshaped[made] = inputs[0]


def batchnorm_call(node: Message, attributes: Mapping[str, Message], scope: Scope) -> Call | None:
    """The node as a layer; None where the operator serves another purpose."""
    if len(node.input) != 1 + len(PARTS) or scope.is_fixed(node.input[0]):
        return None  # the second standardises weights
    names = dict(zip(PARTS, node.input[1:], strict=True))
    weights = {part: weight for part, given in names.items() if (weight := scope.find(given))}
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    classes = LISTED_TEXT.findall(metadata.get(CLASSES, ""))
    if any(map(INSTANCE_NORM.search, classes)) or scope.is_repeated(names["running_mean"]):
        return None
    kept = any(part in weights and weights[part].name.endswith(part) for part in STATISTICS)
    if not kept and scope.merges_samples(node.input[0]):
        return None
    training = mode_of(node, attributes, scope.opset)
    name = node.name or (node.output[0] if node.output else "")
    return Call(
        node=f"{scope.path}{name}",
        names=names,
        weights=weights,
        computed=frozenset(part for part in STATISTICS if scope.is_computed(names[part])),
        shape=scope.shape(node.input[0]),
        training=stored(training),
        eps=stored(decimal(attributes["epsilon"].f if "epsilon" in attributes else DEFAULT_EPSILON)),
        momentum=momentum_of(attributes, training),
        classes=classes,
        scopes=LISTED_TEXT.findall(metadata.get(SCOPES, "")),
    )


def mode_of(node: Message, attributes: Mapping[str, Message], opset: int) -> bool:
    """Whether the node is in training mode."""
    if opset >= ATTRIBUTE_TELLS_MODE:
        return "training_mode" in attributes and attributes["training_mode"].i != 0
    is_test = opset < OUTPUTS_TELL_MODE and "is_test" in attributes and attributes["is_test"].i != 0
    return not is_test and sum(bool(output) for output in node.output) > 1


def momentum_of(attributes: Mapping[str, Message], training: bool) -> Setting[float]:
    """PyTorch's momentum: the weight of the new statistics, where ONNX's is that of the old."""
    if "momentum" not in attributes and not training:
        return UNKNOWN  # left out because nothing uses it
    old = decimal(attributes["momentum"].f if "momentum" in attributes else DEFAULT_MOMENTUM)
    if old == 1.0 and not training:
        return UNKNOWN  # torch writes 1 for momentum=None, too, in eval mode
    return stored(round(1 - old, 7))  # float32 has no more digits near 1


def decimal(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
