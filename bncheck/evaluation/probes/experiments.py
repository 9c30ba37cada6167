"""The conditions of an experiment: a model whose state is put back, operators held fixed or let go, more precision."""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.models.calls import call
from bncheck.evaluation.observing.operators import Interception, Record, layer_addresses
from bncheck.evaluation.statistics import put_back, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.observing.operators import Statistics as OperatorStatistics

# How much more than its answer to a change of the last bit of its input, or to chance, a network may differ.
AMPLIFIED = 100.0
# Names of modules that a sentence has room for.
NAMED_MODULES = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in the modes of an evaluation, and its BatchNorm layers by name."""

    module: torch.nn.Module
    layers: Mapping[str, torch.nn.Module]
    can_hook: bool


@contextlib.contextmanager
def kept(subject: Subject) -> Iterator[None]:
    """Puts every buffer back afterwards: train mode moves those of BatchNorm, other layers may have others."""
    statistics = snapshot(subject.layers)
    others = {name: buffer.detach().clone() for name, buffer in subject.module.named_buffers()}
    try:
        yield
    finally:
        put_back(subject.layers, statistics)
        with torch.no_grad():
            for name, buffer in subject.module.named_buffers():
                if name in others and buffer.shape == others[name].shape:
                    buffer.copy_(others[name])


def forward(
    subject: Subject,
    inputs: Any,
    samples: int,
    *,
    repeated_noise: bool = False,
    statistics: Mapping[int, OperatorStatistics] | None = None,
    names: Callable[[], str] = lambda: "",
) -> tuple[Any, Record]:
    """One forward with its operators watched, and held fixed as asked."""
    mode = Interception(
        layer_addresses(subject.layers), samples, inside=names, repeated_noise=repeated_noise, statistics=statistics
    )
    with torch.no_grad(), mode:
        out = call(subject.module, inputs)
    return out, mode.record


def in_double(runnable: Runnable) -> Iterator[tuple[Subject, torch.dtype, torch.device]]:
    """The model as a copy in float64 on the CPU, where one can be made, and then as it is."""
    original = getattr(runnable.module, "_orig_mod", runnable.module)
    places = {id(part): name for name, part in original.named_modules()}
    try:
        # Of graphs, torch warns of its own doing: gradients of copies, and an old class in a signature.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            doubled = copy.deepcopy(original).to("cpu", torch.float64)
        parts = dict(doubled.named_modules())
        layers = {name: parts[places[id(layer)]] for name, layer in runnable.layers.items()}
        yield Subject(doubled, layers, runnable.can_hook), torch.float64, torch.device("cpu")
    except (RuntimeError, TypeError, KeyError, NotImplementedError):
        pass  # not every model can be copied or cast: then its own precision has to do
    dtype = next((p.dtype for p in original.parameters() if p.is_floating_point()), torch.float32)
    yield Subject(original, runnable.layers, runnable.can_hook), dtype, runnable.device
