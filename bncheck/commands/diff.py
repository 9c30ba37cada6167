"""`bncheck diff`: reads checkpoints and judges what happened between them, without running anything."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.checkpoints.search import single_checkpoint
from bncheck.commands.many import examine_all, find_all
from bncheck.commands.progress import SILENT
from bncheck.commands.subjects import read
from bncheck.errors import UsageError
from bncheck.findings.report import Run
from bncheck.judgement.diagnosis import diagnose_pair
from bncheck.judgement.selection import chosen, fits
from bncheck.judgement.verdicts import exit_code
from bncheck.options.comparing import DiffOptions, TwoFiles
from bncheck.options.option import make
from bncheck.pairing.groups import pair_of
from bncheck.rules import DIFF_RULES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from bncheck.commands.progress import Progress
    from bncheck.commands.subjects import Subject
    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule
    from bncheck.subjects.checkpoint import Checkpoint

OPTIONS = (TwoFiles, DiffOptions)
EXAMPLES = ("bncheck diff pretrained.pth finetuned.pth", "bncheck diff rank0.pt rank1.pt rank2.pt")


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> Run:
    """The reports on a file and each of the others, which may be named by folders and patterns."""
    named, options = make(TwoFiles, said), make(DiffOptions, said)
    first = single_checkpoint(named.before)
    items = list(find_all(map(str, named.after)))
    several = len(items) > 1
    # A folder of ranks holds the first as well. A file that is named by itself is compared with itself.
    if several:
        items = [item for item in items if not (isinstance(item, Path) and is_same_file(item, first))]
    examine = comparison(first, options, several=several).report
    reports = tuple(progress.files(examine_all(items, examine, debug=bool(said.get("debug"))), len(items)))
    return Run("diff", reports, exit_code(reports), catalogue=DIFF_RULES)


def is_same_file(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is asked of every pair; `several`: it is one of many."""

    before: Subject
    rules: Sequence[Rule]
    options: DiffOptions
    several: bool = False

    def report(self, after: Subject) -> Report:
        """The report on what happened between two subjects.

        Raises:
            BncheckError: one cannot be read, or they have no layer in common.
        """
        options = self.options
        with ExitStack() as open_files:
            # The first is read again for each of the others, since its tensors are read while they are compared.
            pair = pair_of(
                only(read(self.before, open_files), options.before_group, "--before-group"),
                only(read(after, open_files), options.after_group, "--after-group"),
                options.prefixes,
                several=self.several,
            )
            return diagnose_pair(pair, options.threshold, self.rules)


def comparison(before: Subject, options: DiffOptions, *, several: bool = False) -> Comparison:
    """What the options ask.

    Raises:
        UsageError: they name a rule that there is not.
    """
    return Comparison(before, chosen(DIFF_RULES, options.select, options.ignore), options, several)


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
