"""The commands as Python functions: `bncheck.inspect(...)`, `bncheck.drift(...)`, `bncheck.diff(...)`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.search import find_checkpoints
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UsageError
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose
from bncheck.judgement.selection import chosen
from bncheck.rules import INSPECT_RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule
    from bncheck.subjects.checkpoint import Checkpoint


def inspect(
    subject: str | os.PathLike[str] | torch.nn.Module,
    *,
    fail_on: str | None = "error",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    deep: bool = False,
) -> Report:
    """What `bncheck inspect` says of one checkpoint, or of a live module.

    Args:
        subject: the path of a checkpoint, which is read and never run; or a module, which is only looked at.
        fail_on: the severity from which on a finding makes the verdict FAILED: "error", "warning", "note"; None for
            never.
        select: ids or globs of the only rules to ask.
        ignore: ids or globs of rules to leave out.
        deep: whether rules are asked that read more of the file than the rest.

    Raises:
        BncheckError: the file cannot be read, or an argument is wrong.
    """
    threshold = Severity(fail_on) if fail_on else None
    rules = chosen(INSPECT_RULES, select, ignore, deep=deep)
    if not isinstance(subject, (str, os.PathLike)):
        from bncheck.evaluation.models.live import live_checkpoint

        return diagnose(live_checkpoint(subject), threshold, rules)
    found = find_checkpoints(str(Path(subject)))
    if len(found) > 1:
        raise UsageError(f"{subject} holds {len(found)} checkpoints", "Inspect them one by one.")
    with FileSource(found[0]) as source:
        return diagnose(read_checkpoint(source), threshold, rules)


def diff(
    before: str | os.PathLike[str] | torch.nn.Module,
    after: str | os.PathLike[str] | torch.nn.Module,
    *,
    fail_on: str | None = "error",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    before_group: Sequence[str] = (),
    after_group: Sequence[str] = (),
    map: Mapping[str, str] | None = None,
) -> Report:
    """What `bncheck diff` says happened between two checkpoints, or live modules.

    Args:
        before, after: paths of checkpoints, which are read and never run; or modules, which are only looked at.
        fail_on: the severity from which on a finding makes the verdict FAILED: "error", "warning", "note"; None for
            never.
        select: ids or globs of the only rules to ask.
        ignore: ids or globs of rules to leave out.
        before_group, after_group: globs for the state dicts of either file that are compared; empty for all.
        map: what names begin with in `before`, and in its place in `after`; None to find it.

    Raises:
        BncheckError: a file cannot be read, they have no layer in common, or an argument is wrong.
    """
    from contextlib import ExitStack

    from bncheck.commands.diff import compare
    from bncheck.rules import DIFF_RULES

    rules = chosen(DIFF_RULES, select, ignore)
    with ExitStack() as open_files:

        def read(subject: str | os.PathLike[str] | torch.nn.Module) -> Checkpoint:
            if not isinstance(subject, (str, os.PathLike)):
                from bncheck.evaluation.models.live import live_checkpoint

                return live_checkpoint(subject)
            found = find_checkpoints(str(Path(subject)))
            if len(found) > 1:
                raise UsageError(f"{subject} holds {len(found)} checkpoints", "Compare them one by one.")
            return read_checkpoint(open_files.enter_context(FileSource(found[0])))

        return compare(
            read(before),
            read(after),
            Severity(fail_on) if fail_on else None,
            rules,
            before_group,
            after_group,
            tuple((map or {}).items()),
        )


# The options of the command line that name a model and data, with their defaults.
RUN_OPTIONS: dict[str, Any] = {
    "model": None,
    "model_arg": None,
    "trust_pickle": False,
    "group": None,
    "main": None,
    "python_path": None,
    "device": "auto",
    "dtype": None,
    "threads": None,
    "size": None,
    "resize": None,
    "mean": None,
    "std": None,
    "grayscale": False,
    "channels_last": False,
    "input_key": None,
    "limit": None,
    "batch_size": 32,
    "workers": 2,
    "skip_unreadable": False,
}


def drift(
    subject: str | os.PathLike[str] | torch.nn.Module,
    data: object,
    *,
    evaluator: str | Callable[..., Any] | None = None,
    in_distribution: bool = False,
    channels: bool = False,
    fail_on: str | None = "error",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    **options: Any,
) -> Report:
    """What `bncheck drift` says of a checkpoint or a live module, which is given back bit for bit as it came.

    Args:
        subject: the path of a checkpoint, or a module in the modes in which it would be evaluated.
        data: what `--data` names, or batches: a list, a DataLoader, or a function that makes an iterable.
        evaluator: your own evaluation, `function(model, batches)` or `function(model)`, or what `--evaluator` names.
        in_distribution: whether the data are like those of the training.
        channels: whether the measurements have arrays per channel.
        fail_on: the severity from which on a finding makes the verdict FAILED; None for never.
        select: ids or globs of the only rules to ask.
        ignore: ids or globs of rules to leave out.
        options: those of `bncheck drift` that name a model and data: model, trust_pickle, batch_size, mean, ...

    Raises:
        BncheckError: the model, the data or the evaluation fail, or an argument is wrong.
    """
    from bncheck.rules import DRIFT_RULES

    given = {"evaluator": evaluator, "in_distribution": in_distribution, "data": data}
    rules = chosen(DRIFT_RULES, select, ignore)
    return on_data("drift", subject, given, options, rules, fail_on, channels=channels)


def repeat(
    subject: str | os.PathLike[str] | torch.nn.Module,
    data: object,
    *,
    evaluator: str | Callable[..., Any] | None = None,
    runs: int = 2,
    fail_on: str | None = "error",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    **options: Any,
) -> Report:
    """What `bncheck repeat` says of a checkpoint or a live module; arguments as those of `drift`, and how many runs."""
    from bncheck.rules import REPEAT_RULES

    given = {"evaluator": evaluator, "runs": max(runs, 2), "data": data}
    return on_data("repeat", subject, given, options, chosen(REPEAT_RULES, select, ignore), fail_on)


def on_data(
    command: str,
    subject: str | os.PathLike[str] | torch.nn.Module,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    rules: Sequence[Rule],
    fail_on: str | None,
    *,
    channels: bool = False,
) -> Report:
    unknown = sorted(set(options) - set(RUN_OPTIONS))
    if unknown:
        raise TypeError(f"{command}() got an unexpected keyword argument {unknown[0]!r}")
    from bncheck.evaluation.session import examine
    from bncheck.judgement.diagnosis import diagnose_evaluation

    examined = Path(subject) if isinstance(subject, (str, os.PathLike)) else subject
    evaluation = examine(command, examined, {**RUN_OPTIONS, **options, **given}, lambda samples: None)
    return diagnose_evaluation(evaluation, Severity(fail_on) if fail_on else None, rules, channels=channels)


def gate(
    *paths: str | os.PathLike[str], config: str | os.PathLike[str] | None = None, **options: Any
) -> tuple[Report, ...]:
    """What `bncheck gate` says: a report on each checkpoint, by the configuration of the project.

    Args:
        paths: checkpoints, folders or patterns; none for those of the configuration.
        config: the file with the configuration; None to look for it here and in the folders above.
        options: keys of the configuration that take the place of what it says, `fail_on="error"`.

    Raises:
        BncheckError: the configuration is wrong, or nothing is named.
    """
    import datetime

    from bncheck.commands import gate as gating
    from bncheck.config import KEYS, configured
    from bncheck.judgement.policy import policy_of
    from bncheck.judgement.verdicts import gated
    from bncheck.rules import RULES

    given = {name.replace("_", "-"): value for name, value in options.items()}
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise TypeError(f"gate() got an unexpected keyword argument {unknown[0]!r}")
    settings = configured(Path.cwd(), Path(config) if config else None).with_options(given)
    policy = policy_of(settings, [rule.id for rule in RULES])
    items = gating.checkpoints_of(settings, [str(path) for path in paths])
    if not items:
        raise UsageError("no checkpoint is named", "Give one, or checkpoint = ... under [tool.bncheck].")
    today = datetime.date.today()
    reports = gating.examined(items, settings, 1, lambda check: lambda samples: None)
    return tuple(gated(report, policy, today) for report in reports)


def recalibrate(
    subject: str | os.PathLike[str] | torch.nn.Module,
    data: object = None,
    *,
    output: str | os.PathLike[str] | None = None,
    from_: str | os.PathLike[str] | None = None,
    method: str = "train",
    variance: str = "within-batch",
    layers: Sequence[str] = (),
    keep_frozen: bool = True,
    force: bool = False,
    fail_on: str | None = "error",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    **options: Any,
) -> Report:
    """Gives a checkpoint, or a live module, statistics that are estimated on data or copied from another checkpoint.

    Args:
        subject: the path of a checkpoint, which stays as it is; or a module, whose buffers get the new statistics, and
            which is otherwise given back as it came.
        data: what `--data` names, or batches: a list, a DataLoader, or a function that makes an iterable.
        output: the new checkpoint; None to measure only. Not for a module.
        from_: the checkpoint to copy from instead; nothing is run. Not for a module.
        method: "train" or "sequential".
        variance: "within-batch" or "pooled".
        layers: globs of the only layers to change; empty for all.
        keep_frozen: whether layers that are in eval mode while the rest of the module trains keep theirs.
        force: whether an existing `output` is replaced.
        fail_on: the severity from which on a finding makes the verdict FAILED; None for never.
        select: ids or globs of the only rules to ask.
        ignore: ids or globs of rules to leave out.
        options: those of `bncheck recalibrate` that name a model and data: model, trust_pickle, batch_size, mean, ...

    Raises:
        BncheckError: the file, the model or the data fail, or an argument is wrong. Then nothing was written.
    """
    unknown = sorted(set(options) - set(RUN_OPTIONS))
    if unknown:
        raise TypeError(f"recalibrate() got an unexpected keyword argument {unknown[0]!r}")
    if (data is None) == (from_ is None):
        raise UsageError("statistics come from data or from another checkpoint", "Give one of the two: data or from_.")
    from bncheck.commands.recalibrate import RepairOptions, copy_statistics, recalibrate_file, recalibrate_module

    given = {**RUN_OPTIONS, **options, "data": data}
    wanted = RepairOptions(
        output=None if output is None else Path(output),
        force=force,
        group=given["group"],
        layers=tuple(layers),
        fail_on=Severity(fail_on) if fail_on else None,
        select=tuple(select),
        ignore=tuple(ignore),
    )
    is_path = isinstance(subject, (str, os.PathLike))
    if from_ is not None and isinstance(subject, (str, os.PathLike)):
        return copy_statistics(Path(subject), Path(from_), wanted)
    if not is_path and (from_ is not None or output is not None):
        raise UsageError("a live module has no file to write", "Give the path of a checkpoint, or leave out the files.")
    from bncheck.evaluation.probes.recalibrate import Method, RecalibrationOptions, Variance

    try:
        estimation = RecalibrationOptions(Method(method), Variance(variance), tuple(layers), keep_frozen)
    except ValueError as error:
        raise UsageError(str(error), "Methods: train, sequential. Variances: within-batch, pooled.") from None
    if isinstance(subject, (str, os.PathLike)):
        return recalibrate_file(Path(subject), given, wanted, estimation)
    from bncheck.evaluation.models.runnable import live_runnable
    from bncheck.evaluation.session import load_data

    runnable = live_runnable(subject)
    return recalibrate_module(runnable, load_data(Path(), given, runnable), wanted, estimation)
