"""`bncheck diff`: reads checkpoints and judges what happened between them, without running anything."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.search import find_checkpoints
from bncheck.checkpoints.sources.local import FileSource
from bncheck.commands.inspect import find_all
from bncheck.errors import BncheckError, UsageError
from bncheck.judgement.diagnosis import diagnose_pair, unreadable
from bncheck.judgement.selection import fits
from bncheck.pairing.groups import pair_of
from bncheck.rules import DIFF_RULES
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule, Severity
    from bncheck.subjects.checkpoint import Checkpoint

    Mapping = Sequence[tuple[str, str]]

REPORT_IT = "This is a defect of bncheck; run again with --debug and report what it prints."


def compare_paths(
    before: str,
    others: Sequence[str],
    fail_on: Severity | None,
    rules: Sequence[Rule],
    before_group: Sequence[str] = (),
    after_group: Sequence[str] = (),
    mapping: Mapping = (),
    *,
    debug: bool = False,
) -> list[Report]:
    """The reports on a file and each of the others, which may be named by folders and patterns.

    Raises:
        UsageError: the first names several files, or all that are named are one.
    """
    first, second = single(before), list(find_all(others))
    several = len(second) > 1
    # A folder of ranks holds the first as well. A file that is named twice by itself is compared with itself.
    if several:
        same = [item for item in second if isinstance(item, Path) and os.path.realpath(item) == os.path.realpath(first)]
        second = [item for item in second if item not in same]
    reports = []
    for item in second:
        if not isinstance(item, Path):
            reports.append(item)
            continue
        try:
            reports.append(
                compare_files(
                    (first, item),
                    fail_on,
                    rules=rules,
                    before_group=before_group,
                    after_group=after_group,
                    mapping=mapping,
                    several=several,
                )
            )
        except Exception as error:  # a defect of ours on one file does not lose the reports on the others
            if debug:
                raise
            reports.append(
                unreadable(str(item), BncheckError(f"bncheck itself failed on {item}: {error!r}", REPORT_IT))
            )
    return reports


def single(name: str) -> Path:
    """The one file that an argument names."""
    found = find_checkpoints(name)
    if len(found) > 1:
        raise UsageError(f"{name} holds {count(len(found), 'checkpoint')}", "Name the one to compare with.")
    return found[0]


def compare_files(
    paths: tuple[Path, Path] | Sequence[Path],
    fail_on: Severity | None,
    *,
    rules: Sequence[Rule] = DIFF_RULES,
    before_group: Sequence[str] = (),
    after_group: Sequence[str] = (),
    mapping: Mapping = (),
    several: bool = False,
) -> Report:
    """The report on what happened between two files.

    Args:
        paths: the earlier and the later file.
        fail_on: the severity from which on a finding fails them; None for never.
        rules: those that are asked.
        before_group, after_group: globs for the groups of either file that are compared; empty for all.
        mapping: prefixes of names in the first file, and what stands for them in the second; empty to find them.
        several: whether this is one pair of many.

    Files that cannot be read or compared give a report with an error.
    """
    first, second = paths
    try:
        with ExitStack() as open_files:
            # The first is read again for each of the others, since its tensors are read while they are compared.
            before, after = (read_checkpoint(open_files.enter_context(FileSource(path))) for path in (first, second))
            return compare(before, after, fail_on, rules, before_group, after_group, mapping, several=several)
    except BncheckError as error:
        return unreadable(str(second), error)
    except MemoryError:
        return unreadable(
            str(second), BncheckError(f"{first} and {second} need more memory than there is", "Check what they hold.")
        )


def compare(
    before: Checkpoint,
    after: Checkpoint,
    fail_on: Severity | None,
    rules: Sequence[Rule] = DIFF_RULES,
    before_group: Sequence[str] = (),
    after_group: Sequence[str] = (),
    mapping: Mapping = (),
    *,
    several: bool = False,
) -> Report:
    """The report on two checkpoints. Raises UsageError where they have no layer in common."""
    pair = pair_of(
        only(before, before_group, "--before-group"),
        only(after, after_group, "--after-group"),
        mapping,
        several=several,
    )
    return diagnose_pair(pair, fail_on, rules)


def only(checkpoint: Checkpoint, globs: Sequence[str], option: str) -> Checkpoint:
    """The checkpoint with the groups that fit.

    Raises:
        UsageError: none does.
    """
    groups = tuple(group for group in checkpoint.groups if fits(group.name, tuple(globs)))
    if globs and not groups:
        names = ", ".join(group.name or "''" for group in checkpoint.groups) or "none"
        raise UsageError(f"{option} {' '.join(globs)} fits no group of {checkpoint.source}", f"Its groups: {names}.")
    return replace(checkpoint, groups=groups)


def mapping_of(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`model_A.=` and its like: a prefix of names in the first file, and what stands for it in the second.

    Raises:
        UsageError: there is no `=` in one.
    """
    for text in given:
        before, equals, after = text.partition("=")
        if not equals:
            raise UsageError(
                f"--map {text} has no '='", "Write --map FROM=TO; either may be empty, as in --map =model."
            )
        yield before, after
