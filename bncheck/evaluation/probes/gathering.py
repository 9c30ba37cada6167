"""Gathers over a pass the moments of what enters each layer, weighted by samples, each call of a layer by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bncheck.errors import ModelError
from bncheck.evaluation.models.calls import call
from bncheck.evaluation.observing.moments import ChannelMoments, watching
from bncheck.evaluation.observing.passes import placed_batches
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from bncheck.evaluation.data.batches import Data
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.subjects.layer import Array


@dataclass(slots=True)
class Gathered:
    """The moments of the inputs of one layer over the batches so far; arrays per channel, float64."""

    batches: int = 0  # inputs: one for each call
    samples: int = 0
    mean: Array | None = None
    squares: Array | None = None
    weight: int = 0
    within: Array | None = None  # unbiased variances times samples

    def add(self, one: ChannelMoments) -> None:
        """Adds one input; in float64, by Chan, Golub and LeVeque 1979."""
        mean, squares = one.mean, one.variance * one.count
        self.batches += 1
        if self.mean is None or self.squares is None:
            self.samples, self.mean, self.squares = one.count, mean, squares
        else:
            total = self.samples + one.count
            apart = mean - self.mean
            self.mean = self.mean + apart * (one.count / total)
            self.squares = self.squares + squares + apart**2 * (self.samples * one.count / total)
            self.samples = total
        if one.count > 1:
            weighted = one.unbiased_variance * one.count
            self.within = weighted if self.within is None else self.within + weighted
            self.weight += one.count

    @property
    def within_batch_variance(self) -> Array | None:
        """The mean of the unbiased variances of the batches by their samples; None where every input had one sample."""
        return None if self.within is None else self.within / self.weight

    @property
    def pooled_variance(self) -> Array | None:
        """The unbiased variance of all samples together; None where every input had one sample per channel."""
        return None if self.within is None or self.squares is None else self.squares / (self.samples - 1)


class Calls(ChannelMoments):
    """The inputs of one layer in one forward, each by itself: a layer may be used more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[ChannelMoments] = []

    def add(self, inputs: Tensor) -> None:
        one = ChannelMoments()
        one.add(inputs)
        if one.count:
            self.inputs.append(one)


@dataclass(slots=True)
class Pass:
    """What one pass over the data gave."""

    gathered: dict[str, Gathered]  # by layer
    samples: int = 0
    batches: int = 0
    refusals: list[str] = field(default_factory=list)  # batches that the model does not take

    def notes(self) -> list[str]:
        """What is worth knowing of the batches that were left out."""
        if not self.refusals:
            return []
        return [f"{count(len(self.refusals), 'sample')} in a batch alone left out: {self.refusals[0]}"]


def one_pass(runnable: Runnable, data: Data, layers: Mapping[str, nn.Module], progress: Callable[[int], None]) -> Pass:
    """Measures the inputs of the layers. A batch that the model refuses, such as a single sample, is left out."""
    measured = Pass({name: Gathered() for name in layers})
    for batch in placed_batches(runnable, data):
        calls = {name: Calls() for name in layers}
        try:
            with watching(layers, dict(calls)):
                call(runnable.module, batch.inputs)
        except ModelError as error:
            if batch.size > 1:
                raise
            measured.refusals.append(error.message)
            continue
        for name, called in calls.items():
            for one in called.inputs:
                measured.gathered[name].add(one)
        measured.batches += 1
        measured.samples += batch.size
        progress(batch.size)
    return measured
