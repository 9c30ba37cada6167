"""One function over many files: side by side where that pays, and a defect of ours on one loses none of the others."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.checkpoints import find_checkpoints
from bncheck.errors import REPORT_IT, BncheckError
from bncheck.judgement.diagnosis import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bncheck.findings.report import Report

    Examine = Callable[[Path], Report]

# From this many files on, they are spread over processes: starting one costs as much as a few files.
WORTH_PROCESSES = 8


def find_all(names: Iterable[str]) -> Iterator[Path | Report]:
    """The files that the arguments of a command name, each once, in their order.

    An argument that names no checkpoint gives a report with an error, so that it does not hide the others.
    """
    seen: set[str] = set()
    for name in names:
        try:
            paths = find_checkpoints(name)
        except BncheckError as error:
            yield unreadable(name, error)
            continue
        for path in paths:
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                yield path


def examine_all(
    items: Sequence[Path | Report], examine: Examine, *, jobs: int = 1, debug: bool = False
) -> Iterator[Report]:
    """The report on each item, in their order, as soon as it is there.

    Args:
        items: files; a report stands for itself.
        examine: makes the report on a file. With several jobs, it is handed to other processes.
        jobs: processes that work side by side.
        debug: whether a defect of ours ends the run, and is seen.
    """
    paths = [item for item in items if isinstance(item, Path)]
    caught = partial(examine_or_complain, examine, debug=debug)
    with contextlib.ExitStack() as stack:
        if jobs > 1 and len(paths) >= WORTH_PROCESSES:
            from concurrent.futures import ProcessPoolExecutor

            reports = stack.enter_context(ProcessPoolExecutor(jobs)).map(caught, paths)
        else:
            reports = map(caught, paths)
        for item in items:
            yield next(reports) if isinstance(item, Path) else item


def examine_or_complain(examine: Examine, path: Path, *, debug: bool) -> Report:
    """The report on a file, or that bncheck failed on it."""
    try:
        return examine(path)
    except BncheckError as error:
        return unreadable(str(path), error)
    except MemoryError:
        return unreadable(str(path), BncheckError(f"{path} needs more memory than there is", "Check what it holds."))
    except Exception as error:
        if debug:
            raise
        return unreadable(str(path), BncheckError(f"bncheck itself failed on {path}: {error!r}", REPORT_IT))


def cores() -> int:
    """How many processes can work side by side."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
