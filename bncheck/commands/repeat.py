"""`bncheck repeat`: evaluates again, and in other batches, and names the cause of what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.commands.on_data import run_on_data
from bncheck.commands.progress import SILENT
from bncheck.judgement.diagnosis import diagnose_evaluation
from bncheck.judgement.selection import chosen
from bncheck.options.data import Samples
from bncheck.options.model import OneCheckpoint
from bncheck.options.probing import RepeatOptions
from bncheck.rules import REPEAT_RULES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from bncheck.commands.progress import Progress
    from bncheck.commands.subjects import Subject
    from bncheck.findings.report import Report, Run
    from bncheck.findings.rule import Rule

OPTIONS = (OneCheckpoint, Samples, RepeatOptions)
EXAMPLES = (
    "bncheck repeat best.pth --model net.py:Net --data val/",
    "bncheck repeat best.pth --model net.py:Net --data val/ --runs 5 --evaluator eval.py:evaluate",
)


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> Run:
    """The report on a checkpoint and data."""
    return run_on_data("repeat", said, RepeatOptions, repeat, REPEAT_RULES, progress)


def repeat(
    subject: Subject,
    data: Any,
    options: RepeatOptions,
    progress: Progress = SILENT,
    rules: Sequence[Rule] | None = None,
) -> Report:
    """The report on a checkpoint or a live module; arguments as those of `drift`.

    Raises:
        BncheckError: the model, the data or the evaluation fail.
    """
    rules = chosen(REPEAT_RULES, options.select, options.ignore) if rules is None else rules
    from bncheck.evaluation.session import repeat_of

    evaluation = repeat_of(
        subject,
        data,
        options,
        evaluator=options.evaluator,
        runs=options.runs,
        progress=progress.samples("repeat"),
    )
    return diagnose_evaluation(evaluation, options.threshold, rules)
