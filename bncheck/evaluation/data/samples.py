"""Batches taken apart into single samples, and put together from them, whatever the form of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def single(inputs: Any, size: int) -> list[Any]:
    """The samples of a batch, each as a batch of one."""

    def part(value: Any, index: int) -> Any:
        if isinstance(value, torch.Tensor):
            return value[index : index + 1] if value.dim() and value.shape[0] == size else value
        if isinstance(value, Mapping):
            return {name: part(inner, index) for name, inner in value.items()}
        return tuple(part(inner, index) for inner in value) if isinstance(value, (tuple, list)) else value

    return [part(inputs, index) for index in range(size)]


def joined(samples: list[Any]) -> Any:
    """Batches of one as one batch."""
    first = samples[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(samples) if first.dim() else first
    if isinstance(first, Mapping):
        return {name: joined([sample[name] for sample in samples]) for name in first}
    return tuple(joined(list(parts)) for parts in zip(*samples, strict=True)) if isinstance(first, tuple) else first
