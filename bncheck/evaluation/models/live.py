"""A live nn.Module as the subject that its saved file would be.

The module is laid out as the inert records of its pickle, so that the same code recognises its layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bncheck.checkpoints.contents.modules import module_group
from bncheck.checkpoints.contents.torch_objects import TensorRecord
from bncheck.checkpoints.encodings.pickles import Dictionary, Global, Object
from bncheck.subjects.checkpoint import Checkpoint, Group, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class LiveTensor(TensorRecord):
    """A record that keeps the tensor it describes."""

    tensor: torch.Tensor


def live_group(module: torch.nn.Module) -> Group:
    """The group that a module makes: every BatchNorm with its settings as they are now."""
    return module_group("", record_of(module, {}), tensor_of)


def live_checkpoint(module: torch.nn.Module) -> Checkpoint:
    """The checkpoint that the saved module would be, named like its class."""
    return Checkpoint(type(module).__qualname__, "a live module", (live_group(module),))


def record_of(module: torch.nn.Module, made: dict[int, Object]) -> Object:
    """What unpickling the module's file would give; a module that is used twice is one record."""
    if id(module) in made:
        return made[id(module)]
    cls = type(module)
    record = made[id(module)] = Object(Global(cls.__module__, cls.__qualname__), ())
    state = Dictionary()
    for name, value in vars(module).items():
        if value is None or isinstance(value, (bool, int, float, str)):
            state[name] = value
    state["_parameters"] = records_of(module._parameters)
    state["_buffers"] = records_of(module._buffers)
    children = Dictionary()
    for name, child in module._modules.items():
        children[name] = None if child is None else record_of(child, made)
    state["_modules"] = children
    record.state = state
    return record


def records_of(tensors: Mapping[str, Any]) -> Dictionary:
    records = Dictionary()
    for name, tensor in tensors.items():
        records[name] = describe(tensor) if isinstance(tensor, torch.Tensor) else None
    return records


def describe(tensor: torch.Tensor) -> LiveTensor:
    if torch.nn.parameter.is_lazy(tensor):
        return LiveTensor(None, "uninitialized", (), (), 0, tensor)
    return LiveTensor(None, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), (), 0, tensor)


def tensor_of(_label: str, record: TensorRecord) -> Tensor:
    """The numbers of a live tensor, copied to the CPU when they are read; none on the meta device."""
    tensor = record.tensor if isinstance(record, LiveTensor) else None
    if tensor is None or tensor.is_meta or record.dtype == "uninitialized" or tensor.is_quantized:
        return Tensor(record.dtype, record.shape, None)

    def read() -> Any:
        return numbers(tensor.detach())

    def read_part(start: int, stop: int) -> Any:
        return numbers(tensor.detach().reshape(-1)[start:stop])

    return Tensor(record.dtype, record.shape, read, read_part)


def numbers(tensor: torch.Tensor) -> Any:
    values = tensor.cpu()
    if values.is_floating_point() and values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.numpy().copy()
