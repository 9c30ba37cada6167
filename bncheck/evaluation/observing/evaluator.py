"""Watches an evaluation as it runs: in which modes the layers were called, and what became of their statistics."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.models.calls import call
from bncheck.evaluation.models.foreign import foreign_code
from bncheck.evaluation.observing.modes import modes_of, modes_of_graph
from bncheck.evaluation.statistics import snapshot
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bncheck.evaluation.data.batches import Batch
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.observing.modes import Modes
    from bncheck.evaluation.statistics import Statistics

    Evaluator = Callable[..., Any]


@dataclass
class Observation:
    """What was seen of an evaluation. Hooks see modules; of a graph only the root is seen."""

    before: dict[str, Statistics] = field(default_factory=dict)
    after: dict[str, Statistics] = field(default_factory=dict)
    forwards: int = 0
    samples: int = 0
    batches: int = 0
    called: dict[str, int] | None = field(default_factory=dict)  # forwards by layer
    training: dict[str, bool] = field(default_factory=dict)  # by layer: was any of its forwards in train mode
    untracked: set[str] = field(default_factory=set)  # layers called in train mode with track_running_stats off
    modes: Modes = field(default_factory=dict)  # by module: training, tracking
    metrics: dict[str, float] = field(default_factory=dict)


def observe(runnable: Runnable, batches: Callable[[], Iterator[Batch]], evaluator: Evaluator | None) -> Observation:
    """Runs the evaluation once, in the modes in which the model is, and leaves the model as it then is.

    Args:
        runnable: the model.
        batches: starts a pass over the data.
        evaluator: the user's evaluation, `function(model, batches)` or `function(model)`; None for a loop over the
            data.
    """
    seen = Observation(before=snapshot(runnable.layers))
    with watched(runnable, seen) as model:
        if evaluator is None:
            with torch.no_grad():
                for batch in batches():
                    call(model, batch.inputs)
        else:
            seen.metrics = metrics_of(run_evaluator(evaluator, model, (batch.item for batch in batches())))
    seen.after = snapshot(runnable.layers)
    return seen


@contextlib.contextmanager
def watched(runnable: Runnable, seen: Observation) -> Iterator[Any]:
    """The model with hooks that write down what happens; a graph behind a function that does."""

    def first_of(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.forwards += 1
        seen.samples += batch_size((*inputs, *keywords.values()))
        seen.batches += 1
        if not seen.modes:
            seen.modes = modes_of(runnable.module)

    if not runnable.can_hook:
        seen.called = None
        seen.training = modes_of_graph(runnable)
        yield Watchable(runnable.module, first_of)
        return

    def root(_module: torch.nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        first_of(inputs, keywords)

    def layer(module: torch.nn.Module, _inputs: object, name: str) -> None:
        assert seen.called is not None
        seen.called[name] = seen.called.get(name, 0) + 1
        seen.training[name] = seen.training.get(name, False) or module.training
        if module.training and getattr(module, "track_running_stats", None) is False:
            seen.untracked.add(name)

    # Each hook knows its name, since an evaluation may run a copy of the model, which copies the hooks.
    handles = [runnable.module.register_forward_pre_hook(root, with_kwargs=True)]
    handles += [module.register_forward_pre_hook(partial(layer, name=name)) for name, module in runnable.layers.items()]
    try:
        yield runnable.module
    finally:
        for handle in handles:
            handle.remove()


class Watchable:
    """A graph that tells of each call; everything else is the graph's own."""

    def __init__(self, module: torch.nn.Module, tell: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> None:
        self._module, self._tell = module, tell

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        self._tell(inputs, keywords)
        return self._module(*inputs, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def batch_size(values: Iterable[Any]) -> int:
    return next((int(value.shape[0]) for value in values if isinstance(value, torch.Tensor) and value.dim()), 0)


def run_evaluator(evaluator: Evaluator, model: Any, batches: Iterator[Any]) -> Any:
    """Calls it as `function(model, batches)`, or `function(model)` if it takes one argument."""
    name = getattr(evaluator, "__name__", type(evaluator).__name__)
    try:
        parameters = list(inspect.signature(evaluator).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_batches = len(positional) != 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    hint = "It is called as function(model, batches) or function(model); batches yields what --data holds."
    with foreign_code(f"the evaluation {quoted(name)} fails", hint):
        return evaluator(model, batches) if takes_batches else evaluator(model)


def metrics_of(returned: Any) -> dict[str, float]:
    """The numbers that an evaluation returned, by name; one number alone is called "result"."""
    if isinstance(returned, dict):
        numbers = {str(name): number_of(value) for name, value in returned.items()}
        return {name: value for name, value in numbers.items() if value is not None}
    value = number_of(returned)
    return {} if value is None else {"result": value}


def number_of(value: Any) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    if isinstance(value, (bool, int, float)):
        return float(value)
    return float(value.item()) if hasattr(value, "item") and getattr(value, "size", 0) == 1 else None
