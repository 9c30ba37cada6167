"""From a path to a model that can be run: a state_dict and its architecture, or a file that holds both.

What the file or the architecture is, is run here, and only what the user named or trusted: `--model`, `--main`,
`--trust-pickle`, or a graph that is the checkpoint itself.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.formats import format_of, onnx_model, pt2, torchscript
from bncheck.checkpoints.search import single_checkpoint
from bncheck.checkpoints.sources import open_source
from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.models.devices import device_of, dtype_of, prepared
from bncheck.evaluation.models.exported import load_program
from bncheck.evaluation.models.foreign import construct, importable, load_callable
from bncheck.evaluation.models.graphs import described, exported, script
from bncheck.evaluation.models.live import live_group
from bncheck.evaluation.models.pickled import unpickled, untrusted
from bncheck.evaluation.models.runnable import Runnable
from bncheck.evaluation.models.weights import load_weights
from bncheck.evaluation.statistics import batchnorm_layers
from bncheck.wording import count, few, quoted

if TYPE_CHECKING:
    from pathlib import Path

    from bncheck.evaluation.models.runnable import Artefact
    from bncheck.options.model import ModelOptions
    from bncheck.subjects.checkpoint import Checkpoint, Group

WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


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
        torch.set_num_threads(options.threads)
    path = single_checkpoint(path)
    with open_source(path) as source:
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
    with importable(options.python_path):
        return construct(load_callable(options.model), options.model, options.arguments)
