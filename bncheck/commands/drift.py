"""`bncheck drift`: runs a model on data, and says whether its statistics move and whether they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.commands.on_data import run_on_data
from bncheck.commands.progress import SILENT
from bncheck.judgement.diagnosis import diagnose_evaluation
from bncheck.judgement.selection import chosen
from bncheck.options.data import Samples
from bncheck.options.model import OneCheckpoint
from bncheck.options.probing import DriftOptions
from bncheck.rules import DRIFT_RULES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from bncheck.commands.progress import Progress
    from bncheck.commands.subjects import Subject
    from bncheck.findings.report import Report, Run
    from bncheck.findings.rule import Rule

OPTIONS = (OneCheckpoint, Samples, DriftOptions)
EXAMPLES = (
    "bncheck drift best.pth --model net.py:Net --data val/",
    "bncheck drift model.pt2 --data val/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
)


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> Run:
    """The report on a checkpoint and data."""
    return run_on_data("drift", said, DriftOptions, drift, DRIFT_RULES, progress)


def drift(
    subject: Subject,
    data: Any,
    options: DriftOptions,
    progress: Progress = SILENT,
    rules: Sequence[Rule] | None = None,
) -> Report:
    """The report on a checkpoint or a live module, which is given back bit for bit as it came.

    Args:
        subject: a checkpoint, or a module in the modes in which it would be evaluated.
        data: what `--data` names, or the batches themselves.
        options: how the model and the data are made, and who judges.
        progress: told of the samples that are done.
        rules: those that are asked; None for what the options select.

    Raises:
        BncheckError: the model, the data or the evaluation fail.
    """
    rules = chosen(DRIFT_RULES, options.select, options.ignore) if rules is None else rules
    from bncheck.evaluation.session import drift_of

    evaluation = drift_of(
        subject,
        data,
        options,
        evaluator=options.evaluator,
        in_distribution=options.in_distribution,
        progress=progress.samples("drift"),
    )
    return diagnose_evaluation(evaluation, options.threshold, rules, channels=options.channels)
