"""torch.export archives (`.pt2`): a graph as JSON, and one entry for each weight.

In a graph, a BatchNorm is a call of an operator with its settings as constants: training, momentum and eps. So the mode
is known, and eval() does not change it. What the call normalises tells a BatchNorm from what only uses its
operator: weight standardisation, and an InstanceNorm that was lowered to it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

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
from bncheck.checkpoints.contents.modules import BATCH_NORM, INSTANCE_NORM, TORCH_BATCHNORM
from bncheck.checkpoints.contents.state_dicts import (
    COUNTER,
    STATISTICS,
    TENSORS,
    prefix_stripper,
    read_counter,
    read_tensors,
)
from bncheck.checkpoints.encodings.json import parse_json
from bncheck.checkpoints.encodings.pickles import MAX_BYTES, read_pickle
from bncheck.checkpoints.encodings.tensors import MAX_DIMENSIONS, is_count, strided_tensor
from bncheck.checkpoints.encodings.zip_archive import LOCAL_HEADER, LOCAL_MAGIC, STORED, Entry, ZipArchive, open_archive
from bncheck.checkpoints.sources.part import Part
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint, Connection, GlobalReference, Group, Tensor
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, Known, Setting, inferred, stored
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from bncheck.checkpoints.sources import Source

    Json = dict[str, Any]

FORMAT = "torch.export"
MARK = "archive_format"
# What torch wrote before it had this archive.
OLD_GRAPH = "serialized_exported_program.json"
MODELS = "models/"
WEIGHTS = "data/weights/"
CONSTANTS = "data/constants/"
SAMPLE_INPUTS = "data/sample_inputs/"
# In the folder of constants, the files of objects that are pickled without torch.save.
OPAQUE = "opaque_obj_"
SAVED_AGAIN = "With torch 2.9 or later: torch.export.save(torch.export.load(path), new_path)."
# A graph has about two kilobytes for each node, most of it stack traces.
MAX_JSON = 64 * 2**20
# An archive holds a pickle of the sample inputs of each model, and a few of objects that are no plain tensors.
MAX_PICKLES = 1000

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

# torch._export.serde.schema.ScalarType
DTYPE_NAMES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu",
    34: "uint32", 35: "uint64",
}  # fmt: skip
STRIDED_LAYOUT = 7


def recognises(source: Source) -> bool:
    """A zip file with the mark of an export archive."""
    first = first_entry(source)
    if not first or first.endswith("data.pkl"):
        return False  # torch.save writes that first, and its table of contents need not be read twice
    if f"/{WEIGHTS}" in first or is_mark(first):
        return True  # even if the file breaks off
    try:
        return any(map(is_mark, open_archive(source).entries))
    except UnreadableError:
        return False


def first_entry(source: Source) -> str:
    """The name of the first entry of a zip file, empty for anything else."""
    if source.size < LOCAL_HEADER.size:
        return ""
    header = LOCAL_HEADER.unpack(source.read(0, LOCAL_HEADER.size))
    length = min(header[9], source.size - LOCAL_HEADER.size)
    return source.read(LOCAL_HEADER.size, length).decode("utf-8", "replace") if header[0] == LOCAL_MAGIC else ""


def is_mark(name: str) -> bool:
    return name == OLD_GRAPH or name.partition("/")[2] == MARK or name.endswith(f"/{MODELS}model.json")


def read(source: Source) -> Checkpoint:
    """The exported programs in an archive, a group for each.

    Raises:
        UnreadableError: the archive is damaged or contradicts itself.
        UnsupportedError: it was written by an older torch, or holds compiled code and no graph.
    """
    archive = Archive(open_archive(source))
    models = archive.models()
    groups = []
    facts: dict[str, str | int | float] = {}
    for model in models:
        program = archive.json(f"{MODELS}{model}.json")
        if isinstance(program.get("torch_version"), str):
            facts["torch_version"] = program["torch_version"]
        tensors = archive.tensors(WEIGHTS, f"{model}_weights_config.json")
        tensors |= archive.tensors(CONSTANTS, f"{model}_constants_config.json")
        group = group_of(model if len(models) > 1 else "", program, tensors, source.name)
        groups.append(replace(group, connections=partial(connections_of, archive, model, tensors)))
    return Checkpoint(source.name, FORMAT, tuple(groups), tuple(sorted(archive.globals())), facts)


class Archive:
    """The entries of an export archive by their names below its root folder."""

    def __init__(self, archive: ZipArchive) -> None:
        self.archive = archive
        self.source = archive.source
        roots = [name.removesuffix(MARK) for name in archive.entries if is_mark(name) and name.endswith(MARK)]
        self.root = roots[0] if roots else ""
        self.pickled: list[str] = []
        self.big_endian = archive.is_big_endian(self.root)

    def names(self, folder: str) -> list[str]:
        """The names of the entries in a folder, without it."""
        start = f"{self.root}{folder}"
        return [name.removeprefix(start) for name in self.archive.entries if name.startswith(start)]

    def models(self) -> list[str]:
        """The names of the exported programs."""
        name = self.source.name
        models = [entry.removesuffix(".json") for entry in self.names(MODELS) if entry.endswith(".json")]
        weights = set(self.names(WEIGHTS))
        old = not models and OLD_GRAPH in self.archive.entries
        if old or any(f"{model}.pt" in weights for model in models):
            raise UnsupportedError(
                f"{name} is in a layout that torch.export of torch 2.8 and older wrote, which is not read", SAVED_AGAIN
            )
        if not models:
            raise UnsupportedError(
                f"{name} is an archive of torch.export without an exported program, such as compiled code",
                "Give the file that torch.export.save wrote.",
            )
        return models

    def entry(self, name: str) -> Entry:
        entry = self.archive.entries.get(f"{self.root}{name}")
        if entry is None:
            raise UnreadableError(f"{self.source.name} misses its entry {quoted(name)}", DAMAGED_HINT)
        return entry

    def json(self, name: str) -> Json:
        entry = self.entry(name)
        label = f"{quoted(name)} in {self.source.name}"
        if entry.size > MAX_JSON:
            raise UnreadableError(
                f"{label} has {entry.size:,} bytes; at most {MAX_JSON:,} are read", "Check what the file holds."
            )
        return parse_json(self.archive.read(entry.name, MAX_JSON), label)

    def tensors(self, folder: str, config: str) -> dict[str, Tensor]:
        """The tensors that a table of contents of the archive lists, by name."""
        payloads = self.json(f"{folder}{config}").get("config")
        if not isinstance(payloads, dict):
            raise UnreadableError(f"{self.source.name} has no table in {quoted(config)}", DAMAGED_HINT)
        found = {}
        for name, payload in payloads.items():
            path = payload.get("path_name") if isinstance(payload, dict) else None
            # torch.export.load unpickles opaque objects whatever use_pickle says of them.
            if isinstance(path, str) and (payload.get("use_pickle") or path.startswith(OPAQUE)):
                self.pickled.append(f"{folder}{path}")
            tensor = self.tensor(folder, name, payload)
            if tensor:
                found[name] = tensor
        return found

    def tensor(self, folder: str, name: str, payload: object) -> Tensor | None:
        """The tensor of an entry of the table; None for an object of another kind."""
        label = f"{quoted(name)} in {self.source.name}"
        match payload:
            case {"tensor_meta": None}:
                return None
            case {
                "path_name": str(path),
                "use_pickle": bool(pickled),
                "tensor_meta": {
                    "dtype": int(code),
                    "layout": int(layout),
                    "sizes": list(sizes),
                    "strides": list(strides),
                    "storage_offset": offset,
                },
            } if len(sizes) <= MAX_DIMENSIONS and len(strides) <= MAX_DIMENSIONS:
                pass
            case _:
                raise UnreadableError(f"{label} has no dtype, shape or place", DAMAGED_HINT)
        dtype = DTYPE_NAMES.get(code, "unknown")
        entry = self.entry(f"{folder}{path}")
        shape = tuple(count(size, label) for size in sizes)
        holds_numbers = entry.size or 0 in shape
        if pickled or layout != STRIDED_LAYOUT or dtype == "unknown" or not holds_numbers:
            return Tensor(dtype, shape, None)  # a subclass of Tensor, a sparse one, or one without numbers
        return strided_tensor(
            label,
            dtype,
            shape,
            tuple(count(stride, label) for stride in strides),
            count(offset, label),
            entry.size,
            partial(self.archive.read_range, entry),
            big_endian=self.big_endian,
        )

    def globals(self) -> set[GlobalReference]:
        """What the pickles of the archive refer to: torch.export.load unpickles them, sample inputs included."""
        names = [*(f"{SAMPLE_INPUTS}{name}" for name in self.names(SAMPLE_INPUTS)), *self.pickled]
        if len(names) > MAX_PICKLES:
            raise UnreadableError(
                f"{self.source.name} holds more than {MAX_PICKLES:,} pickles", "Check what the file holds."
            )
        found: set[GlobalReference] = set()
        for name in names:
            entry = self.entry(name)
            opaque = name.startswith(f"{CONSTANTS}{OPAQUE}")
            for data in [self.archive.read(entry.name, MAX_BYTES)] if opaque else self.nested_pickles(entry):
                # Only the names matter here, so that storages need no meaning.
                found |= read_pickle(data, f"{quoted(name)} in {self.source.name}", {}, lambda _: None).globals
        return found

    def nested_pickles(self, entry: Entry) -> Iterator[bytes]:
        """The pickles of a file of torch.save that is an entry of the archive."""
        if entry.method != STORED:
            raise UnreadableError(f"{self.source.name} packs {quoted(entry.name)}, as torch never does", DAMAGED_HINT)
        nested = ZipArchive(Part(self.source, self.archive.start(entry), entry.size))
        for name in nested.entries:
            if name.endswith(".pkl"):
                yield nested.read(name, MAX_BYTES)


def count(value: object, label: str) -> int:
    match value:
        case {"as_int": int(number)} if is_count(number):
            return number
        case _:
            raise UnreadableError(f"{label} has an impossible shape, stride or offset", DAMAGED_HINT)


# -- the graph


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


def group_of(name: str, program: Json, tensors: dict[str, Tensor], source_name: str) -> Group:
    """The group that an exported program makes."""
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    for call in batchnorm_calls(program, source_name):
        calls[layer_name(call)].append(call)
    strip = prefix_stripper(tensors)
    layers = tuple(layer_of(strip(layer), layer, name, made, tensors) for layer, made in calls.items())
    return Group(name, "module", {strip(key): tensor for key, tensor in tensors.items()}, layers)


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
        found = trail_through(operator, trail, arguments, node.scope, tensors) if trail else None
        if node.operator in MODES:
            call = node.batchnorm_call()
            found = joined.normalised(trail, strip(layer_name(call)) if call else None)
        if found and made:
            trails[made] = found
    return joined.connections()


def trail_through(
    operator: str, trail: Trail, arguments: Mapping[str, object], scope: Scope, tensors: Mapping[str, Tensor]
) -> Trail | None:
    """Where a trail leads through an operator, other than BatchNorm."""
    plain = {name: plain_value(argument) for name, argument in arguments.items()}
    activation = activation_of(operator.removesuffix("_"), plain)
    if activation:
        return trail.activated(activation)
    weight, bias = (first_name([arguments.get(part)]) for part in ("weight", "bias"))
    held, added = (tensors.get(scope.targets.get(name or "", "")) for name in (weight, bias))
    shape = scope.shape(first_name([arguments.get("input")])) or []
    fits = (operator in CONVOLUTIONS and is_pointwise(held, plain)) or (
        operator == "linear" and is_linear(held, two_dimensional=len(shape) == 2)
    )
    return trail.mixed(held, added) if fits and (added is not None or bias is None) else None


def plain_value(argument: object) -> object:
    """A number, truth value or list of numbers of a graph; None where it is None or anything else."""
    match argument:
        case {"as_int": value} | {"as_float": value} | {"as_bool": value} | {"as_ints": value} | {"as_string": value}:
            return value
        case {"as_none": _}:
            return None
        case _:
            return argument


# -- the layers


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
