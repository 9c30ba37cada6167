"""The BatchNorm layers of a live model and their running statistics: read, copied, written back, compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bncheck.checkpoints.contents.state_dicts import COUNTER, STATISTICS, prefix_stripper

if TYPE_CHECKING:
    from collections.abc import Mapping


def batchnorm_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every BatchNorm below, by name: torch's classes, and what holds running_mean and running_var as buffers.

    The names are those of named_modules without what DataParallel, DistributedDataParallel and torch.compile put
    before them, as in bncheck.checkpoints. A layer that is used in several places has the first of its names.
    InstanceNorm is none: it normalises each sample by itself.
    """
    named = dict(module.named_modules())
    strip = prefix_stripper([name for name in named if name and name != "module"])
    return {strip(name): layer for name, layer in named.items() if is_batchnorm(layer)}


def is_batchnorm(module: nn.Module) -> bool:
    scripted = getattr(module, "original_name", "") if isinstance(module, torch.jit.ScriptModule) else ""
    if isinstance(module, _InstanceNorm) or "InstanceNorm" in scripted:
        return False
    if isinstance(module, _BatchNorm) or scripted.startswith(("BatchNorm", "SyncBatchNorm")):
        return True
    return set(STATISTICS) <= {name for name, _ in module.named_buffers(recurse=False)}


@dataclass(frozen=True, slots=True)
class Statistics:
    """The running statistics of a layer, each None where it has none."""

    mean: Tensor | None
    var: Tensor | None
    counter: Tensor | None


def statistics_of(layer: nn.Module) -> Statistics:
    """The tensors themselves, not copies."""
    buffers = dict(layer.named_buffers(recurse=False))
    return Statistics(*(buffers.get(name) for name in (*STATISTICS, COUNTER)))


def snapshot(layers: Mapping[str, nn.Module]) -> dict[str, Statistics]:
    """Copies of the statistics of the layers."""

    def copied(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().clone()

    live = {name: statistics_of(layer) for name, layer in layers.items()}
    return {name: Statistics(copied(each.mean), copied(each.var), copied(each.counter)) for name, each in live.items()}


def put_back(layers: Mapping[str, nn.Module], saved: Mapping[str, Statistics]) -> None:
    """Writes statistics into the buffers of the layers; a statistic that either side lacks is left as it is."""
    for name, statistics in saved.items():
        own = statistics_of(layers[name])
        for target, values in (
            (own.mean, statistics.mean),
            (own.var, statistics.var),
            (own.counter, statistics.counter),
        ):
            if target is not None and values is not None:
                with torch.inference_mode(target.is_inference()), torch.no_grad():
                    target.copy_(values)


def moved(before: Statistics, after: Statistics) -> bool:
    """Whether running_mean or running_var changed in any bit; NaN that stays NaN has not moved."""
    return any(not same(one, other) for one, other in ((before.mean, after.mean), (before.var, after.var)))


def same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    one = one.to(other)  # an evaluation in half precision, say, casts the model
    return (
        one.shape == other.shape
        and torch.equal(torch.nan_to_num(one.double(), nan=0.5), torch.nan_to_num(other.double(), nan=0.5))
        and torch.equal(one.isnan(), other.isnan())
    )


def updates(before: Statistics, after: Statistics) -> int | None:
    """By how much num_batches_tracked grew; None without a counter."""
    if before.counter is None or after.counter is None:
        return None
    return int(after.counter) - int(before.counter)


def broken(before: Statistics, after: Statistics) -> int:
    """Channels that were finite before and are not any more."""
    if before.mean is None or after.mean is None or before.var is None or after.var is None:
        return 0
    was = before.mean.isfinite() & before.var.isfinite()
    return int((was & ~(after.mean.isfinite() & after.var.isfinite())).sum())
