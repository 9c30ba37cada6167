"""`bncheck inspect`: reads checkpoints and judges their layers, without running anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.search import find_checkpoints
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import BncheckError
from bncheck.judgement.diagnosis import diagnose, unreadable
from bncheck.judgement.selection import Selection, chosen
from bncheck.rules import INSPECT_RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule, Severity
    from bncheck.subjects.checkpoint import Checkpoint

    Complete = Callable[[Checkpoint], Checkpoint]

EVERYTHING = Selection()
USUAL_RULES = chosen(INSPECT_RULES)


def inspect_file(
    path: Path,
    fail_on: Severity | None,
    selection: Selection = EVERYTHING,
    complete: Complete | None = None,
    rules: Sequence[Rule] = USUAL_RULES,
) -> Report:
    """The report on one file.

    Args:
        path: a checkpoint, or the index of a sharded one.
        fail_on: the severity from which on a finding fails it; None for never.
        selection: which layers are examined.
        complete: adds to the checkpoint what the architecture that the user named knows.
        rules: those that are asked.

    A file that cannot be read gives a report with an error.
    """
    try:
        with FileSource(path) as source:
            checkpoint = read_checkpoint(source)
            if complete:
                checkpoint = complete(checkpoint)
            return diagnose(selection.narrow(checkpoint), fail_on, rules)
    except BncheckError as error:
        return unreadable(str(path), error)
    except MemoryError:
        return unreadable(str(path), BncheckError(f"{path} needs more memory than there is", "Check what it holds."))


def find_all(names: Iterable[str]) -> Iterator[Path | Report]:
    """The files that the arguments of the command name, each once, in their order.

    An argument that names no checkpoint gives a report with an error, so that it does not hide the others.
    """
    seen: set[str] = set()
    for name in names:
        try:
            found = find_checkpoints(name)
        except BncheckError as error:
            yield unreadable(name, error)
            continue
        for path in found:
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                yield path
