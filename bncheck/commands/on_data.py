"""What the commands share that run a model on data: which checkpoint, which data, and what the configuration says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bncheck.config import configured
from bncheck.errors import UsageError
from bncheck.findings.report import Run
from bncheck.judgement.verdicts import exit_code
from bncheck.options.option import Options, make

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from bncheck.commands.progress import Progress
    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule

Asked = TypeVar("Asked", bound=Options)


def with_configuration(command: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, and where no checkpoint is named, what the configuration says of its own.

    Raises:
        UsageError: no checkpoint is named anywhere, or the configuration is wrong.
    """
    if said.get("checkpoint"):
        return dict(said)
    values = dict(configured(Path.cwd()).values)
    named = values.pop("checkpoint", None)
    names = [named] if isinstance(named, (str, os.PathLike)) else named or []
    if len(names) != 1:
        raise UsageError("no model is named", f"bncheck {command} MODEL, or checkpoint = ... under [tool.bncheck].")
    judging = ("fail_on", "select", "ignore")  # those of the gate
    values = {name: value for name, value in values.items() if name not in judging}
    return {**values, "checkpoint": names[0], **said}


def run_on_data(
    command: str,
    said: Mapping[str, Any],
    kind: type[Asked],
    examine: Callable[[Path, Any, Asked, Progress], Report],
    catalogue: tuple[Rule, ...],
    progress: Progress,
) -> Run:
    """The report of a command on the checkpoint and the data that are named, here or in the configuration.

    Args:
        command: its name.
        said: what the user said.
        kind: its options.
        examine: makes the report.
        catalogue: the rules that may speak in it.
        progress: told of the samples that are done.

    Raises:
        BncheckError: no checkpoint or no data is named, or they fail.
    """
    said = with_configuration(command, said)
    if said.get("data") is None:
        raise UsageError("no data is named", f"bncheck {command} MODEL --data DIR, or --data module:callable.")
    report = examine(Path(said["checkpoint"]), said["data"], make(kind, said), progress)
    return Run(command, (report,), exit_code([report]), catalogue=catalogue)
