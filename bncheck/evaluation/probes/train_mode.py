"""What train mode would do to the statistics: a forward pass in train mode on statistics of its own.

A BatchNorm in train mode does not read its running statistics, so all that a forward writes can be told from one that
starts at zero: with momentum m and c calls of the layer, it turns (mean, variance) into (1-m)^c (mean, variance) + u,
where u is what it makes of zeros. So u, divided by 1 - (1-m)^c, is the average of the batch's own statistics; and this
holds for a graph whose layers no hook can reach. With momentum=None the factor is 1/n in place of m, n the counter.
A layer that stays in eval mode, or has a forward of its own, starts at its own statistics, since it may read them; what
it adds to them is the difference, with a few digits less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bncheck.errors import ModelError
from bncheck.evaluation.models.calls import call
from bncheck.evaluation.statistics import Statistics, put_back, snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.evaluation.models.calls import Inputs
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.subjects.layer import BatchNormLayer


@dataclass(slots=True)
class Followed:
    """One layer's statistics in the trial, and the average over the batches; float64, on the CPU."""

    momentum: float | None
    mean: torch.Tensor
    var: torch.Tensor
    counter: int
    batch_mean: torch.Tensor | None = None
    batch_var: torch.Tensor | None = None
    weight: int = 0

    def update(self, made: Statistics, start: Statistics, calls: int, size: int) -> None:
        """Takes what a forward of `size` samples with `calls` calls of the layer made of the statistics `start`."""
        assert made.mean is not None
        assert made.var is not None
        assert start.mean is not None
        assert start.var is not None
        at_start = 0 if start.counter is None else int(start.counter)
        kept, kept_of_start = (share_kept(self.momentum, counter, calls) for counter in (self.counter, at_start))
        self.counter += calls
        if kept_of_start == 1:
            return  # momentum 0: the layer counts and learns nothing
        mean, var = (
            (after.cpu().double() - kept_of_start * before.cpu().double()) / (1 - kept_of_start)
            for after, before in ((made.mean, start.mean), (made.var, start.var))
        )
        self.mean = self.mean * kept + mean * (1 - kept)
        self.var = self.var * kept + var * (1 - kept)
        if self.batch_mean is None or self.batch_var is None:
            self.batch_mean, self.batch_var = torch.zeros_like(mean), torch.zeros_like(var)
        self.weight += size
        share = size / self.weight
        self.batch_mean += (mean - self.batch_mean) * share
        self.batch_var += (var - self.batch_var) * share


def share_kept(momentum: float | None, counter: int, calls: int) -> float:
    """How much of the running statistics is left after some calls of a layer that counted `counter` before."""
    if momentum is None:
        return counter / (counter + calls)
    return float((1 - momentum) ** calls)


def ignores_statistics(layer: torch.nn.Module) -> bool:
    """Whether the layer is in train mode and does not read its running statistics there.

    A forward of its own may read them: a frozen layer does, whatever its mode.
    """
    if not getattr(layer, "training", False):
        return False
    if isinstance(layer, torch.jit.ScriptModule):
        return layer.original_name.startswith(("BatchNorm", "SyncBatchNorm"))
    return type(layer).forward in (_BatchNorm.forward, torch.nn.SyncBatchNorm.forward)


def calls_between(start: Statistics, made: Statistics) -> int:
    """How often a layer was updated: by its counter; once if it moved and has none (old files) or one that stands."""
    if start.var is None or made.var is None:
        return 0
    counted = 0 if start.counter is None or made.counter is None else int(made.counter) - int(start.counter)
    return counted if counted else int(not torch.equal(start.var, made.var))


class TrainModeTrial:
    """Runs batches in train mode and follows the statistics; those of the model stay as they are."""

    def __init__(self, runnable: Runnable, stored: Mapping[str, Statistics], described: Mapping[str, BatchNormLayer]):
        self.runnable, self.stored = runnable, stored
        self.zeros = {
            name: Statistics(
                *(None if tensor is None else torch.zeros_like(tensor) for tensor in (own.mean, own.var, own.counter))
            )
            for name, own in stored.items()
        }
        self.followed: dict[str, Followed] = {}
        for name, own in stored.items():
            layer = described.get(name)
            if own.mean is None or own.var is None or layer is None or not layer.momentum.is_known:
                continue
            self.followed[name] = Followed(
                layer.momentum.value,
                own.mean.cpu().double(),
                own.var.cpu().double(),
                0 if own.counter is None else int(own.counter),
            )
        # What else train mode moves: counters of other layers, codebooks, power iterations.
        statistics = {id(t) for layer in runnable.layers.values() for t in layer.buffers(recurse=False)}
        self.others = [(b, b.detach().clone()) for b in runnable.module.buffers() if id(b) not in statistics]
        self.batches = 0
        self.refused = 0
        self.refusal: str | None = None
        self.by_batches: dict[int, dict[str, Statistics]] = {}

    def run(self, inputs: Inputs, size: int) -> None:
        """One forward in train mode, in which the model already is.

        A batch that the model refuses there, such as a last one of a single sample, is left out and counted.
        """
        layers = self.runnable.layers
        current = snapshot(layers)
        start = {name: self.zeros[name] if ignores_statistics(layers[name]) else own for name, own in current.items()}
        put_back(layers, start)
        try:
            call(self.runnable.module, inputs)
            made = snapshot(layers)
        except ModelError as error:
            self.refused += 1
            self.refusal = self.refusal or error.message
            return
        finally:
            put_back(layers, current)
            for buffer, values in self.others:
                buffer.copy_(values)
        for name, followed in self.followed.items():
            calls = calls_between(start[name], made[name])
            if calls:
                followed.update(made[name], start[name], calls, size)
        self.batches += 1
        if self.batches & (self.batches - 1) == 0:
            self.by_batches[self.batches] = self.statistics()

    def statistics(self) -> dict[str, Statistics]:
        """The statistics that the model would have now, had it been left in train mode."""
        return {name: self.like(name, one.mean, one.var, one.counter) for name, one in self.followed.items()}

    def recalibrated(self) -> dict[str, Statistics]:
        """The statistics of the data: the average over the batches of what each layer saw in train mode."""
        return {
            name: self.like(name, one.batch_mean, one.batch_var, one.counter)
            for name, one in self.followed.items()
            if one.batch_mean is not None and one.batch_var is not None
        }

    def like(self, name: str, mean: torch.Tensor, var: torch.Tensor, counter: int) -> Statistics:
        """The numbers in the dtype and on the device of the layer's own."""
        own = self.stored[name]
        assert own.mean is not None
        assert own.var is not None
        return Statistics(
            mean.to(own.mean), var.to(own.var), None if own.counter is None else torch.full_like(own.counter, counter)
        )
