"""Watches an evaluation as it runs: in which modes the layers were called, and what became of their statistics."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.models.calls import call, scores_of
from bncheck.evaluation.models.foreign import foreign_code
from bncheck.evaluation.restoring import snapshot
from bncheck.wording import count, few, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bncheck.evaluation.data.batches import Batch, Data
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.restoring import Statistics

    Evaluator = Callable[..., Any]
    Modes = dict[str, tuple[bool, bool | None]]  # of each module: training, and tracking where it has that


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


def placed_batches(runnable: Runnable, data: Data) -> Iterator[Batch]:
    """The batches on the device of the model and in its dtype. What a callable of the user's yields stays as it is.

    A graph with one batch size gets no others: the last batch may be smaller, and is left out.
    """
    for batch in data:
        if runnable.fixed_batch_size not in (None, batch.size):
            continue
        yield replace(batch, inputs=runnable.place(batch.inputs))  # type: ignore[arg-type]


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


def modes_of_graph(runnable: Runnable) -> dict[str, bool]:
    """Which layers run in train mode: where the mode is a constant of the graph, the modules' own flags say nothing."""
    if runnable.can_set_mode:
        return {name: bool(getattr(layer, "training", False)) for name, layer in runnable.layers.items()}
    return {layer.name: bool(layer.training.value) for layer in runnable.described if layer.training.is_known}


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


def modes_of(module: torch.nn.Module) -> Modes:
    return {
        name: (bool(getattr(part, "training", False)), getattr(part, "track_running_stats", None))
        for name, part in module.named_modules()
    }


def set_modes(module: torch.nn.Module, modes: Modes) -> None:
    """Puts each module into the mode in which it was seen, past any train() that a class may have overridden."""
    for name, part in module.named_modules():
        if name not in modes:
            continue
        training, tracking = modes[name]
        if getattr(part, "training", training) != training:
            part.training = training
        if tracking is not None and getattr(part, "track_running_stats", tracking) != tracking:
            part.track_running_stats = tracking


# -- the data


def fitting_labels(data: Data, batch: Batch, outputs: Any) -> torch.Tensor | None:
    """The labels of a batch, where the model has as many classes as the data, or enough for every label."""
    scores = scores_of(outputs)
    if batch.labels is None or scores is None or batch.labels.shape != scores.shape[:1]:
        return None
    classes = int(scores.shape[1])
    fits = classes == len(data.classes) if data.classes else int(batch.labels.max()) < classes
    return batch.labels if fits else None


def description_of(data: Data) -> dict[str, object]:
    """What was read and how, with what was left out; complete after a pass."""
    left_out = {"skipped": list(data.skipped)} if data.skipped else {}
    broken = {"non_finite": data.non_finite} if data.non_finite else {}
    return {**data.description, **left_out, **broken}


def data_notes(runnable: Runnable, data: Data, samples: int) -> list[str]:
    """What is worth knowing of the data that were run."""
    notes = []
    if data.skipped:
        notes.append(f"left out as unreadable: {count(len(data.skipped), 'image')} ({few(data.skipped)})")
    if data.non_finite:
        notes.append(f"NaN or infinity in the inputs of {count(data.non_finite, 'sample')}")
    if runnable.fixed_batch_size and data.samples and data.samples > samples:
        left_out = count(data.samples - samples, "sample")
        notes.append(
            f"left out at the end: {left_out}, since the graph takes batches of {runnable.fixed_batch_size} only"
        )
    return notes


# -- the user's evaluation


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
        found = {str(name): number_of(value) for name, value in returned.items()}
        return {name: value for name, value in found.items() if value is not None}
    value = number_of(returned)
    return {} if value is None else {"result": value}


def number_of(value: Any) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    if isinstance(value, (bool, int, float)):
        return float(value)
    return float(value.item()) if hasattr(value, "item") and getattr(value, "size", 0) == 1 else None
