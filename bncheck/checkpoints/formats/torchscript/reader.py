"""What a TorchScript archive holds: the group of its modules, with what its code says of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.connections import Joined
from bncheck.checkpoints.contents.modules import module_group, walk
from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, storage_of
from bncheck.checkpoints.encodings.pickles import MAX_BYTES, Object, read_pickle
from bncheck.checkpoints.encodings.zip_archive import ZipArchive
from bncheck.checkpoints.formats.torch_zip import Storages
from bncheck.checkpoints.formats.torchscript.calls import MAX_CALLS, Assigned, assign_calls
from bncheck.checkpoints.formats.torchscript.code import read_classes
from bncheck.checkpoints.formats.torchscript.frozen import with_frozen_layers
from bncheck.checkpoints.formats.torchscript.settings import settle
from bncheck.checkpoints.formats.torchscript.tree import CLASSES, Codes, Tree, is_script_module, tree_of
from bncheck.subjects.checkpoint import Connection, GlobalReference, Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bncheck.subjects.layer import BatchNormLayer

# Code of this many bytes in all is read. A scripted BatchNorm has 2,000, and that of most models is below a million.
MAX_CODE = 4 * 2**20
MAX_CODE_FILES = 10_000

WITHOUT_CODE = "the file has no code, or more than is read: eps, momentum and mode of its layers are not known from it"


def contents_of(
    archive: ZipArchive, root: str
) -> tuple[tuple[Group, ...], tuple[GlobalReference, ...], tuple[str, ...]]:
    """The groups in an archive, what its pickle refers to outside of it, and notes."""
    storages = Storages(archive, root)
    pickle = read_pickle(archive.read(f"{root}data.pkl", MAX_BYTES), archive.source.name, CONSTRUCTORS, storage_of)
    references = tuple(sorted(reference for reference in pickle.globals if not is_own(reference)))
    if not is_script_module(pickle.value):
        return (), references, ()
    assert isinstance(pickle.value, Object)
    codes = read_code(archive, root, pickle.globals)
    tree = tree_of(pickle.value, codes, archive.source.name)
    assigned = assign_calls(tree)
    if assigned is None:
        codes, tree, assigned = {}, tree_of(pickle.value, {}, archive.source.name), Assigned({}, {})
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
    return (group,), references, notes


def is_own(reference: GlobalReference) -> bool:
    """A class in the archive, or a marker of the format: torch.jit.load imports neither."""
    return reference.module in (CLASSES, "torch.jit._pickle") or reference.module.startswith(f"{CLASSES}.")


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


# -- which layer feeds which


def connections_of(
    tree: Tree, layers: Sequence[BatchNormLayer], storages: Storages, archive: ZipArchive, root: str
) -> tuple[Connection, ...]:
    """The pairs of layers that the code joins; it is read once more, as few ask for them."""
    from bncheck.checkpoints.formats.torchscript.flow import Flow, Method, NotFollowedError, methods_of

    methods: dict[str, dict[str, Method]] = {}
    for module, text in code_files(archive, root, {path.rpartition(".")[0] for path in tree.class_paths.values()}):
        methods |= {f"{module}.{name}": own for name, own in methods_of(text).items()}
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
