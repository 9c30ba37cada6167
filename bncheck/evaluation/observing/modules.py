"""The modules of a model while it runs: which one is running, and what each of them takes and gives."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.models.calls import outputs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def module_names(module: torch.nn.Module) -> Iterator[Callable[[], str]]:
    """A function that names the innermost module that is running; always "" for graphs, whose parts take no hooks."""
    running: list[str] = []
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue

        def enter(_module: torch.nn.Module, _inputs: object, name: str = name) -> None:
            running.append(name)

        def leave(_module: torch.nn.Module, _inputs: object, _outputs: object) -> None:
            if running:
                running.pop()

        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True)]
    try:
        yield lambda: running[-1] if running else ""
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class ModuleRun:
    """One call of a module: what was noted of the tensors that it took, and of those that it returned."""

    name: str
    inputs: Any
    outputs: Any


def module_runs(
    module: torch.nn.Module, note: Callable[[tuple[torch.Tensor, ...]], Any], run: Callable[[], Any]
) -> list[ModuleRun]:
    """The calls of all modules during `run`, in the order in which they ended, and what `note` makes of their tensors.

    Args:
        module: the model; no graph, whose parts take no hooks.
        note: given the floating tensors that a module takes, and those that it returns.
        run: runs the model.
    """
    runs: list[ModuleRun] = []
    pending: list[Any] = []
    handles = []

    for name, part in module.named_modules():

        def enter(_module: torch.nn.Module, args: Any, keywords: Any) -> None:
            pending.append(note(outputs_of((args, keywords))))

        def leave(_module: torch.nn.Module, _args: Any, outputs: Any, name: str = name) -> None:
            if pending:
                runs.append(ModuleRun(name, pending.pop(), note(outputs_of(outputs))))

        handles += [
            part.register_forward_pre_hook(enter, with_kwargs=True),
            part.register_forward_hook(leave),
        ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return runs


def first_that_differs(
    first: list[ModuleRun], second: list[ModuleRun], alike: Callable[[Any, Any], bool]
) -> str | None:
    """The first module whose inputs are alike and whose outputs are not; the innermost one, since it ends first."""
    for one, other in zip(first, second, strict=False):
        if one.name != other.name:
            return None
        if not alike(one.outputs, other.outputs) and alike(one.inputs, other.inputs):
            return one.name or "the model itself"
    return None
