"""A model that can be run, from whatever the user has: a state_dict and its architecture, or a file that holds both.

What the file or the architecture is, is run here, and only what the user named or trusted: `--model`, `--main`,
`--trust-pickle`, or a graph that is the checkpoint itself.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch

from bncheck.checkpoints import find_checkpoints, format_of, read_checkpoint
from bncheck.checkpoints.formats import onnx_model, pt2, torchscript
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import BncheckError, ModelError, UsageError
from bncheck.evaluation.models.architecture import (
    construct,
    foreign_code,
    importable,
    keyword_arguments,
    load_callable,
    load_file,
)
from bncheck.evaluation.models.exported import fixed_batch_size, input_tensors, load_program
from bncheck.evaluation.models.live import live_group
from bncheck.evaluation.models.weights import load_weights
from bncheck.evaluation.observing.calls import call, outputs_of, placed, predictions_of, scores_of
from bncheck.evaluation.restoring import batchnorm_layers
from bncheck.wording import count, few, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch.export import ExportedProgram

    from bncheck.evaluation.observing.calls import Inputs
    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

# How the model is called belongs to it.
__all__ = [
    "Artefact",
    "ModelOptions",
    "Runnable",
    "call",
    "load_runnable",
    "outputs_of",
    "placed",
    "predictions_of",
    "scores_of",
]

NAMED_GLOBALS = 5
USUAL = ("torch.", "collections.OrderedDict", "__builtin__.set", "builtins.set")
# Where modules are looked for in what a pickle holds; deeper than anybody saves them.
MAX_DEPTH = 20
SCRIPT = "__main__"  # what a pickle calls the script that it was saved from
DEVICES = ("cpu", "cuda", "mps")
WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


Artefact = Literal["state_dict", "module", "torchscript", "exported"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How the user wants the model to be made."""

    model: str | None = None  # module:callable or file.py:callable
    model_args: Mapping[str, Any] | tuple[str, ...] = ()
    python_paths: tuple[Path, ...] = ()
    main: Path | None = None  # the script with the classes that a pickle calls `__main__.Net`
    trust_pickle: bool = False
    group: str | None = None  # name or glob
    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Runnable:
    """A model that can be called, in the mode in which it came: neither eval() nor train() was called on it."""

    module: torch.nn.Module
    source: str  # the file
    artefact: Artefact
    device: torch.device
    dtype: torch.dtype | None  # floating inputs must be given in it; None where the model has no floating numbers
    modes_are_stored: bool  # False for a state_dict: its modules are as their constructors leave them
    can_set_mode: bool  # False where the mode is a constant of a graph
    can_hook: bool  # False where hooks do not see the layers
    fixed_batch_size: int | None = None  # of an exported program that accepts no other
    layers: Mapping[str, torch.nn.Module] = field(default_factory=dict)  # the live BatchNorm modules by name
    described: tuple[BatchNormLayer, ...] = ()  # what is known of them; for a graph, as bncheck's reader finds it
    program: ExportedProgram | None = None
    notes: tuple[str, ...] = ()

    def place(self, inputs: Inputs) -> Inputs:
        """The inputs on the device of the model, floating ones in its dtype."""
        placed_inputs: Inputs = placed(inputs, self.device, self.dtype)
        return placed_inputs


def load_runnable(path: Path, options: ModelOptions) -> Runnable:
    """The model that a checkpoint is or belongs to.

    - A state_dict in any format goes into the model that `--model` builds on the CPU, strictly. Numbers are read by
      bncheck's own readers. So are those of a pickled module, if `--model` is given.
    - A pickled module is unpickled only if the user trusts it, since that runs whatever the file says.
    - TorchScript is loaded by torch.jit.load, which runs no Python of the file, but its own graph when it is called.
    - An exported program is loaded without its pickles; see `exported.py`.

    Raises:
        UsageError: an option is missing, wrong, or names what is not there.
        ModelError: the code of the user fails, or does not fit the file.
        UnreadableError, UnsupportedError: the file cannot be read.
    """
    device, dtype = device_of(options.device), dtype_of(options.dtype)
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"--threads {options.threads} is no number of threads", "Give 1 or more.")
        torch.set_num_threads(options.threads)
    path = only_file(path)
    with FileSource(path) as source:
        format_ = format_of(source)
        match format_.FORMAT if format_ else None:
            case onnx_model.FORMAT:
                raise ModelError(
                    f"{path} is an ONNX model, which bncheck inspects but does not run",
                    "Give the PyTorch model that it was exported from.",
                )
            case torchscript.FORMAT | pt2.FORMAT as name if options.model:
                raise UsageError(f"{path} is a {name} file and brings its own code", "Leave out --model.")
            case torchscript.FORMAT:
                return described(script(path, device, dtype), source)
            case pt2.FORMAT:
                program = load_program(path, source, device, trusted=options.trust_pickle)
                return described(exported(path, program, device, dtype), source)
            case _:
                return from_checkpoint(path, read_checkpoint(source), options, device, dtype)


def only_file(path: Path) -> Path:
    """The one checkpoint that a path, a folder or a pattern names."""
    found = find_checkpoints(str(path))
    if len(found) > 1:
        raise UsageError(f"{path} holds {count(len(found), 'checkpoint')}: {few(found)}", "Give one of them.")
    return found[0]


# -- where it runs


def device_of(name: str) -> torch.device:
    """The device of `--device`; `auto` is a GPU if there is one."""
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return device_of("cuda") if torch.cuda.is_available() else torch.device("mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICES:
        raise UsageError(f"--device {name} is no device", "Known ones: auto, cpu, cuda, cuda:1, mps.")
    index = device.index or 0
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}[device.type]
    if index >= there:
        raise UsageError(f"--device {name} is not available here", "Use --device cpu, or auto.")
    return torch.device("cuda", index) if device.type == "cuda" else torch.device(device.type)


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype of `--dtype`."""
    dtype = getattr(torch, name, None) if name else None
    if name and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise UsageError(f"--dtype {name} is no floating dtype", "Known ones: float64, float32, bfloat16, float16.")
    return dtype if isinstance(dtype, torch.dtype) else None


def prepared(
    module: torch.nn.Module, device: torch.device, dtype: torch.dtype | None, what: str
) -> tuple[torch.nn.Module, torch.dtype | None]:
    """The module on the device and in the dtype, and the dtype of its inputs: that of its first floating number."""
    empty = next((name for name, tensor in tensors_of(module) if tensor.is_meta), None)
    if empty:
        raise ModelError(
            f"{what} has {quoted(empty)} on the meta device, without numbers", "Build it on the CPU, or load all of it."
        )
    with foreign_code(f"{what} cannot be moved to {device}", "Use --device cpu, or leave out --dtype."):
        moved = module.to(device, dtype)
    return moved, next((tensor.dtype for _, tensor in tensors_of(moved) if tensor.is_floating_point()), None)


def tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


# -- graphs


def described(runnable: Runnable, source: FileSource) -> Runnable:
    """The same with what the reader finds in the graph. One that it cannot read runs all the same."""
    try:
        return replace(runnable, described=read_checkpoint(source).layers)
    except BncheckError as error:
        said = f"eps, momentum and mode of its layers are not known: {error.message}"
        return replace(runnable, notes=(*runnable.notes, said))


def script(path: Path, device: torch.device, dtype: torch.dtype | None) -> Runnable:
    """The module of a TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is old
        with foreign_code(
            f"{path} cannot be loaded", "Script or trace it again with the torch that is installed here."
        ):
            module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    made, input_dtype = prepared(module, device, dtype, str(path))
    if dtype and input_dtype is None:
        raise UsageError(f"{path} is a frozen graph: its numbers cannot be cast to {dtype}", "Leave out --dtype.")
    return Runnable(
        module=made,
        source=str(path),
        artefact="torchscript",
        device=device,
        dtype=input_dtype,
        modes_are_stored=True,
        can_set_mode=reads_mode(module),
        can_hook=False,
        layers=batchnorm_layers(made),
    )


def reads_mode(module: Any) -> bool:
    """Whether the graph of a ScriptModule asks for `training`: a traced or frozen one has its modes as constants.

    A call of batch_norm with a constant mode is one that eval() does not change, except where it has no running
    statistics: weights are standardised like that.
    """
    graph = module.inlined_graph
    asks = any(node.s("name") == "training" for node in graph.findAllNodes("prim::GetAttr"))
    baked = any(
        node.inputsAt(5).node().kind() == "prim::Constant" and node.inputsAt(3).node().kind() == "prim::GetAttr"
        for node in graph.findAllNodes("aten::batch_norm")
    )
    return asks and not baked


def exported(path: Path, program: ExportedProgram, device: torch.device, dtype: torch.dtype | None) -> Runnable:
    """The module of an exported program, whose operators have their modes as constants."""
    with foreign_code(f"{path} cannot be run", "Export it again with the torch that is installed here."):
        module = program.module()
    made, own_dtype = prepared(module, device, dtype, str(path))
    wanted = next((tensor.dtype for tensor in input_tensors(program) if tensor.is_floating_point()), own_dtype)
    return Runnable(
        module=made,
        source=str(path),
        artefact="exported",
        device=device,
        dtype=dtype or wanted,
        modes_are_stored=True,
        can_set_mode=False,
        can_hook=False,
        fixed_batch_size=fixed_batch_size(program),
        layers=batchnorm_layers(made),
        program=program,
    )


# -- state dicts and pickled modules


def from_checkpoint(
    path: Path, checkpoint: Checkpoint, options: ModelOptions, device: torch.device, dtype: torch.dtype | None
) -> Runnable:
    """The model of a file that holds state dicts or pickled modules."""
    group = chosen_group(path, checkpoint, options.group)
    notes: list[str] = []
    if options.model:
        artefact: Artefact = "state_dict"
        module = built(options)
        notes += load_weights(module, group, str(path))
        if group.contents == "module":
            notes.append(f"{path} holds a pickled module, of which only the numbers were read")
    elif group.contents == "module":
        artefact = "module"
        if not options.trust_pickle:
            raise untrusted(path, checkpoint)
        module = unpickled(path, checkpoint, group, options)
    else:
        raise UsageError(
            f"{path} holds a state_dict, which is numbers without a network",
            "Name the network: --model module:callable or --model file.py:callable, with --model-arg NAME=VALUE.",
        )
    if isinstance(module, WRAPPERS):
        notes.append(f"{type(module).__name__} was taken off the model")
        module = module.module
    made, input_dtype = prepared(module, device, dtype, "the model")
    scripted = any(isinstance(inner, torch.jit.ScriptModule) for inner in made.modules())
    return Runnable(
        module=made,
        source=str(path),
        artefact=artefact,
        device=device,
        dtype=input_dtype,
        modes_are_stored=artefact == "module",
        can_set_mode=True,
        can_hook=not scripted,
        layers=batchnorm_layers(made),
        described=live_group(made).layers,
        notes=tuple(notes),
    )


def chosen_group(path: Path, checkpoint: Checkpoint, wanted: str | None) -> Group:
    """The group that the user names, or else the only one with BatchNorm layers, or the only one."""
    groups = checkpoint.groups
    if not groups:
        raise UsageError(f"{path} holds neither a state_dict nor a module", "Give the file with the weights.")
    named = (
        few([quoted(group.name) for group in groups], len(groups)) if len(groups) < 10 else count(len(groups), "model")
    )
    if wanted is not None:
        exact = [group for group in groups if group.name == wanted]
        groups = tuple(exact or [group for group in groups if fnmatchcase(group.name, wanted)])
    elif len(groups) > 1:
        groups = tuple(group for group in groups if group.layers) or groups
    if not groups:
        raise UsageError(f"--group {wanted} names nothing in {path}", f"It holds {named}.")
    if len(groups) > 1:
        raise UsageError(f"{path} holds more than one model: {named}", "Choose one with --group NAME.")
    return groups[0]


def built(options: ModelOptions) -> torch.nn.Module:
    """The model that `--model` names, as its constructor leaves it: on the CPU, in train mode as a rule."""
    assert options.model is not None
    arguments = keyword_arguments(options.model_args)
    with importable(options.python_paths):
        return construct(load_callable(options.model), options.model, arguments)


def untrusted(path: Path, checkpoint: Checkpoint) -> UsageError:
    """Says what `--trust-pickle` allows. What not every module refers to comes first."""
    names = {reference.path for reference in checkpoint.globals}
    ordered = sorted(names, key=lambda name: (name.startswith(USUAL), name))
    return UsageError(
        f"{path} is a pickled module: loading it runs code that the file names ({few(ordered, NAMED_GLOBALS)})",
        "If you trust whoever made it, add --trust-pickle, which allows that. Or name the network with --model: "
        "then only numbers are read.",
    )


def unpickled(path: Path, checkpoint: Checkpoint, group: Group, options: ModelOptions) -> torch.nn.Module:
    """The module of the group, from a file that the user trusts."""
    hint = "Its classes must be importable: see --python-path; the current directory is."
    if options.main is None and any(reference.module == SCRIPT for reference in checkpoint.globals):
        hint = "It was saved by a script that defines its classes: give the script with --main train.py."
    folders = [*options.python_paths, *([options.main.parent] if options.main else [])]
    with (
        importable(folders),
        as_main(options.main),
        warnings.catch_warnings(),
        foreign_code(f"{path} cannot be unpickled", hint),
    ):
        warnings.simplefilter("ignore")  # that the source of a class has changed
        value = torch.load(path, map_location="cpu", weights_only=False)  # noqa: TID251 - the user trusts it
    found = modules_in(value)
    if group.name not in found and len(found) != 1:
        raise ModelError(f"{path} has no module at {quoted(group.name)}", "Save the module alone, with torch.save.")
    return found.get(group.name) or next(iter(found.values()))


@contextlib.contextmanager
def as_main(path: Path | None) -> Iterator[None]:
    """While it lasts, `__main__` has what a script defines. The script is not run as a program."""
    if path is None:
        yield
        return
    with foreign_code(f"--main {path} cannot be loaded", "Give the script that defines the classes of the file."):
        defined = {name: value for name, value in vars(load_file(path)).items() if not name.startswith("__")}
    main = vars(sys.modules[SCRIPT])
    before = {name: main[name] for name in defined if name in main}
    main.update(defined)
    try:
        yield
    finally:
        for name in defined:
            main.pop(name, None)
        main.update(before)


def modules_in(value: object) -> dict[str, torch.nn.Module]:
    """The modules in what a file holds, by the names that the reader of the file gives their places."""
    found: dict[str, torch.nn.Module] = {}
    seen: set[int] = set()

    def visit(met: object, name: str, depth: int) -> None:
        if isinstance(met, torch.nn.Module):
            found[name] = met
            return
        if depth > MAX_DEPTH or id(met) in seen or isinstance(met, (type, torch.Tensor)):
            return
        seen.add(id(met))
        held: Any = ()
        if isinstance(met, dict):
            held = met.items()
        elif isinstance(met, (list, tuple)):
            held = enumerate(met)
        elif hasattr(met, "__dict__"):
            held = vars(met).items()
        for part, inner in list(held):
            visit(inner, f"{name}.{part}" if name else str(part), depth + 1)

    visit(value, "", 0)
    return found


def live_runnable(module: torch.nn.Module) -> Runnable:
    """A module that somebody holds, where it is and in the mode in which it is."""
    first = next((tensor for _, tensor in tensors_of(module) if tensor.is_floating_point()), None)
    return Runnable(
        module=module,
        source=type(module).__qualname__,
        artefact="module",
        device=torch.device("cpu") if first is None else first.device,
        dtype=None if first is None else first.dtype,
        modes_are_stored=True,
        can_set_mode=True,
        can_hook=True,
        layers=batchnorm_layers(module),
        described=live_group(module).layers,
    )
