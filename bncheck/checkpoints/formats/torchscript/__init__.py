"""TorchScript archives (`torch.jit.save`, and `.ptl` for mobile): a zip file with modules, tensors and code.

data.pkl holds the tree of modules with parameters, buffers and, of scripted modules, `training`. eps, momentum and
the rest stand in the code: as constants of a scripted class, and in the calls of batch_norm. A call is that of a layer
if the statistics it is given are that layer's. A traced call has its mode as a constant, which eval() does not change.
Where the sources contradict each other, or a call has no layer, a setting stays unknown.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.connections import Joined
from bncheck.checkpoints.contents.modules import module_group, walk
from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, storage_of
from bncheck.checkpoints.encodings.pickles import MAX_BYTES, Object, read_pickle
from bncheck.checkpoints.encodings.zip_archive import LOCAL_HEADER, LOCAL_MAGIC, ZipArchive, open_archive
from bncheck.checkpoints.formats.torch_zip import Storages
from bncheck.checkpoints.formats.torchscript.calls import MAX_CALLS, Assigned, assign_calls
from bncheck.checkpoints.formats.torchscript.code import read_classes
from bncheck.checkpoints.formats.torchscript.frozen import with_frozen_layers
from bncheck.checkpoints.formats.torchscript.settings import settle
from bncheck.checkpoints.formats.torchscript.tree import CLASSES, Codes, Tree, is_script_module, tree_of
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint, Connection, GlobalReference

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.layer import BatchNormLayer

FORMAT = "TorchScript"
FIRST_STORAGE = re.compile(rb"[^/]+/data/0")
# Code of this many bytes in all is read. A scripted BatchNorm has 2,000, and that of most models is below a million.
MAX_CODE = 4 * 2**20
MAX_CODE_FILES = 10_000

WITHOUT_CODE = "the file has no code, or more than is read: eps, momentum and mode of its layers are not known from it"


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
