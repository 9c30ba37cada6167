"""The modes of a model's modules, train or eval, and whether they track statistics: read and set, past any train()."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bncheck.evaluation.models.runnable import Runnable

    Modes = dict[str, tuple[bool, bool | None]]  # of each module: training, and tracking where it has that


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


def modes_of_graph(runnable: Runnable) -> dict[str, bool]:
    """Which layers run in train mode: where the mode is a constant of the graph, the modules' own flags say nothing."""
    if runnable.can_set_mode:
        return {name: bool(getattr(layer, "training", False)) for name, layer in runnable.layers.items()}
    return {layer.name: bool(layer.training.value) for layer in runnable.described if layer.training.is_known}
