"""Which probe can say something of which artefact, and why the others cannot."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.evaluation.models.runnable import Runnable


class Probe(Enum):
    """A question to a model that runs."""

    MOVED = "moved in evaluation"
    TRAIN_MODE = "cost of train mode"
    FIT = "fit to the data"
    REPEAT = "repeat"
    COMPANY = "other company"


class Kind(Enum):
    """What differs in what it lets be asked. TorchScript is told by whether its mode can be set."""

    STATE_DICT = "state_dict with --model"
    MODULE = "pickled module"
    SCRIPTED = "TorchScript, scripted"
    TRACED = "TorchScript, traced or frozen"
    EXPORTED = ".pt2"


NOT_WATCHED = "no evaluation of yours was watched; give --evaluator"
NOT_CALLED = "the evaluator did not call the model"
BAKED = "the mode is a constant of the graph, which train() does not change"

# What is not here can be asked.
UNDECIDED: Mapping[tuple[Kind, Probe], str] = {
    (Kind.STATE_DICT, Probe.MOVED): NOT_WATCHED,
    (Kind.TRACED, Probe.TRAIN_MODE): BAKED,
    (Kind.EXPORTED, Probe.TRAIN_MODE): BAKED,
}

# Behind a layer that normalises by the batch, the inputs are those of this evaluation's batches, not of the data.
BAKED_IN_TRAIN_MODE = "the graph runs in train mode, so that what enters its layers depends on the batches"
OPERATORS = "by watching the operators of its graph; nothing is left of what freezing has folded into convolutions"
# How an answer is weaker or comes about differently.
LIMITS: Mapping[tuple[Kind, Probe], str] = {
    (Kind.SCRIPTED, Probe.FIT): OPERATORS,
    (Kind.TRACED, Probe.FIT): OPERATORS,
    (Kind.SCRIPTED, Probe.REPEAT): "the first module that differs is not named: a ScriptModule takes no forward hooks",
    (Kind.TRACED, Probe.REPEAT): "the first module that differs is not named: a ScriptModule takes no forward hooks",
    (Kind.EXPORTED, Probe.FIT): OPERATORS,
    (Kind.EXPORTED, Probe.REPEAT): "the first module that differs is not named: a graph takes no forward hooks",
    (Kind.EXPORTED, Probe.COMPANY): "of a program with one batch size only in batches of that size",
}


def kind_of(runnable: Runnable) -> Kind:
    """Which row of the table a model belongs to."""
    match runnable.artefact:
        case "state_dict":
            return Kind.STATE_DICT
        case "module":
            return Kind.MODULE
        case "torchscript":
            return Kind.SCRIPTED if runnable.can_set_mode else Kind.TRACED
        case "exported":
            return Kind.EXPORTED


def inability(runnable: Runnable, probe: Probe, *, has_evaluator: bool = False) -> str | None:
    """Why a probe cannot say anything of a model; None if it can."""
    if probe is Probe.MOVED and has_evaluator:
        return None
    return UNDECIDED.get((kind_of(runnable), probe))
