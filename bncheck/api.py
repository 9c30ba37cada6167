"""The commands as Python functions: `bncheck.inspect(...)`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.checkpoints import find_checkpoints, read_checkpoint
from bncheck.checkpoints.source import FileSource
from bncheck.diagnosis import diagnose
from bncheck.errors import UsageError
from bncheck.findings import Severity
from bncheck.rules import INSPECT_RULES
from bncheck.selection import chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from bncheck.findings import Report


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
        from bncheck.evaluation.live import live_checkpoint

        return diagnose(live_checkpoint(subject), threshold, rules)
    found = find_checkpoints(str(Path(subject)))
    if len(found) > 1:
        raise UsageError(f"{subject} holds {len(found)} checkpoints", "Inspect them one by one.")
    with FileSource(found[0]) as source:
        return diagnose(read_checkpoint(source), threshold, rules)
