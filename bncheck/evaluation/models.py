"""Builds the model that the user named. Foreign code runs here, and only after `--model` has named it."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.live import live_group
from bncheck.subjects import BatchNormLayer, Checkpoint, Group, Known, Setting
from bncheck.wording import few

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NAMED_LAYERS = 5


def architecture(
    spec: str, arguments: Sequence[str], python_paths: Sequence[Path]
) -> Callable[[Checkpoint], Checkpoint]:
    """A function that adds to a checkpoint what the architecture knows: eps, momentum, affine, tracking, kind.

    Args:
        spec: `module:callable` or `path/to/file.py:callable`, a class, a function or a module instance.
        arguments: `name=value` for the callable, the value a Python literal or else text.
        python_paths: folders to import from, besides the current one.

    Raises:
        UsageError: the spec or an argument is not of that form.
        ModelError: the code cannot be imported or fails.
    """
    with importable(python_paths), contextlib.redirect_stdout(sys.stderr):
        module, note = build(load_callable(spec), spec, keyword_arguments(arguments))
    known = live_group(module)
    notes = (note,) if note else ()

    def complete(checkpoint: Checkpoint) -> Checkpoint:
        said = list(notes)
        groups = []
        for group in checkpoint.groups:
            completed, remarks = with_architecture(group, known)
            groups.append(completed)
            said.extend(remarks)
        return replace(checkpoint, groups=tuple(groups), notes=(*checkpoint.notes, *said))

    return complete


# -- the code that the user named


@contextlib.contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Makes the folders and the current directory importable: a console script does not see the latter by itself."""
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders] + [str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def load_callable(spec: str) -> Any:
    """What `module:name` or `file.py:name` refers to."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(
            f"--model {spec} does not name a callable", "Write module:callable or path/to/file.py:callable."
        )
    try:
        module = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"--model {spec} cannot be loaded: {type(error).__name__}: {error}",
            "Check the name, and --python-path; the current directory is importable.",
        ) from error
    return found


def load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up there
    spec.loader.exec_module(module)
    return module


def keyword_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs as keyword arguments."""
    made: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-arg {argument} is not of the form name=value", "Write num_classes=10, say.")
        try:
            made[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            made[name] = text
    return made


def build(found: Any, spec: str, arguments: dict[str, Any]) -> tuple[torch.nn.Module, str | None]:
    """The module, without memory for its numbers where its constructor allows that, and a note where not."""
    if isinstance(found, torch.nn.Module):
        return found, None
    note = None
    try:
        try:
            with torch.device("meta"):
                made = found(**arguments)
        except Exception as error:  # noqa: BLE001 - constructors that read numbers fail on the meta device
            made = found(**arguments)
            note = f"{spec} was built on the CPU: on the meta device it raises {type(error).__name__}"
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"--model {spec} fails: {type(error).__name__}: {error}", "Pass what it needs with --model-arg NAME=VALUE."
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise ModelError(
            f"--model {spec} gives a {type(made).__name__}, not a torch.nn.Module",
            "Name a class or a factory function.",
        )
    return made, note


# -- what it knows


def with_architecture(group: Group, known: Group) -> tuple[Group, list[str]]:
    """The group with the settings of the architecture where the file has none, and what did not match."""
    by_name = {layer.name: layer for layer in known.layers}
    shift, cut = common_prefix([layer.name for layer in group.layers], list(by_name))
    remarks = []
    if shift:
        remarks.append(f"layers of the architecture were found below {shift!r}")
    if cut:
        remarks.append(f"layers of the file were found below {cut!r} of the architecture")
    layers = []
    matched: set[str] = set()
    unmatched = []
    for layer in group.layers:
        name = cut + layer.name.removeprefix(shift)
        other = by_name.get(name) if layer.name.startswith(shift) else None
        if other is None:
            unmatched.append(layer.name)
            layers.append(layer)
            continue
        matched.add(name)
        if layer.num_features is not None and other.num_features != layer.num_features:
            channels = f"{layer.num_features} channels in the file and {other.num_features} in the architecture"
            remarks.append(f"{layer.name} has {channels}")
        layers.append(completed(layer, other))
    absent = []
    for name, other in by_name.items():
        if name in matched or not name.startswith(cut):
            continue
        stored_name = shift + name.removeprefix(cut)
        if has_all_tensors(other, stored_name, group, known):
            layers.append(untracked(other, stored_name, group))
        else:
            absent.append(name)
    if unmatched:
        remarks.append(f"in the file but not in the architecture: {few(unmatched, NAMED_LAYERS)}")
    if absent:
        remarks.append(f"in the architecture but not in the file: {few(absent, NAMED_LAYERS)}")
    where = f"{group.name}: " if group.name else ""
    return replace(group, layers=tuple(layers)), [f"{where}{remark}" for remark in remarks]


def common_prefix(file_names: Sequence[str], model_names: Sequence[str]) -> tuple[str, str]:
    """What the file's names have before those of the architecture, or the other way round; the most frequent pair."""
    known = set(model_names)
    if known.intersection(file_names) or not known or not file_names:
        return "", ""
    votes: dict[tuple[str, str], int] = {}
    by_end: dict[str, list[str]] = {}
    for name in model_names:
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    for name in file_names:
        for other in by_end.get(name.rpartition(".")[2], []):
            if name.endswith(f".{other}"):
                pair = (name.removesuffix(other), "")
            elif other.endswith(f".{name}"):
                pair = ("", other.removesuffix(name))
            else:
                continue
            votes[pair] = votes.get(pair, 0) + 1
    return max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1]))) if votes else ("", "")


def completed(layer: BatchNormLayer, other: BatchNormLayer) -> BatchNormLayer:
    """The layer with each setting that the file does not store taken from the architecture; never the mode."""

    def chosen(own: Setting[Any], its: Setting[Any]) -> Setting[Any]:
        return own if own.known is Known.STORED or not its.is_known else Setting(its.value, Known.ARCHITECTURE)

    return replace(
        layer,
        kind=chosen(layer.kind, other.kind),
        class_path=layer.class_path or other.class_path,
        num_features=layer.num_features or other.num_features,
        use=other.use,
        eps=chosen(layer.eps, other.eps),
        momentum=chosen(layer.momentum, other.momentum),
        affine=chosen(layer.affine, other.affine),
        track_running_stats=chosen(layer.track_running_stats, other.track_running_stats),
    )


def has_all_tensors(layer: BatchNormLayer, stored_name: str, group: Group, known: Group) -> bool:
    """Whether the file holds all that a layer without statistics stores: weight and bias, or nothing."""
    parts = [key for key in known.tensors if key.rpartition(".")[0] == layer.name]
    return not layer.has("running_mean") and all(
        f"{stored_name}.{key.rpartition('.')[2]}" in group.tensors for key in parts
    )


def untracked(layer: BatchNormLayer, name: str, group: Group) -> BatchNormLayer:
    """A layer that leaves no statistics in the file, as the architecture describes it."""
    values: dict[str, Any] = {}
    for part in ("weight", "bias"):
        tensor = group.tensors.get(f"{name}.{part}")
        if tensor is not None and tensor.read is not None:
            values[part] = tensor.read().reshape(-1)
    described = completed(BatchNormLayer(name, group.name, layer.kind, layer.num_features, name), layer)
    return replace(described, kind=Setting(layer.kind.value, Known.ARCHITECTURE), **values)
