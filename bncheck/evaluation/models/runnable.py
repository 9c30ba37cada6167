"""A model that can be run, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from bncheck.evaluation.models.calls import placed
from bncheck.evaluation.models.devices import tensors_of
from bncheck.evaluation.models.live import live_group
from bncheck.evaluation.statistics import batchnorm_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.export import ExportedProgram

    from bncheck.evaluation.models.calls import Inputs
    from bncheck.subjects.layer import BatchNormLayer

Artefact = Literal["state_dict", "module", "torchscript", "exported"]


@dataclass(frozen=True, slots=True)
class Runnable:
    """A model that can be called, in the mode in which it came: neither eval() nor train() was called on it."""

    module: torch.nn.Module
    source: str  # the file
    artefact: Artefact
    device: torch.device
    dtype: torch.dtype | None  # floating inputs must be given in it; None where the model has no floating numbers
    modes_are_stored: bool  # False for a state_dict: its modules are as their constructors leave them
    can_set_mode: bool  # False where the mode is a constant of a graph
    can_hook: bool  # False where hooks do not see the layers
    fixed_batch_size: int | None = None  # of an exported program that accepts no other
    layers: Mapping[str, torch.nn.Module] = field(default_factory=dict)  # the live BatchNorm modules by name
    described: tuple[BatchNormLayer, ...] = ()  # what is known of them; for a graph, as bncheck's reader finds it
    program: ExportedProgram | None = None
    notes: tuple[str, ...] = ()

    def place(self, inputs: Inputs) -> Inputs:
        """The inputs on the device of the model, floating ones in its dtype."""
        placed_inputs: Inputs = placed(inputs, self.device, self.dtype)
        return placed_inputs


def live_runnable(module: torch.nn.Module) -> Runnable:
    """A module that somebody holds, where it is and in the mode in which it is."""
    first = next((tensor for _, tensor in tensors_of(module) if tensor.is_floating_point()), None)
    return Runnable(
        module=module,
        source=type(module).__qualname__,
        artefact="module",
        device=torch.device("cpu") if first is None else first.device,
        dtype=None if first is None else first.dtype,
        modes_are_stored=True,
        can_set_mode=True,
        can_hook=True,
        layers=batchnorm_layers(module),
        described=live_group(module).layers,
    )
