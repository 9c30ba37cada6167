"""The commands as Python functions: `bncheck.inspect(...)`, `bncheck.drift(...)`, `bncheck.diff(...)`.

Each takes the options of its command as keywords, in Python's spelling: `--batch-size 8` is `batch_size=8`, an option
that may repeat is a sequence, and `--model-arg a=1` is `model_args={"a": 1}`. Their types are those of the fields in
`bncheck.options`.
"""

from __future__ import annotations

import inspect as signatures
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from bncheck.errors import UsageError
from bncheck.findings import report as findings
from bncheck.options.asking import InspectOptions
from bncheck.options.comparing import DiffOptions
from bncheck.options.gating import GateOptions
from bncheck.options.option import Options, of_kind, option_of
from bncheck.options.probing import DriftOptions, RecalibrateOptions, RepeatOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    Subject = str | os.PathLike[str] | torch.nn.Module
    Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

P = ParamSpec("P")
Asked = TypeVar("Asked", bound=Options)
Function = TypeVar("Function")


@dataclass(frozen=True, slots=True)
class Report(findings.Report):
    """All that is said about one subject. Same input, same report.

    `verdict` is what it comes to, `findings` the defects with their layer, numbers and fix, `undecided` the rules that
    could not tell and why, `layers` a summary of every layer, `measurements` what was measured on data, and `error` is
    why there is no verdict. `print(report)` shows the text report, and a notebook a table.
    """

    def __str__(self) -> str:
        """The text report, as `print(report)` shows it."""
        from bncheck.reports.text.printed import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from bncheck.reports.html import as_html

        return as_html(self)


def public(report: findings.Report) -> Report:
    """The report as one that shows itself."""
    return Report(**{held.name: getattr(report, held.name) for held in fields(report)})


# -- options as keywords


class OnOne(Protocol[P]):
    """A function of a subject, and the options of a command."""

    def __call__(self, subject: Subject, *_: P.args, **options: P.kwargs) -> Report: ...


class OnTwo(Protocol[P]):
    """A function of two subjects, and the options of a command."""

    def __call__(self, before: Subject, after: Subject, *_: P.args, **options: P.kwargs) -> Report: ...


class OnData(Protocol[P]):
    """A function of a subject and data, and the options of a command."""

    def __call__(self, subject: Subject, data: object = None, *_: P.args, **options: P.kwargs) -> Report: ...


class OnMany(Protocol[P]):
    """A function of paths, and the options of a command."""

    def __call__(self, paths: Paths = (), *_: P.args, **options: P.kwargs) -> tuple[Report, ...]: ...


def described(function: Callable[..., Any], kind: type[Options]) -> Callable[..., Any]:
    """The function with the options in its signature and its docstring."""
    signature = signatures.signature(function)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    held = [one for one in of_kind(kind) if one.name not in signature.parameters]
    keywords = [
        signatures.Parameter(one.name, signatures.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in held
    ]
    function.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
    lines = "\n".join(f"    {one.name}: {option_of(one).help}" for one in held)
    function.__doc__ = f"{signatures.cleandoc(function.__doc__ or '')}\n\nOptions:\n{lines}\n"
    return function


def asked(function: str, kind: type[Asked], given: Mapping[str, Any]) -> Asked:
    """The options that were given as keywords; TypeError for one that there is not."""
    unknown = sorted(set(given) - {held.name for held in fields(kind)})
    if unknown:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")
    return kind(**given)


def on_one(kind: Callable[P, Options]) -> Callable[[Callable[..., Report]], OnOne[P]]:
    return lambda function: described(function, kind)  # type: ignore[arg-type]


def on_two(kind: Callable[P, Options]) -> Callable[[Callable[..., Report]], OnTwo[P]]:
    return lambda function: described(function, kind)  # type: ignore[arg-type]


def on_data(kind: Callable[P, Options]) -> Callable[[Callable[..., Report]], OnData[P]]:
    return lambda function: described(function, kind)  # type: ignore[arg-type]


def on_many(kind: Callable[P, Options]) -> Callable[[Callable[..., tuple[Report, ...]]], OnMany[P]]:
    return lambda function: described(function, kind)  # type: ignore[arg-type]


# -- the functions


@on_one(InspectOptions)
def inspect(subject: Subject, **options: Any) -> Report:
    """What `bncheck inspect` says of one checkpoint, or of a live module.

    Args:
        subject: the path of a checkpoint, which is read and never run; or a module, which is only looked at.

    Raises:
        BncheckError: the file cannot be read, or an argument is wrong.
    """
    from bncheck.commands.inspect import inspection

    return public(inspection(asked("inspect", InspectOptions, options)).report(subject))


@on_two(DiffOptions)
def diff(before: Subject, after: Subject, **options: Any) -> Report:
    """What `bncheck diff` says happened between two checkpoints, or live modules.

    Args:
        before, after: paths of checkpoints, which are read and never run; or modules, which are only looked at.

    Raises:
        BncheckError: a file cannot be read, they have no layer in common, or an argument is wrong.
    """
    from bncheck.commands.diff import comparison

    return public(comparison(before, asked("diff", DiffOptions, options)).report(after))


@on_data(DriftOptions)
def drift(subject: Subject, data: object = None, **options: Any) -> Report:
    """What `bncheck drift` says of a checkpoint or a live module, which is given back bit for bit as it came.

    Shifts are in standard deviations of the stored statistics, one number per channel; `measurements` has their median
    and maximum over the channels of a layer, and with `channels=True` arrays of shape (num_features,).

    Args:
        subject: the path of a checkpoint, or a module in the modes in which it would be evaluated.
        data: what `--data` names, or batches: a list, a DataLoader, or a function that makes an iterable. Inputs are
            (N, C, ...) with the samples first.

    Raises:
        BncheckError: the model, the data or the evaluation fail, or an argument is wrong.
    """
    from bncheck.commands.drift import drift as work

    return public(work(subject, data, asked("drift", DriftOptions, options)))


@on_data(RepeatOptions)
def repeat(subject: Subject, data: object = None, **options: Any) -> Report:
    """What `bncheck repeat` says of a checkpoint or a live module, which is given back bit for bit as it came.

    Differences are relative to the largest output.

    Args:
        subject: the path of a checkpoint, or a module in the modes in which it would be evaluated.
        data: what `--data` names, or batches: a list, a DataLoader, or a function that makes an iterable.

    Raises:
        BncheckError: the model, the data or the evaluation fail, or an argument is wrong.
    """
    from bncheck.commands.repeat import repeat as work

    return public(work(subject, data, asked("repeat", RepeatOptions, options)))


@on_data(RecalibrateOptions)
def recalibrate(subject: Subject, data: object = None, **options: Any) -> Report:
    """Gives a checkpoint, or a live module, statistics that are estimated on data or copied from another checkpoint.

    A file stays as it is: the new one is `output`; without it everything is measured and nothing written. A module
    gets the new statistics in its buffers, and is otherwise given back as it came.

    Args:
        subject: the path of a checkpoint, or a module.
        data: what `--data` names, or batches: a list, a DataLoader, or a function that makes an iterable.

    Raises:
        BncheckError: the file, the model or the data fail, or an argument is wrong. Then nothing was written.
    """
    from bncheck.commands.recalibrate import copy_statistics, recalibrate_file, recalibrate_module

    wanted = asked("recalibrate", RecalibrateOptions, options)
    if (data is None) == (wanted.from_ is None):
        raise UsageError("statistics come from data or from another checkpoint", "Give one of the two: data or from_.")
    if not isinstance(subject, (str, os.PathLike)):
        if wanted.from_ is not None or wanted.output is not None:
            hint = "Give the path of a checkpoint, or leave out the files."
            raise UsageError("a live module has no file to write", hint)
        return public(recalibrate_module(subject, data, wanted))
    if wanted.from_ is not None:
        return public(copy_statistics(Path(subject), Path(wanted.from_), wanted))
    return public(recalibrate_file(Path(subject), data, wanted))


@on_many(GateOptions)
def gate(paths: Paths = (), **options: Any) -> tuple[Report, ...]:
    """What `bncheck gate` says: a report on each checkpoint, by the configuration of the project.

    What is given here takes the place of what the configuration says.

    Args:
        paths: checkpoints, folders or patterns, one or several; none for those of the configuration.

    Raises:
        BncheckError: the configuration is wrong, or nothing is named.
    """
    from bncheck.commands.gate import run

    asked("gate", GateOptions, options)
    said = {**options, "checkpoint": [paths] if isinstance(paths, (str, os.PathLike)) else paths} if paths else options
    return tuple(map(public, run({"jobs": 1, **said}).reports))
