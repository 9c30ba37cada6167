"""`bncheck inspect`: reads checkpoints and judges their layers, without running anything."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.commands.many import examine_all, find_all
from bncheck.commands.progress import SILENT
from bncheck.commands.subjects import read
from bncheck.errors import UsageError
from bncheck.findings.report import Run
from bncheck.judgement.diagnosis import diagnose
from bncheck.judgement.selection import Selection, chosen
from bncheck.judgement.verdicts import exit_code
from bncheck.options.asking import Files, InspectOptions
from bncheck.options.option import make
from bncheck.rules import INSPECT_RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from bncheck.commands.progress import Progress
    from bncheck.commands.subjects import Subject
    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule, Severity
    from bncheck.options.model import Architecture
    from bncheck.subjects.checkpoint import Checkpoint

    Complete = Callable[[Checkpoint], Checkpoint]

OPTIONS = (Files, InspectOptions)
EXAMPLES = ("bncheck inspect best.pth", "bncheck inspect runs/ --fail-on warning -f sarif -o report.sarif")


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> Run:
    """The reports on all files that are named."""
    asked = inspection(make(InspectOptions, said))
    items = list(find_all(map(str, make(Files, said).paths)))
    examined = examine_all(items, asked.report, debug=bool(said.get("debug")))
    reports = tuple(progress.files(examined, len(items)))
    return Run("inspect", reports, exit_code(reports), catalogue=INSPECT_RULES)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is asked of every file."""

    rules: Sequence[Rule]
    fail_on: Severity | None
    selection: Selection
    complete: Complete | None  # adds to the checkpoint what the architecture that the user named knows

    def report(self, subject: Subject) -> Report:
        """The report on one file or live module.

        Raises:
            BncheckError: it cannot be read.
        """
        with ExitStack() as open_files:
            checkpoint = read(subject, open_files)
            if self.complete:
                checkpoint = self.complete(checkpoint)
            return diagnose(self.selection.narrow(checkpoint), self.fail_on, self.rules)


def inspection(options: InspectOptions) -> Inspection:
    """What the options ask.

    Raises:
        UsageError: they name a rule that there is not, or cannot be followed.
        ModelError: the architecture cannot be built.
    """
    return Inspection(
        chosen(INSPECT_RULES, options.select, options.ignore, deep=options.deep),
        options.threshold,
        Selection(tuple(options.group), tuple(options.kind), tuple(options.layer)),
        architecture_of(options),
    )


def architecture_of(options: Architecture) -> Complete | None:
    """What completes a checkpoint by the architecture that the options name; None where they name none."""
    if options.model is None:
        if options.model_args or options.python_path:
            raise UsageError("--model-arg and --python-path need --model", "Name the architecture with --model.")
        return None
    from bncheck.evaluation.models.architecture import architecture

    return architecture(options.model, options.arguments, tuple(map(Path, options.python_path)))
