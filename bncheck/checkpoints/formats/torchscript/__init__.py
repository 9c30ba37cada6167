"""TorchScript archives (`torch.jit.save`, and `.ptl` for mobile): a zip file with modules, tensors and code.

data.pkl holds the tree of modules with parameters, buffers and, of scripted modules, `training`. eps, momentum and
the rest stand in the code: as constants of a scripted class, and in the calls of batch_norm. A call is that of a layer
if the statistics it is given are that layer's. A traced call has its mode as a constant, which eval() does not change.
Where the sources contradict each other, or a call has no layer, a setting stays unknown.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from bncheck.checkpoints.contents.connections import Joined
from bncheck.checkpoints.contents.kinds import UNTOLD
from bncheck.checkpoints.contents.modules import TORCH_BATCHNORM, items, module_group, walk
from bncheck.checkpoints.contents.state_dicts import COUNTER, STATISTICS, TENSORS, read_tensors
from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, TensorRecord, storage_of
from bncheck.checkpoints.encodings.pickles import MAX_BYTES, Dictionary, Global, Object, read_pickle
from bncheck.checkpoints.encodings.zip_archive import LOCAL_HEADER, LOCAL_MAGIC, ZipArchive, open_archive
from bncheck.checkpoints.formats.torch_zip import Storages
from bncheck.checkpoints.formats.torchscript.code import (
    Attribute,
    BatchNormCall,
    ClassCode,
    Literal,
    TensorConstant,
    Value,
    read_classes,
)
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint, Connection, GlobalReference, Group, Tensor
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, Known, Setting, StatisticsUse, inferred, stored
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bncheck.checkpoints.sources import Source

FORMAT = "TorchScript"
CLASSES = "__torch__"
FIRST_STORAGE = re.compile(rb"[^/]+/data/0")
# Classes of one name are told apart by a part like "___torch_mangle_7".
MANGLE = re.compile(r"___torch_mangle_\d+\.")
# Code of this many bytes in all is read. A scripted BatchNorm has 2,000, and that of most models is below a million.
MAX_CODE = 4 * 2**20
MAX_CODE_FILES = 10_000
# The calls of batch_norm that are assigned to layers, counted for each module of their class.
MAX_CALLS = 20_000
MAX_DEPTH = 1000

WITHOUT_CODE = "the file has no code, or more than is read: eps, momentum and mode of its layers are not known from it"

Codes = dict[str, ClassCode]
T = TypeVar("T")


def recognises(source: Source) -> bool:
    """A zip file with the entries of TorchScript."""
    if source.size < LOCAL_HEADER.size or source.read(0, 4) != LOCAL_MAGIC:
        return False
    try:
        names = open_archive(source).entries
    except UnreadableError:
        # It breaks off before its table of contents, and must not be passed over. Storages come first, in other
        # zip files of torch the pickle.
        return bool(FIRST_STORAGE.match(source.read(LOCAL_HEADER.size, min(source.size - LOCAL_HEADER.size, 256))))
    return bool(root_of(names) or old_root_of(names))


def root_of(names: Iterable[str]) -> str:
    """The folder with data.pkl and constants.pkl, with a slash at its end; "" where there is not exactly one."""
    known = set(names)
    roots = [name.removesuffix("constants.pkl") for name in known if name.endswith("/constants.pkl")]
    roots = [root for root in roots if root.count("/") == 1 and f"{root}data.pkl" in known]
    return roots[0] if len(roots) == 1 else ""


def old_root_of(names: Iterable[str]) -> str:
    """The folder of an archive that torch before 1.4 wrote: modules in JSON beside their code."""
    known = set(names)
    roots = [name.removesuffix("model.json") for name in known if name.endswith("/model.json") and name.count("/") == 1]
    return roots[0] if roots and any(name.startswith(f"{roots[0]}code/") for name in known) else ""


def read(source: Source) -> Checkpoint:
    """The checkpoint in a TorchScript archive.

    Raises:
        UnreadableError: the file is damaged.
        UnsupportedError: torch before 1.4 wrote it.
    """
    archive = open_archive(source)
    root = root_of(archive.entries)
    if not root:
        raise UnsupportedError(
            f"{source.name} is a TorchScript archive of torch before 1.4, which is not read",
            "Load it with torch.jit.load of torch 1.4 or later, and save it again.",
        )
    storages = Storages(archive, root)
    pickle = read_pickle(archive.read(f"{root}data.pkl", MAX_BYTES), source.name, CONSTRUCTORS, storage_of)
    references = tuple(sorted(reference for reference in pickle.globals if not is_own(reference)))
    if not is_script_module(pickle.value):
        return Checkpoint(source.name, FORMAT, (), references)
    assert isinstance(pickle.value, Object)
    codes = read_code(archive, root, pickle.globals)
    tree = tree_of(pickle.value, codes, source.name)
    assigned = assign_calls(tree)
    if assigned is None:
        codes, tree, assigned = {}, tree_of(pickle.value, {}, source.name), Assigned({}, {})
    group = module_group("", tree.root, storages.tensor)
    modules = {path: module for path, module, _ in walk(tree.root)}
    layers = []
    for layer in group.layers:
        module = modules[layer.stored_name]
        layers.append(settle(layer, module, assigned.of_module.get(id(module), []), tree))
    group = replace(group, layers=tuple(layers))
    if codes:
        group = replace(group, connections=partial(connections_of, tree, layers, storages, archive, root))
    if assigned.frozen:
        group = with_frozen_layers(group, assigned.frozen, archive, root)
    notes = (WITHOUT_CODE,) if group.layers and not codes else ()
    return Checkpoint(source.name, FORMAT, (group,), references, notes=notes)


def is_own(reference: GlobalReference) -> bool:
    """A class in the archive, or a marker of the format: torch.jit.load imports neither."""
    return reference.module in (CLASSES, "torch.jit._pickle") or reference.module.startswith(f"{CLASSES}.")


def is_script_module(value: object) -> bool:
    """A module; objects of other classes of TorchScript hold no tensors that would make a layer of them."""
    return (
        isinstance(value, Object)
        and isinstance(value.state, Dictionary)
        and (value.class_path or "").startswith(f"{CLASSES}.")
    )


# -- the code


def read_code(archive: ZipArchive, root: str, references: Iterable[GlobalReference]) -> Codes:
    """The code of the classes that are referred to, by their path; nothing if it is too much to read."""
    codes: Codes = {}
    calls = 0
    for module, text in code_files(archive, root, {reference.module for reference in references if is_own(reference)}):
        for name, code in read_classes(text, MAX_CALLS + 1 - calls).items():
            codes[f"{module}.{name}"] = code
            calls += len(code.calls)
        if calls > MAX_CALLS:
            return {}
    return codes


def code_files(archive: ZipArchive, root: str, modules: set[str]) -> Iterator[tuple[str, str]]:
    """The code of these modules of Python, one by one; nothing if it is too much to read."""
    files = {module: f"{root}code/{module.replace('.', '/')}.py" for module in sorted(modules)}
    files = {module: file for module, file in files.items() if file in archive.entries}
    if len(files) <= MAX_CODE_FILES and sum(archive.entries[file].size for file in files.values()) <= MAX_CODE:
        for module, file in files.items():
            yield module, archive.read(file, MAX_CODE).decode("utf-8", "replace")


# -- the modules


@dataclass(frozen=True, slots=True)
class Tree:
    """The modules of the archive in the form in which torch pickles an nn.Module."""

    root: Object
    codes: Mapping[int, ClassCode]  # by the identity of the module
    class_paths: Mapping[int, str]  # with the part that tells classes of one name apart


def tree_of(script_root: Object, codes: Codes, source_name: str) -> Tree:
    """Modules with `_buffers` and `_modules`, which TorchScript keeps among the other attributes."""
    made = {id(script_root): inert_module(script_root)}
    code_of: dict[int, ClassCode] = {}
    class_paths: dict[int, str] = {}
    seen: set[int] = set()
    waiting: list[tuple[Object, int]] = [(script_root, 0)]
    while waiting:
        original, depth = waiting.pop()
        if id(original) in seen:
            continue
        seen.add(id(original))
        if depth > MAX_DEPTH:
            raise UnreadableError(
                f"{source_name} nests its modules more than {MAX_DEPTH:,} levels deep", "Check what the file holds."
            )
        module = made[id(original)]
        code = codes.get(original.class_path or "", ClassCode())
        code_of[id(module)] = code
        class_paths[id(module)] = original.class_path or ""
        state = module.state
        assert isinstance(state, Dictionary)
        buffers, modules = Dictionary(), Dictionary()
        state.update(code.constants)
        state["_buffers"], state["_modules"] = buffers, modules
        children: list[Object] = []
        for name, value in items(original.state):
            if isinstance(value, TensorRecord) or (value is None and name in (*TENSORS, COUNTER)):
                buffers[name] = value
            elif isinstance(value, Object) and is_script_module(value):
                modules[name] = made.setdefault(id(value), inert_module(value))
                children.append(value)
            elif name not in ("_parameters", "_buffers", "_modules"):
                state[name] = value
        waiting.extend((child, depth + 1) for child in reversed(children))
    return Tree(made[id(script_root)], code_of, class_paths)


def inert_module(original: Object) -> Object:
    """A module of the class that was scripted or traced, `torch.nn.Linear` for `__torch__.torch.nn.Linear`."""
    path = MANGLE.sub("", original.class_path or "")
    inner = path.removeprefix(f"{CLASSES}.")
    module, _, name = inner.rpartition(".")
    made = Object(Global(module or "__main__", name), ())
    made.state = Dictionary()
    return made


def child_of(module: Object, name: str) -> Object | None:
    children = part_of(module, "_modules")
    child = children.get(name)
    return child if isinstance(child, Object) else None


def part_of(module: Object, name: str) -> Dictionary:
    part = module.state.get(name) if isinstance(module.state, Dictionary) else None
    return part if isinstance(part, Dictionary) else Dictionary()


def holder_of(value: Value, module: Object) -> tuple[Object, str] | None:
    """The module that holds an attribute, and the attribute's name in it."""
    if not isinstance(value, Attribute) or not value.path:
        return None
    holder: Object | None = module
    for name in value.path[:-1]:
        holder = child_of(holder, name) if holder else None
    return (holder, value.path[-1]) if holder else None


# -- which call is that of which layer


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


def is_of_torch(module: Object) -> bool:
    return (module.class_path or "").startswith(TORCH_BATCHNORM)


# -- what the calls say of a layer


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


# -- which layer feeds which


def connections_of(
    tree: Tree, layers: Sequence[BatchNormLayer], storages: Storages, archive: ZipArchive, root: str
) -> tuple[Connection, ...]:
    """The pairs of layers that the code joins; it is read once more, as few ask for them."""
    from bncheck.checkpoints.formats.torchscript.flow import Flow, Method, NotFollowedError, methods_of

    methods: dict[str, dict[str, Method]] = {}
    for module, text in code_files(archive, root, {path.rpartition(".")[0] for path in tree.class_paths.values()}):
        methods |= {f"{module}.{name}": found for name, found in methods_of(text).items()}
    names = {layer.stored_name: layer.name for layer in layers}
    joined = Joined(archive.source.name)
    flow = Flow(
        methods=lambda module: methods.get(tree.class_paths.get(id(module), ""), {}),
        layers={id(module): names[path] for path, module, _ in walk(tree.root) if path in names},
        tensor=partial(storages.tensor, "a weight"),
        joined=joined,
    )
    try:
        flow.follow(tree.root)
    except NotFollowedError:
        return ()
    return joined.connections()


# -- layers that torch.jit.freeze left


def with_frozen_layers(group: Group, frozen: Mapping[str, BatchNormCall], archive: ZipArchive, root: str) -> Group:
    """The group with a layer for each call of batch_norm on constants; freezing keeps no name of a module."""
    data = archive.read(f"{root}constants.pkl", MAX_BYTES)
    constants = read_pickle(data, archive.source.name, CONSTRUCTORS, storage_of).value
    storages = Storages(with_constants_as_data(archive, root), root)
    tensors = dict(group.tensors)
    layers = list(group.layers)
    for name, call in frozen.items():
        given = {part: getattr(call, part) for part in TENSORS}
        records = {
            part: constants[value.index]
            for part, value in given.items()
            if isinstance(value, TensorConstant) and isinstance(constants, tuple) and value.index < len(constants)
        }
        own = {
            part: storages.tensor(f"{name}.{part}", record)
            for part, record in records.items()
            if isinstance(record, TensorRecord)
        }
        if not all(statistic in own for statistic in STATISTICS):
            raise UnreadableError(f"{archive.source.name} misses the constants of {quoted(name)}", DAMAGED_HINT)
        tensors.update({f"{name}.{part}": tensor for part, tensor in own.items()})
        layers.append(frozen_layer(name, group.name, call, own))
    return replace(group, tensors=tensors, layers=tuple(layers))


def with_constants_as_data(archive: ZipArchive, root: str) -> ZipArchive:
    """The archive with the storages of constants.pkl in place of those of data.pkl."""
    constants = copy(archive)
    folder = f"{root}constants/"
    constants.entries = {name: entry for name, entry in archive.entries.items() if name == f"{root}byteorder"}
    for name, entry in archive.entries.items():
        if name.startswith(folder):
            constants.entries[f"{root}data/{name.removeprefix(folder)}"] = entry
    return constants


def frozen_layer(name: str, group: str, call: BatchNormCall, own: dict[str, Tensor]) -> BatchNormLayer:
    statistic = own["running_mean"]
    training = call.training.value if isinstance(call.training, Literal) else None
    known = isinstance(training, bool)
    return BatchNormLayer(
        name=name,
        group=group,
        stored_name=name,
        kind=inferred(UNTOLD),
        num_features=statistic.size,
        eps=agreed(UNKNOWN, set(numbers(call.eps))),
        momentum=agreed(UNKNOWN, set(momenta(call))),
        affine=agreed(UNKNOWN, set(affine_flags(call))),
        track_running_stats=agreed(inferred(True), set(tracking_flags(call))),
        training=stored(bool(training)) if known else UNKNOWN,
        baked=known,
        dtype=statistic.dtype,
        **read_tensors(own),
    )
