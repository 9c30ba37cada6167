"""An evaluation whose results differ when it is run again on the same data.

## What it checks

Each batch is run at least twice in a row and the outputs are compared bit for bit; the data are read twice and compared
by hash; and where an evaluation of the user's is given, it is run as often, and the numbers that it returns are
compared. Every difference gets a cause: the batches themselves (shuffling, random augmentation), a random operator
that ran (dropout, drop path, noise), a kernel, or a state that a forward leaves behind.

## Why it matters

A number that cannot be repeated cannot be a release criterion. BatchNorm is often blamed for what dropout does, and the
other way round; in train mode both are active, and only one of them shows here.

## When it is wrong

Models that draw on purpose, such as Monte Carlo dropout or samplers. On accelerators, kernels that add in any order
differ in the last bits; then the cause says so.

## What to do

Call model.eval(), and pass training=self.training to functional dropout. Give the data loader a fixed order and no
random augmentation. For kernels, torch.use_deterministic_algorithms(True).

## Seen in

pytorch/pytorch#26338 (functional dropout that is active in eval mode), Coderx7/SimpleNet#2,
Lightning-AI/pytorch-lightning#18813
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.evaluation import CauseKind
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.evaluation import Cause, Evaluation, Repeat

PROBE = "repeat"
# Differences of a kernel below this, relative to the largest output, are rounding: 16 times the eps of float32.
KERNEL_ROUNDING = 2e-6
FIXES = {
    CauseKind.INPUTS.value: "Evaluate on a fixed order without random augmentation: shuffle=False.",
    CauseKind.RANDOM_OPERATOR.value: "Call model.eval(); in functional dropout, pass training=self.training.",
    CauseKind.KERNEL.value: "Call torch.use_deterministic_algorithms(True), and look for a hidden source of chance.",
    CauseKind.STATE.value: "Call model.eval(), and keep state that forward changes out of the evaluation.",
}
UNKNOWN_CAUSE = "Compare the runs batch by batch; the cause did not show when it was looked for."


def check(evaluation: Evaluation) -> Iterator[Evidence | CannotTell]:
    repeat = evaluation.repeat
    if repeat is None:
        return
    for cause in repeat.run_causes:
        yield evidence(repeat, cause)
    if not repeat.run_causes and metrics_differ(repeat):
        yield Evidence(
            f"the evaluation returned other numbers when it was run again: {told(repeat)}",
            UNKNOWN_CAUSE,
            measured={"runs": repeat.runs},
        )
    if PROBE in evaluation.unable:
        yield CannotTell(evaluation.unable[PROBE])


def evidence(repeat: Repeat, cause: Cause) -> Evidence:
    difference = repeat.same_batches_max_difference or 0.0
    parts = [cause.explanation]
    if cause.kind != CauseKind.INPUTS.value:
        parts.append(f"outputs differ by up to {number(difference)} of the largest")
        if repeat.predictions_changed:
            change = "changes" if repeat.predictions_changed == 1 else "change"
            parts.append(f"{count(repeat.predictions_changed, 'prediction')} {change}")
        if repeat.first_difference:
            parts.append(f"the first module that differs is {repeat.first_difference}")
    if metrics_differ(repeat):
        parts.append(f"the evaluation returned {told(repeat)}")
    rounding = cause.kind == CauseKind.KERNEL.value and difference < KERNEL_ROUNDING
    return Evidence(
        "; ".join(parts),
        FIXES.get(cause.kind, UNKNOWN_CAUSE),
        measured={"cause": cause.kind, "modules": cause.modules, "difference": difference},
        severity=Severity.NOTE if rounding else None,
    )


def metrics_differ(repeat: Repeat) -> bool:
    """NaN in both runs is the same number."""
    first = repeat.metrics[0] if repeat.metrics else {}
    return any(
        other.keys() != first.keys() or any(repr(other[name]) != repr(first[name]) for name in first)
        for other in repeat.metrics
    )


def told(repeat: Repeat) -> str:
    """`accuracy 0.91, 0.93`."""
    names = [name for name in repeat.metrics[0] if len({repr(run.get(name)) for run in repeat.metrics}) > 1]
    return "; ".join(
        f"{name} " + ", ".join(number(run[name]) for run in repeat.metrics if name in run) for name in names[:3]
    )


RULE = Rule(
    "differs-between-runs",
    Severity.ERROR,
    "repeat: data",
    __doc__,
    evaluation=check,
    headline="results differ from run to run",
    all_clear="runs agree",
)
