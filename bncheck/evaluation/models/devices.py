"""Where a model runs, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.models.foreign import foreign_code
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES = ("cpu", "cuda", "mps")


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
