"""The front door: from options to what a probe saw. The model, the data, and the user's evaluation."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bncheck.errors import UsageError
from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.data.callables import DataOptions as Reading
from bncheck.evaluation.data.callables import batch_of, open_data
from bncheck.evaluation.models.architecture import importable, load_callable
from bncheck.evaluation.models.runnable import ModelOptions as Loading
from bncheck.evaluation.models.runnable import live_runnable, load_runnable
from bncheck.evaluation.probes.drift import drift
from bncheck.evaluation.probes.repeat import repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.options.model import ModelOptions
    from bncheck.options.probing import Running
    from bncheck.subjects.evaluation import Evaluation

    Subject = str | os.PathLike[str] | torch.nn.Module
    Progress = Callable[[int], None]


def drift_of(
    subject: Subject, data: Any, options: Running, *, evaluator: Any, in_distribution: bool, progress: Progress
) -> Evaluation:
    """What a model does to its statistics, and how they fit the data.

    Args:
        subject: the checkpoint, or a live module.
        data: what `--data` names, or batches.
        options: how the model is made and the data are read.
        evaluator: the user's evaluation, or what `--evaluator` names; None for a plain pass.
        in_distribution: whether the data are like those of the training.
        progress: told the number of samples of each batch that is done.

    Raises:
        BncheckError: the model, the data or the evaluation cannot be made, or fail.
    """
    runnable, batches = opened(subject, data, options)
    with importable(folders_of(options)):
        return drift(
            runnable,
            batches,
            evaluator=evaluator_of(evaluator),
            in_distribution=in_distribution,
            progress=progress,
        )


def repeat_of(
    subject: Subject, data: Any, options: Running, *, evaluator: Any, runs: int, progress: Progress
) -> Evaluation:
    """Whether a model says the same again; arguments as those of `drift_of`, and how many runs."""
    runnable, batches = opened(subject, data, options)
    with importable(folders_of(options)):
        return repeat(
            runnable,
            batches,
            evaluator=evaluator_of(evaluator),
            runs=runs,
            batch_size=options.batch_size,
            progress=progress,
        )


def folders_of(options: ModelOptions) -> Sequence[Path]:
    return tuple(map(Path, options.python_path))


def evaluator_of(evaluator: Any) -> Any:
    """The user's function, loaded where it is named; their folders are importable already."""
    if not isinstance(evaluator, str):
        return evaluator
    with contextlib.redirect_stdout(sys.stderr):
        return load_callable(evaluator, "--evaluator")


def opened(subject: Subject, data: Any, options: Running) -> tuple[Runnable, Data]:
    """The model and the data that the options name."""
    runnable = load_model(subject, options)
    return runnable, load_data(subject, data, options, runnable)


def load_model(subject: Subject, options: ModelOptions) -> Runnable:
    """The model that a checkpoint is or belongs to, or the live module."""
    if not isinstance(subject, (str, os.PathLike)):
        return live_runnable(subject)
    return load_runnable(
        Path(subject),
        Loading(
            model=options.model,
            model_args=options.arguments,
            python_paths=tuple(folders_of(options)),
            main=None if options.main is None else Path(options.main),
            trust_pickle=options.trust_pickle,
            group=options.group,
            device=options.device,
            dtype=options.dtype,
            threads=options.threads,
        ),
    )


def load_data(subject: Subject, data: Any, options: Running, runnable: Runnable) -> Data:
    """What `--data` names, prepared as the options say and what lies beside the checkpoint; or the batches."""
    if not isinstance(data, (str, os.PathLike)):
        return data_of(data)
    return open_data(
        str(data),
        Reading(
            batch_size=runnable.fixed_batch_size or options.batch_size,
            limit=options.limit,
            workers=options.workers,
            input_keys=tuple(options.input_key),
            skip_unreadable=options.skip_unreadable,
            size=options.height_and_width,
            resize=options.resize,
            mean=options.means,
            std=options.stds,
            grayscale=options.grayscale,
            channels_last=options.channels_last,
            beside=Path(subject) if isinstance(subject, (str, os.PathLike)) else Path(),
            python_paths=tuple(folders_of(options)),
        ),
    )


def data_of(batches: Any) -> Data:
    """Batches that somebody holds: a list or a DataLoader, or a function that makes an iterable of them.

    Raises:
        UsageError: it can be read only once.
    """
    if isinstance(batches, Iterator):
        raise UsageError(
            f"a {type(batches).__name__} of batches can be read only once", "Give a list, a DataLoader, or a function."
        )

    def start() -> Generator[Batch, None, None]:
        for item in batches() if callable(batches) else batches:
            yield batch_of(item, "data", ())

    return Data(start, {"kind": "batches", "type": type(batches).__name__})
