"""Loads the weights of a file into a model, by bncheck's own readers, which run nothing; and names them as it does."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from bncheck.checkpoints.contents.state_dicts import BESIDE_WRAPPER, COUNTER, STATISTICS, prefix_stripper
from bncheck.checkpoints.encodings.limits import largest_tensor, tensors_up_to
from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.models.foreign import foreign_code
from bncheck.evaluation.statistics import statistics_of
from bncheck.pairing.names import SAME_NAMES, align, modules_of
from bncheck.wording import few, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.subjects.checkpoint import Group, Tensor

EXTRA_STATE = "_extra_state"  # what modules save beside their tensors; objects, which are not read
HINT = "Name the architecture that the file was saved from, with the same --model-arg; all its weights must be there."


def load_weights(module: torch.nn.Module, group: Group, source: str) -> list[str]:
    """Loads a state dict strictly and returns what is worth knowing. The mode of the module is not touched.

    Names are compared without the prefixes of wrappers, and without one that all names of the file have before those
    of the model, or the other way round. Only these may be missing: counters of BatchNorm layers, which old files do
    not have, and names of a tensor that is loaded under another one.

    Raises:
        ModelError: names or shapes differ, or a tensor holds no numbers.
    """
    current = module.state_dict(keep_vars=True)
    own = {name: value for name, value in current.items() if isinstance(value, torch.Tensor)}
    keys, notes = matched(group.tensors, own)
    without_numbers = [name for name, tensor in group.tensors.items() if tensor.read is None and keys[name] in own]
    if without_numbers:
        raise ModelError(
            f"{source} holds no numbers for {few(without_numbers)}",
            "Lazy, quantised and sparse tensors cannot be loaded: save the weights of the model that runs.",
        )
    values = OrderedDict((keys[name], value_of(tensor, own.get(keys[name]))) for name, tensor in group.tensors.items())
    # Readers do not keep the versions of other modules than BatchNorm. Some refuse to be loaded without theirs.
    values._metadata = getattr(current, "_metadata", {})  # type: ignore[attr-defined]
    said = f"{source} does not fit the model"
    try:
        # Whether shapes fit is for the modules to say: some change theirs while they load.
        with foreign_code(said, HINT):
            missing, unexpected = module.load_state_dict(values, strict=False)
    except ModelError:
        misfits = [misfit(name, tensor, own[keys[name]]) for name, tensor in group.tensors.items() if keys[name] in own]
        misfits = [told for told in misfits if told]
        if not misfits:
            raise
        raise ModelError(f"{said}: {few(misfits, 1)}", HINT) from None
    loaded = {id(own[key]) for key in values if key in own}
    missing = [key for key in missing if last(key) not in (COUNTER, EXTRA_STATE) and id(own.get(key)) not in loaded]
    beside = {name for name, _ in module.named_buffers()} | BESIDE_WRAPPER  # buffers that are not saved
    unexpected = [key for key in unexpected if last(key) not in (COUNTER, EXTRA_STATE) and key not in beside]
    if missing or unexpected:
        absent = f"it has no {few(missing)}" if missing else ""
        surplus = f"the model has no {few(unexpected)}" if unexpected else ""
        raise ModelError(f"{said}: {' and '.join(filter(None, (absent, surplus)))}", HINT)
    if any(last(key) == COUNTER and key not in values for key in own):
        notes.append(f"{source} does not have {COUNTER} for all layers; where it is missing it stays as it was built")
    return notes


def last(key: str) -> str:
    return key.rpartition(".")[2]


def matched(names: Iterable[str], own: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The key of the model for each name of the file, and what had to be changed for that."""
    strip = prefix_stripper(own)
    key_of = {strip(key): key for key in own}
    naming = align(modules_of(names), modules_of(key_of))
    if any(naming.name(name) is None and name in key_of for name in names):
        naming = SAME_NAMES  # what lies beside the prefix would be loaded over what lies below it
    notes = []
    if naming.instead_of:
        notes.append(f"the weights of the model were found below {naming.instead_of!r} in the file")
    if naming.put:
        notes.append(f"the weights of the file belong below {naming.put!r} of the model")

    def key(name: str) -> str:
        aligned = naming.name(name)
        own = name if aligned is None else aligned
        return key_of.get(own, own)

    return {name: key(name) for name in names}, notes


def differs(tensor: Tensor, own: torch.Tensor) -> bool:
    lazy = torch.nn.parameter.is_lazy(own)
    return not lazy and tensor.shape != tuple(own.shape) and not tensor.size == own.numel() == 1


def misfit(name: str, tensor: Tensor, own: torch.Tensor) -> str | None:
    if not differs(tensor, own):
        return None
    return f"{name} is {tensor.shape} in the file and {tuple(own.shape)} in the model"


def value_of(tensor: Tensor, own: torch.Tensor | None) -> torch.Tensor:
    """The numbers of a tensor of the file. 16- and 8-bit floats come as float32, which holds them exactly.

    One that the model has no place for need not be read: without numbers, torch can still say what does not fit.
    """
    fits = own is not None and not differs(tensor, own)
    if tensor.read is None or (not fits and tensor.size > largest_tensor()):
        return torch.empty(tensor.shape, device="meta")
    with tensors_up_to(tensor.size):
        values = tensor.read()
    return torch.from_numpy(values.reshape(tensor.shape).copy())


def names_in_file(runnable: Runnable, group: Group) -> dict[str, str]:
    """What the file calls each layer of the model: the weights of a file may lie below a prefix, or above one.

    Raises:
        UsageError: the file has no statistics for a layer.
    """
    own = [name for name, _ in runnable.module.named_buffers(remove_duplicate=False)]
    keys, _ = matched(group.tensors, own)
    strip = prefix_stripper(runnable.module.state_dict(keep_vars=True))
    file_names = {strip(key): name for name, key in keys.items()}
    stored = {}
    for name, layer in runnable.layers.items():
        if statistics_of(layer).mean is None:
            continue
        part = STATISTICS[0]
        key = file_names.get(f"{name}.{part}" if name else part)
        if key is None:
            raise UsageError(
                f"{runnable.source} has no statistics for {quoted(name)}", "Save the model with its BatchNorm buffers."
            )
        stored[name] = key.removesuffix(part).removesuffix(".")
    return stored
