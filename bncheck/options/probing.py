"""What is tried on a model that runs, and what becomes of its file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bncheck.options.asking import Asking
from bncheck.options.data import DataOptions
from bncheck.options.model import ModelOptions
from bncheck.options.option import Counted, Panel, StrPath, option


@dataclass(kw_only=True, eq=False, repr=False)
class Running(ModelOptions, DataOptions, Asking):
    """What every command shares that runs a model on data."""


@dataclass(kw_only=True, eq=False, repr=False)
class Watching(Running):
    """What the commands share that watch an evaluation."""

    evaluator: str | Callable[..., Any] | None = option(
        None,
        "Your own evaluation: function(model, batches).",
        Panel.EXPERIMENT,
        metavar="MODULE:NAME",
        counted=Counted.CODE,
        schema={"type": "string"},
    )


@dataclass(kw_only=True, eq=False, repr=False)
class DriftOptions(Watching):
    """The options of `drift`."""

    in_distribution: bool = option(False, "The data are like the training's: misfits are errors.", Panel.EXPERIMENT)
    channels: bool = option(False, "Arrays per channel in the JSON report.", Panel.REPORT, in_file=False)


@dataclass(kw_only=True, eq=False, repr=False)
class RepeatOptions(Watching):
    """The options of `repeat`."""

    runs: int = option(2, "How often the same batches are evaluated.", Panel.EXPERIMENT, metavar="N", least=2)


class Method(Enum):
    """How statistics are estimated."""

    TRAIN = "train"
    SEQUENTIAL = "sequential"


class Variance(Enum):
    """Which variance is written.

    WITHIN_BATCH is the mean of the unbiased variances of the batches, weighted by their samples: what running_var
    follows in training. POOLED is the unbiased variance of all samples together, larger by that of the batch means.
    """

    WITHIN_BATCH = "within-batch"
    POOLED = "pooled"


@dataclass(kw_only=True, eq=False, repr=False)
class RecalibrateOptions(Running):
    """The options of `recalibrate`."""

    output: StrPath | None = option(
        None,
        "The new checkpoint; of one in shards, a new folder.",
        Panel.EXPERIMENT,
        metavar="NEW",
        flags=("--output", "-o"),
        in_file=False,
    )
    from_: StrPath | None = option(
        None, "Copy this one's statistics; nothing is run.", Panel.EXPERIMENT, metavar="OTHER", in_file=False
    )
    dry_run: bool = option(False, "Say what would change, and write nothing.", Panel.EXPERIMENT, in_file=False)
    force: bool = option(False, "Replace NEW. The input is never replaced.", Panel.EXPERIMENT, in_file=False)
    layer: Sequence[str] = option(
        (), "Only layers of this name; may repeat.", Panel.EXPERIMENT, metavar="GLOB", in_file=False
    )
    method: str = option(
        Method.TRAIN.value,
        "train: one pass by the batch. sequential: passes in eval mode, until nothing moves.",
        Panel.EXPERIMENT,
        metavar="NAME",
        choices=tuple(method.value for method in Method),
        in_file=False,
    )
    variance: str = option(
        Variance.WITHIN_BATCH.value,
        "within-batch, as in training, or pooled, of all samples.",
        Panel.EXPERIMENT,
        metavar="NAME",
        choices=tuple(variance.value for variance in Variance),
        in_file=False,
    )
    keep_frozen: bool = option(
        True,
        "Keep layers in eval mode while the rest trains.",
        Panel.EXPERIMENT,
        flags=("--keep-frozen/--no-keep-frozen",),
        in_file=False,
    )
