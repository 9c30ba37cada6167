"""Builds the model that the user named. Foreign code runs here, and only after `--model` has named it."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bncheck.checkpoints.contents.state_dicts import prefix_stripper
from bncheck.errors import BncheckError, ModelError, UsageError
from bncheck.evaluation.models.live import describe, live_group, tensor_of
from bncheck.pairing.names import align
from bncheck.subjects.checkpoint import Checkpoint, Group, Tensor
from bncheck.subjects.layer import BatchNormLayer, Known, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def architecture(
    spec: str, arguments: Sequence[str] | Mapping[str, Any], python_paths: Sequence[Path]
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
    with foreign_code(f"--model {spec} has no state_dict", "Name a module whose weights can be saved."):
        known = replace(live_group(module), tensors=saved_tensors(module))
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
def foreign_code(failure: str, hint: str) -> Iterator[None]:
    """Around code that is not ours: what it prints goes to stderr, what it raises becomes a ModelError.

    Args:
        failure: how the message starts, "--model net:Net fails", say.
        hint: what the user can do.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except BncheckError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{failure}: {described(error)}", hint) from error


def described(error: BaseException) -> str:
    """Type and message in one line. The traceback of TorchScript ends with what matters, other texts start with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines[: 2 if lines[0].endswith(':') else 1])}"


@contextlib.contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Makes the folders and the current directory importable: a console script does not see the latter by itself."""
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders] + [str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def load_callable(spec: str, option: str = "--model") -> Any:
    """What `module:name` or `file.py:name` refers to; `option` is where the user gave it."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(
            f"{option} {spec} does not name a callable", "Write module:callable or path/to/file.py:callable."
        )
    hint = "Check the name, and --python-path; the current directory is importable."
    with foreign_code(f"{option} {spec} cannot be loaded", hint):
        found: Any = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        for part in name.split("."):
            found = getattr(found, part)
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


def keyword_arguments(arguments: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """`name=value` pairs as keyword arguments."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
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
    note = None
    try:
        with torch.device("meta"):
            made = construct(found, spec, arguments)
    except ModelError as error:  # constructors that read numbers fail on the meta device
        made = construct(found, spec, arguments)
        note = f"{spec} was built on the CPU: on the meta device it raises {type(error.__cause__).__name__}"
    return made, note


def construct(found: Any, spec: str, arguments: dict[str, Any]) -> torch.nn.Module:
    """The module that a class or function makes, as it makes it; an instance is taken as it is."""
    if isinstance(found, torch.nn.Module):
        return found
    with foreign_code(f"--model {spec} fails", "Pass what it needs with --model-arg NAME=VALUE."):
        made = found(**arguments)
    if not isinstance(made, torch.nn.Module):
        raise ModelError(
            f"--model {spec} gives a {type(made).__name__}, not a torch.nn.Module",
            "Name a class or a factory function.",
        )
    return made


# -- what it knows


def with_architecture(group: Group, known: Group) -> tuple[Group, list[str]]:
    """The group with the settings of the architecture where the file has none, and where they were found.

    What does not match is for the rule to say, which compares the tensors of the file with `expected`.
    """
    by_name = {layer.name: layer for layer in known.layers}
    naming = align([layer.name for layer in group.layers], list(by_name))
    remarks = []
    if naming.instead_of:
        remarks.append(f"layers of the architecture were found below {naming.instead_of!r}")
    if naming.put:
        remarks.append(f"layers of the file were found below {naming.put!r} of the architecture")
    layers = []
    matched: set[str] = set()
    for layer in group.layers:
        name = naming.name(layer.name)
        other = by_name.get(name) if name is not None else None
        if other is None:
            layers.append(layer)
            continue
        matched.add(other.name)
        layers.append(completed(layer, other))
    for name, other in by_name.items():
        stored_name = None if name in matched else naming.inverse.name(name)
        if stored_name is not None and has_all_tensors(other, stored_name, group, known):
            layers.append(untracked(other, stored_name, group))
    where = f"{group.name}: " if group.name else ""
    completed_group = replace(group, layers=tuple(layers), expected=known.tensors)
    return completed_group, [f"{where}{remark}" for remark in remarks]


def saved_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """What the state_dict of a module holds. Names of one tensor have one Tensor."""
    held = {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)}
    strip = prefix_stripper(held)
    made = {id(value): tensor_of(name, describe(value)) for name, value in held.items()}
    return {strip(name): made[id(value)] for name, value in held.items()}


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
