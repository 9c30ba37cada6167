"""From the options of a command to what its probe saw: the model, the data, the user's evaluation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bncheck.errors import UsageError
from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.data.callables import DataOptions, batch_of, open_data
from bncheck.evaluation.models.architecture import importable, load_callable
from bncheck.evaluation.models.runnable import ModelOptions, live_runnable, load_runnable
from bncheck.evaluation.probes.drift import drift
from bncheck.evaluation.probes.repeat import repeat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.subjects.evaluation import Evaluation


def examine(
    command: str, subject: Path | torch.nn.Module, given: Mapping[str, Any], progress: Callable[[int], None]
) -> Evaluation:
    """Runs the probe of a command.

    Args:
        command: "drift" or "repeat".
        subject: the checkpoint, or a live module.
        given: the options of the command line by name; data and evaluator may be the things themselves.
        progress: told the number of samples of each batch that is done.

    Raises:
        BncheckError: the model, the data or the evaluation cannot be made, or fail.
    """
    paths = tuple(given["python_path"] or ())
    if isinstance(subject, Path):
        runnable, data = opened(subject, given)
    else:
        runnable = live_runnable(subject)
        data = load_data(Path(), given, runnable)
    evaluator = given["evaluator"]
    if isinstance(evaluator, str):
        with importable(paths), contextlib.redirect_stdout(sys.stderr):
            evaluator = load_callable(given["evaluator"], "--evaluator")
    with importable(paths):
        if command == "repeat":
            return repeat(
                runnable,
                data,
                evaluator=evaluator,
                runs=given["runs"],
                batch_size=given["batch_size"],
                progress=progress,
            )
        return drift(runnable, data, evaluator=evaluator, in_distribution=given["in_distribution"], progress=progress)


def opened(path: Path, given: Mapping[str, Any]) -> tuple[Runnable, Data]:
    """The model and the data that the options name."""
    runnable = load_model(path, given)
    return runnable, load_data(path, given, runnable)


def load_model(path: Path, given: Mapping[str, Any]) -> Runnable:
    """The model that a checkpoint is or belongs to."""
    return load_runnable(
        path,
        ModelOptions(
            model=given["model"],
            model_args=tuple(given["model_arg"] or ()),
            python_paths=tuple(given["python_path"] or ()),
            main=given["main"],
            trust_pickle=given["trust_pickle"],
            group=given["group"],
            device=given["device"],
            dtype=given["dtype"],
            threads=given["threads"],
        ),
    )


def load_data(path: Path, given: Mapping[str, Any], runnable: Runnable) -> Data:
    """What `--data` names, prepared as the checkpoint and the options say; or the batches themselves."""
    if not isinstance(given["data"], (str, Path)):
        return data_of(given["data"])
    return open_data(
        str(given["data"]),
        DataOptions(
            batch_size=runnable.fixed_batch_size or given["batch_size"],
            limit=given["limit"],
            workers=given["workers"],
            input_keys=tuple(given["input_key"] or ()),
            skip_unreadable=given["skip_unreadable"],
            size=size_of(given["size"]),
            resize=given["resize"],
            mean=numbers_of("--mean", given["mean"]),
            std=numbers_of("--std", given["std"]),
            grayscale=given["grayscale"],
            channels_last=given["channels_last"],
            beside=path,
            python_paths=tuple(given["python_path"] or ()),
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


def size_of(text: str | None) -> tuple[int, int] | None:
    """`224` or `224x160` as (height, width)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--size {text} is no size", "Write 224, or 224x160 for height and width.")
    return int(parts[0]), int(parts[-1])


def numbers_of(option: str, text: str | None) -> tuple[float, ...] | None:
    """`0.485,0.456,0.406`, or one number for all channels."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text} are no numbers", f"Write {option} 0.485,0.456,0.406.") from None
