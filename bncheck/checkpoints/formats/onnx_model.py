"""ONNX models: a graph whose BatchNormalization nodes have their mode and settings as attributes.

An ONNX file is one message of protobuf, weights included. To read only what is needed, the outermost messages are
walked here: the package onnx parses what is left of the model without the bytes of its weights, which are read later
from their places. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bncheck.checkpoints.contents.connections import RELU, RELU6, Joined, Trail, is_linear, is_pointwise
from bncheck.checkpoints.contents.kinds import KIND_BY_DIMENSIONS, UNTOLD
from bncheck.checkpoints.contents.modules import BATCH_NORM, INSTANCE_NORM
from bncheck.checkpoints.contents.state_dicts import STATISTICS, prefix_stripper, read_tensors
from bncheck.checkpoints.encodings.limits import largest_tensor
from bncheck.checkpoints.encodings.protobuf import BYTES, NUMBER, Field, Window, as_field, damaged, fields
from bncheck.checkpoints.encodings.tensors import DTYPES, MAX_DIMENSIONS, contiguous_strides, read_from, strided_tensor
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError, UsageError
from bncheck.subjects.checkpoint import Checkpoint, Connection, Group, Tensor
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, Setting, inferred, stored
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.layer import Array

    # Messages of the package onnx, which makes its classes when it is imported.
    Message = Any

FORMAT = "ONNX"
MOMENTUM_NOTE = "ONNX's momentum is the weight of the old statistics; what is shown is 1 - momentum, as PyTorch has it"

# Fields of the messages
IR_VERSION, GRAPH, INITIALIZER, RAW_DATA = 1, 7, 5, 9
MODEL_FIELDS = {
    1: NUMBER, 2: BYTES, 3: BYTES, 4: BYTES, 5: NUMBER, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES,
    25: BYTES, 26: BYTES,
}  # fmt: skip
GRAPH_FIELDS = {1, 2, 5, 10, 11, 12, 13, 14, 15, 16}
# float_data, int32_data, int64_data, double_data, uint64_data: numbers that are not raw bytes
TYPED_DATA = {4, 5, 7, 10, 11}
# The versions of the format count up from 1; there were 13 in nine years.
MAX_IR_VERSION = 1000
MAX_FIELDS_BEFORE_GRAPH = 64
# The largest typed data that are kept: per-channel tensors are far smaller.
MAX_TYPED = 2**20
# What is left of a model without its weights: a node has about a hundred bytes.
MAX_SKELETON = 256 * 2**20

# A function that calls another one twice, and that one a third, makes more nodes than any file has.
MAX_NODES = 500_000
MAX_DEPTH = 100

# onnx.TensorProto.DataType
DTYPE_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
EXTERNAL = 1  # TensorProto.DataLocation
STANDARD_DOMAINS = {"", "ai.onnx"}
# By the inputs of BatchNormalization after the first.
PARTS = ("weight", "bias", *STATISTICS)
COPIES = {"Identity", "Cast"}
# By PyTorch's names.
CONV_ATTRIBUTES = {"stride": "strides", "padding": "pads"}
# The versions of the operator: since the first, the outputs tell the mode; since the second, an attribute does.
OUTPUTS_TELL_MODE, ATTRIBUTE_TELLS_MODE = 7, 14
# What the operator uses where the attribute is left out, by its specification.
DEFAULT_EPSILON, DEFAULT_MOMENTUM = 1e-5, 0.9
# Written by torch.onnx: a Python list of texts.
CLASSES, SCOPES = "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes"
LISTED_TEXT = re.compile(r"'([^']*)'")


def recognises(source: Source) -> bool:
    """A message that starts with the version of the format and has a graph."""
    try:
        for place, found in enumerate(fields(Window(source), 0, source.size)):
            if MODEL_FIELDS.get(found.number) != found.wire or place > MAX_FIELDS_BEFORE_GRAPH:
                return False
            if place == 0 and not (found.number == IR_VERSION and 0 < found.value <= MAX_IR_VERSION):
                return False
            if found.number == GRAPH:  # of a truncated model, too
                first = source.read(found.start, 1)[0] if found.start < source.size else 0
                return first >> 3 in GRAPH_FIELDS and first & 7 == BYTES
            if found.end > source.size:
                return False
    except UnreadableError:
        return False
    return False


def read(source: Source) -> Checkpoint:
    """The graph of a model, as one group. What is not weights is read as a whole, up to 256 MiB.

    Raises:
        UnreadableError: the model is damaged, or a file with its weights is missing or truncated.
        UnsupportedError: the package onnx is not installed, or the graph is larger than any real one.
    """
    model, places = parse(source)
    held = [Held(proto.name, proto, place) for proto, place in zip(model.graph.initializer, places, strict=True)]
    check_external(source, model.graph.initializer)
    tensors = {initializer.name: tensor_of(source, initializer) for initializer in held}
    if len(tensors) != len(held):
        raise UnreadableError(f"{source.name} has two weights of one name", DAMAGED_HINT)
    strip = prefix_stripper(tensors)
    layers = Layers(source, strip)
    calls = batchnorm_calls(model, {initializer.name: initializer for initializer in held}, source.name)
    names = [layers.add(call) for call in calls]
    group = Group(
        "",
        "module",
        {strip(key): tensor for key, tensor in tensors.items()},
        tuple(layers.made.values()),
        connections=partial(connections_of, source, names),
    )
    facts = {"producer": f"{model.producer_name} {model.producer_version}".strip()} if model.producer_name else {}
    return Checkpoint(source.name, FORMAT, (group,), facts=facts, notes=(MOMENTUM_NOTE,) if group.layers else ())


# -- protobuf


@dataclass(frozen=True, slots=True)
class Raw:
    """Where the numbers of a weight lie in the file. `dropped`: there are too many typed numbers to keep."""

    start: int = 0
    end: int = 0
    dropped: bool = False


def parse(source: Source) -> tuple[Message, list[Raw]]:
    """The model without the bytes of its weights, and where those lie, in the order of the weights."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise UnsupportedError(
            f"{source.name} is an ONNX model, and reading it needs the onnx package", "pip install 'bncheck[onnx]'"
        ) from None
    data, places = skeleton(source)
    try:
        model = onnx.ModelProto.FromString(data)
        sound = len(model.graph.initializer) == len(places) and all_text(model)
    except (DecodeError, UnicodeDecodeError):
        sound = False
    if not sound:
        raise damaged(source.name)
    return model, places


def all_text(model: Message) -> bool:
    """Whether the texts of a message are text: protobuf hands out bytes where they are not."""
    waiting = [model]
    while waiting:
        for kind, value in waiting.pop().ListFields():
            values = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
            if kind.type == kind.TYPE_STRING and any(isinstance(text, bytes) for text in values):
                return False
            if kind.type == kind.TYPE_MESSAGE:
                waiting.extend(values)
    return True


def skeleton(source: Source) -> tuple[bytes, list[Raw]]:
    """The bytes of the model without its weights, and the places of those."""
    window = Window(source)
    kept = Kept(source)
    places: list[Raw] = []
    graph: bytes | None = None
    for outer in inside(window, 0, source.size):
        if outer.number != GRAPH:
            kept.add(outer)
            continue
        if graph is not None:
            raise UnreadableError(f"{source.name} has two graphs", DAMAGED_HINT)
        inner = Kept(source)
        for found in inside(window, outer.start, outer.end):
            if found.number == INITIALIZER and found.wire == BYTES:
                initializer, place = without_numbers(window, found)
                inner.insert(as_field(INITIALIZER, initializer))
                places.append(place)
            else:
                inner.add(found)
        graph = inner.bytes()
    return kept.bytes() + as_field(GRAPH, graph or b""), places


def inside(window: Window, start: int, end: int) -> Iterator[Field]:
    """The fields of a message, none of which reaches beyond it."""
    for found in fields(window, start, end):
        if found.end > end:
            raise UnreadableError(f"{window.source.name} ends at byte {end:,}, inside its model", DAMAGED_HINT)
        yield found


def without_numbers(window: Window, initializer: Field) -> tuple[bytes, Raw]:
    """A TensorProto without its raw data, and where those lie."""
    kept = Kept(window.source)
    raw: Raw | None = None
    dropped = False
    for found in inside(window, initializer.start, initializer.end):
        if found.number == RAW_DATA and found.wire == BYTES:
            if raw is not None:
                raise UnreadableError(f"{window.source.name} has a weight that is given twice", DAMAGED_HINT)
            raw = Raw(found.start, found.end)
        elif found.number in TYPED_DATA and found.end - found.start > MAX_TYPED:
            dropped = True
        else:
            kept.add(found)
    return kept.bytes(), raw or Raw(dropped=dropped)


class Kept:
    """What is kept of a message, read in as few pieces as possible."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pieces: list[bytes] = []
        self.start = self.end = 0
        self.size = 0

    def add(self, found: Field) -> None:
        if found.tag != self.end:
            self.flush()
            self.start = found.tag
        self.end = found.end
        self.count(found.end - found.tag)

    def insert(self, data: bytes) -> None:
        self.flush()
        self.pieces.append(data)
        self.count(len(data))

    def count(self, size: int) -> None:
        self.size += size
        if self.size > MAX_SKELETON:
            raise UnsupportedError(
                f"{self.source.name} has a graph of more than {MAX_SKELETON:,} bytes without its weights",
                "Keep large constants as initializers, or in external data.",
            )

    def flush(self) -> None:
        if self.end > self.start:
            self.pieces.append(self.source.read(self.start, self.end - self.start))
        self.start = self.end = 0

    def bytes(self) -> bytes:
        self.flush()
        return b"".join(self.pieces)


# -- weights


@dataclass(frozen=True, slots=True)
class Held:
    """A weight of the model, or a Constant node. `raw` is None where the message itself holds the numbers."""

    name: str
    proto: Message
    raw: Raw | None = None


def tensor_of(source: Source, held: Held) -> Tensor:
    """The tensor of a weight, whose numbers are read when they are asked for."""
    proto, raw = held.proto, held.raw
    label = f"{quoted(held.name)} in {source.name}"
    shape = tuple(proto.dims)
    if len(shape) > MAX_DIMENSIONS or any(extent < 0 for extent in shape):
        raise UnreadableError(f"{label} has an impossible shape", DAMAGED_HINT)
    dtype = DTYPE_NAMES.get(proto.data_type, "unknown")
    if dtype not in DTYPES:
        return Tensor(dtype, shape, None)
    place = partial(strided_tensor, label, dtype, shape, contiguous_strides(list(shape)), 0)
    if proto.data_location == EXTERNAL:
        external = external_data(source, proto)
        need = Tensor(dtype, shape, None).size * DTYPES[dtype][0]
        size = need if external.length is None else external.length
        return place(size, partial(read_external, source, external))
    if raw and raw.end > raw.start:
        return place(raw.end - raw.start, partial(read_from, source, raw.start))
    if proto.HasField("raw_data") and proto.raw_data:
        data = proto.raw_data
        return place(len(data), lambda offset, length: data[offset : offset + length])
    return Tensor(dtype, shape, partial(typed_numbers, label, shape, held))


def typed_numbers(label: str, shape: tuple[int, ...], held: Held) -> Array:
    """Numbers that are written as numbers and not as bytes."""
    import numpy as np
    from onnx import numpy_helper

    if (held.raw and held.raw.dropped) or Tensor("", shape, None).size > largest_tensor():
        raise UnreadableError(f"{label} has more elements than a per-channel tensor has", "Check what the file holds.")
    try:
        values: Array = np.asarray(numpy_helper.to_array(held.proto)).reshape(shape)
    except (ValueError, TypeError):
        raise UnreadableError(f"{label} has numbers that do not fit its shape", DAMAGED_HINT) from None
    return values if values.dtype.kind in "iub" or values.dtype == np.float64 else values.astype(np.float32)


class External(NamedTuple):
    """Where the numbers of a weight lie in a file beside the model."""

    file: str
    offset: int
    length: int | None


def external_data(source: Source, proto: Message) -> External:
    entries = {entry.key: entry.value for entry in proto.external_data}
    numbers = [entries.get("offset", "0"), entries.get("length", "0")]
    if "location" not in entries or not all(text.isascii() and text.isdigit() and len(text) < 19 for text in numbers):
        raise UnreadableError(f"{quoted(proto.name)} in {source.name} has no proper place", DAMAGED_HINT)
    offset, length = map(int, numbers)
    return External(entries["location"], offset, length if "length" in entries else None)


def open_external(source: Source, file: str) -> Source:
    try:
        return source.sibling(file)
    except UsageError as error:
        raise UnreadableError(
            f"{source.name} needs a file that cannot be opened: {error.message}",
            "Copy the external data beside the model.",
        ) from None


def read_external(source: Source, external: External, offset: int, length: int) -> bytes:
    return open_external(source, external.file).read(external.offset + offset, length)


def check_external(source: Source, protos: Iterable[Message]) -> None:
    """UnreadableError where a file with weights is missing or too short."""
    ends: dict[str, int] = {}
    for proto in protos:
        if proto.data_location == EXTERNAL:
            external = external_data(source, proto)
            ends[external.file] = max(ends.get(external.file, 0), external.offset + (external.length or 0))
    for file, end in sorted(ends.items()):
        opened = open_external(source, file)
        if opened.size < end:
            raise UnreadableError(
                f"{opened.name} has {opened.size:,} bytes, and {source.name} says it has {end:,}", DAMAGED_HINT
            )


# -- the graph


@dataclass(frozen=True, slots=True)
class Call:
    """A BatchNormalization node and what its inputs are, by part.

    `names` are what the node calls them, `held` the weights they are, `computed` those computed from the data.
    """

    node: str
    names: Mapping[str, str]
    held: Mapping[str, Held]
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
    held: dict[str, Held] = field(default_factory=dict)
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

    def find(self, name: str) -> Held | None:
        return next((scope.held[name] for scope in self.around if name in scope.held), None)

    def is_fixed(self, name: str) -> bool:
        return any(name in scope.fixed for scope in self.around)

    def is_computed(self, name: str) -> bool:
        """Whether the value is made from data, and neither a weight nor given from outside."""
        return not any(name in known for scope in self.around for known in (scope.fixed, scope.held, scope.given))

    def is_repeated(self, name: str) -> bool:
        """Whether the value is repeated for each sample, as InstanceNorm does with statistics to use BatchNorm."""
        return any(name in scope.repeated for scope in self.around)

    def shape(self, name: str) -> list[int | str]:
        return next((scope.shapes[name] for scope in self.around if name in scope.shapes), [])

    def merges_samples(self, name: str) -> bool:
        """Whether the value is a view that moves the samples of a batch into its channels, as InstanceNorm needs it."""
        shape, source = self.shape(name), self.shape(self.reshaped.get(name, ""))
        return bool(shape and len(shape) == len(source) and shape[0] == 1 and shape[2:] == source[2:])


def batchnorm_calls(model: Message, initializers: dict[str, Held], name: str) -> Iterator[Call]:
    """The nodes that are BatchNorm layers, in the order of the graph, those in subgraphs and functions included."""
    for node in nodes_of(model, initializers, name):
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


def nodes_of(model: Message, initializers: dict[str, Held], name: str) -> Iterator[Node]:
    """All nodes but calls of functions, in the order of the graph, those in subgraphs and functions included."""
    functions = {(function.domain, function.name): function for function in model.functions}
    running = [graph_scope(model.graph, opset_of(model), None, initializers)]
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
        graphs = [graph for found in attributes.values() for graph in (found.g, *found.graphs) if graph.node]
        if not graphs:
            follow(node, attributes, scope)
        running.extend(graph_scope(graph, scope.opset, scope, {}) for graph in reversed(graphs))


def opset_of(message: Message) -> int:
    """The version of the standard operators that a model or function uses."""
    versions = [opset.version for opset in message.opset_import if opset.domain in STANDARD_DOMAINS]
    return max(versions, default=1)


def graph_scope(graph: Message, opset: int, outer: Scope | None, initializers: dict[str, Held]) -> Scope:
    held = initializers or {proto.name: Held(proto.name, proto) for proto in graph.initializer}
    path = outer.path if outer else ""
    scope = Scope(iter(graph.node), opset, outer, path, dict(held), set(held))
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
        held = caller.find(actual)
        if held:
            scope.held[formal] = held
        if caller.is_fixed(actual):
            scope.fixed.add(formal)
        elif not caller.is_computed(actual):
            scope.given.add(formal)
        scope.shapes[formal] = caller.shape(actual)
    return scope


def attributes_of(node: Message, scope: Scope) -> dict[str, Message]:
    """The attributes of a node by name. One that refers to an attribute of the function is that attribute."""
    found = {}
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            found[attribute.name] = attribute
        elif attribute.ref_attr_name in scope.attributes:
            found[attribute.name] = scope.attributes[attribute.ref_attr_name]
    return found


def follow(node: Message, attributes: Mapping[str, Message], scope: Scope) -> None:
    """Writes down what the outputs of a node are made from."""
    if not node.output:
        return
    made = node.output[0]
    if node.op_type == "Constant":
        scope.fixed.add(made)
        if "value" in attributes:
            scope.held[made] = Held(made, attributes["value"].t)
        return
    inputs = [name for name in node.input if name]
    if inputs and all(map(scope.is_fixed, inputs)):
        scope.fixed.update(node.output)
    if node.op_type in COPIES and inputs and (held := scope.find(inputs[0])):
        scope.held[made] = held
    if node.op_type == "Tile":
        scope.repeated.add(made)
    if node.op_type == "Reshape" and inputs:
        scope.reshaped[made] = inputs[0]


def batchnorm_call(node: Message, attributes: Mapping[str, Message], scope: Scope) -> Call | None:
    """The node as a layer; None where the operator serves another purpose."""
    if len(node.input) != 1 + len(PARTS) or scope.is_fixed(node.input[0]):
        return None  # the second standardises weights
    names = dict(zip(PARTS, node.input[1:], strict=True))
    held = {part: held for part, given in names.items() if (held := scope.find(given))}
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    classes = LISTED_TEXT.findall(metadata.get(CLASSES, ""))
    if any(map(INSTANCE_NORM.search, classes)) or scope.is_repeated(names["running_mean"]):
        return None
    kept = any(part in held and held[part].name.endswith(part) for part in STATISTICS)
    if not kept and scope.merges_samples(node.input[0]):
        return None
    training = mode_of(node, attributes, scope.opset)
    name = node.name or (node.output[0] if node.output else "")
    return Call(
        node=f"{scope.path}{name}",
        names=names,
        held=held,
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


# -- which layer feeds which


def connections_of(source: Source, names: Sequence[str]) -> tuple[Connection, ...]:
    """The pairs of layers that the graph joins; it is read once more, as few ask for them.

    Args:
        source: the model.
        names: those of the layers of its calls of BatchNormalization, in the order of the calls.
    """
    model, places = parse(source)
    held = {
        proto.name: Held(proto.name, proto, place) for proto, place in zip(model.graph.initializer, places, strict=True)
    }
    joined = Joined(source.name)
    coming = iter(names)
    for node in nodes_of(model, held, source.name):
        trails = node.scope.trails
        trail = trails.get(node.node.input[0]) if node.node.input else None
        if node.batchnorm_call():
            found = joined.normalised(trail, next(coming, None))
        elif trail and node.node.domain in STANDARD_DOMAINS:
            found = trail_through(source, trail, node)
        else:
            found = None
        if found and node.node.output:
            trails[node.node.output[0]] = found
    return joined.connections()


def trail_through(source: Source, trail: Trail, node: Node) -> Trail | None:
    """Where a trail leads through a node, other than BatchNormalization."""
    kind, attributes = node.node.op_type, node.attributes
    if kind == "Relu":
        return trail.activated(RELU)
    if kind == "Clip":
        return trail.activated(RELU6 if bounds_of(source, node) == (0, 6) else None)
    names = [*node.node.input[1:3], "", ""][:2]  # the bias may be left out
    weight, bias = (node.scope.find(name) if name else None for name in names)
    if weight is None or (names[1] and bias is None):
        return None
    held, added = tensor_of(source, weight), tensor_of(source, bias) if bias else None
    if kind == "Conv":
        settings = {name: list(attributes[old].ints) for name, old in CONV_ATTRIBUTES.items() if old in attributes}
        groups = attributes["group"].i if "group" in attributes else 1
        padded = "auto_pad" in attributes and attributes["auto_pad"].s not in (b"NOTSET", b"VALID")
        return trail.mixed(held, added) if is_pointwise(held, {**settings, "groups": groups}) and not padded else None
    if kind == "Gemm":
        numbers = {name: attributes[name].i for name in ("transA", "transB") if name in attributes}
        scales = [attributes[name].f for name in ("alpha", "beta") if name in attributes]
        as_in_torch = numbers.get("transB") == 1 and not numbers.get("transA") and set(scales) <= {1.0}
        return trail.mixed(held, added) if as_in_torch and is_linear(held, two_dimensional=True) else None
    return None


def bounds_of(source: Source, node: Node) -> tuple[float | None, float | None]:
    """The smallest and the largest output of a Clip; None where it is not known."""
    bounds = [node.attributes[name].f if name in node.attributes else None for name in ("min", "max")]
    for place, name in enumerate(node.node.input[1:3]):
        held = node.scope.find(name)
        tensor = tensor_of(source, held) if held else None
        bounds[place] = float(tensor.read().reshape(-1)[0]) if tensor and tensor.read and tensor.size == 1 else None
    return bounds[0], bounds[1]


# -- the layers


class Layers:
    """The layers of the model by name. A layer that is called twice is one."""

    def __init__(self, source: Source, strip: Callable[[str], str]) -> None:
        self.source = source
        self.strip = strip
        self.made: dict[str, BatchNormLayer] = {}
        self.weights: dict[str, tuple[str, ...]] = {}

    def add(self, call: Call) -> str:
        """Takes note of a call; the name of its layer."""
        name = layer_name(call)
        weights = tuple(call.held[part].name if part in call.held else "" for part in PARTS)
        if self.weights.get(name, weights) != weights:
            name = call.node  # exporters let equal weights of several layers share one name
        if name not in self.made or call.training.value:
            self.weights[name] = weights
            self.made[name] = self.layer(name, call)
        return self.made[name].name

    def layer(self, name: str, call: Call) -> BatchNormLayer:
        own = {part: tensor_of(self.source, held) for part, held in call.held.items() if part not in call.computed}
        for part in STATISTICS:
            if part not in own and part not in call.computed:
                own[part] = Tensor("unknown", (), None)  # made from weights, or an input of the model
        statistic = own.get("running_mean")
        class_path = call.classes[-2] if len(call.classes) > 1 else ""
        kind = class_path.rpartition(".")[2]
        named = bool(BATCH_NORM.search(kind))
        channels = call.shape[1] if len(call.shape) > 1 else None
        return BatchNormLayer(
            name=self.strip(name),
            group="",
            stored_name=name,
            kind=stored(kind) if named else inferred(KIND_BY_DIMENSIONS.get(len(call.shape), UNTOLD)),
            class_path=class_path if named else None,
            num_features=next(
                (tensor.size for tensor in own.values() if tensor.read is not None),
                channels if isinstance(channels, int) and channels else None,
            ),
            eps=call.eps,
            momentum=call.momentum,
            affine=inferred(True),  # the inputs are always there
            track_running_stats=inferred(not call.computed),
            training=call.training,
            baked=True,
            dtype=statistic.dtype if statistic and statistic.read is not None else None,
            **read_tensors(own),
        )


def layer_name(call: Call) -> str:
    """The name of the module that a node was, by what the exporter wrote, or by the names of its weights."""
    if len(call.scopes) > 1 and len(call.scopes) == len(call.classes) and BATCH_NORM.search(call.classes[-2]):
        return call.scopes[-2]
    for parts in (STATISTICS, ("weight", "bias")):
        votes: Counter[str] = Counter()
        for part in parts:
            held = call.held.get(part)
            for given in (call.names[part], held.name if held else ""):
                prefix, _, last = given.rpartition(".")
                if prefix and last == part:
                    votes[prefix] += 1
                    break
        if votes:
            return votes.most_common(1)[0][0]
    return call.node
