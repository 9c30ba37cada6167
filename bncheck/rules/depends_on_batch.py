"""Results of a sample that depend on which other samples stand in its batch.

## What it checks

A few samples are run in two batches with other companions, and alone, in float64 on the CPU where the model allows
that. Their outputs may differ by no more than what rounding explains: a thousand times the resolution of the numbers,
or a hundred times what the network makes of a change in the last bit of its input, whichever is more. Random operators
get the same numbers for each sample, so that dropout is not taken for it. Then every BatchNorm that normalised by the
batch is held fixed: if the difference is gone, it was BatchNorm; what remains is named apart.

Relative to the largest output, over seven torchvision networks:

- sound: 1.6e-15 to 3.2e-15 in float64, 3e-7 to 9e-7 in float32
- one BatchNorm of the middle without running statistics: from 0.12 (ResNet-18) down to 6e-10 (EfficientNet-B0)

so that float64 tells them apart and float32 hides the small ones. Those networks had random weights; of a trained
EfficientNet-Lite0 on photographs, the figures are 1e-15 and 1e-7 when sound, and 0.28 to 0.99 with one layer, first,
middle or last, without running statistics.

## Why it matters

The same image gets another result in another batch: results cannot be reproduced by whoever evaluates with another
batch size, and a single image may get nonsense or an error. Permuting a batch does not show it, and neither does
running the same batch twice.

## When it is wrong

Networks that normalise by the batch by design (pix2pix, FastGAN), and models that compare samples on purpose. Exclude
those by name.

## What to do

In train mode: call model.eval(). Without running statistics: train with track_running_stats=True, or use GroupNorm.
Built into a graph: make it again from a model in eval mode.

## Seen in

yaodongyu/TRADES#3 (results that depend on batch size and contents); no BatchNorm and still 4e-6 apart:
huggingface/pytorch-image-models#2244 (rounding, which this rule allows)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.evaluation import CauseKind
from bncheck.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.evaluation import Evaluation, Repeat

PROBE = "other company"
FIXES = {
    CauseKind.BATCHNORM.value: "Call model.eval(); give layers without running statistics some, or use GroupNorm.",
    CauseKind.BATCH_COUPLING.value: "Look for what is computed over the batch dimension.",
}


def check(evaluation: Evaluation) -> Iterator[Evidence | CannotTell]:
    repeat = evaluation.repeat
    if repeat is None:
        return
    if repeat.other_company_max_difference is None or repeat.company_tolerance is None:
        yield CannotTell(evaluation.unable.get(PROBE, "the samples were not run in other batches"))
        return
    if repeat.other_company_max_difference <= repeat.company_tolerance and not repeat.fails_alone:
        return
    if not repeat.company_causes:
        yield without_cause(repeat)
    for cause in repeat.company_causes:
        yield Evidence(
            f"{cause.explanation}: outputs of the same samples differ by up to "
            f"{number(repeat.other_company_max_difference)} of the largest in other batches "
            f"({repeat.company_dtype}; {number(repeat.company_tolerance)} is rounding){consequences(repeat)}",
            FIXES[cause.kind],
            measured={
                "cause": cause.kind,
                "modules": cause.modules,
                "difference": repeat.other_company_max_difference,
                "tolerance": repeat.company_tolerance,
            },
        )


def without_cause(repeat: Repeat) -> Evidence:
    """Batches of one fail and larger ones agree; or the difference went away when its cause was looked for."""
    difference, tolerance = repeat.other_company_max_difference or 0.0, repeat.company_tolerance or 0.0
    agree = difference <= tolerance
    found = (
        "a batch of one raises an error, while larger ones agree"
        if agree
        else f"outputs of the same samples differ by up to {number(difference)} of the largest in other batches "
        f"({repeat.company_dtype}; {number(tolerance)} is rounding), and the cause did not show{consequences(repeat)}"
    )
    return Evidence(
        found,
        "Run the model on a single sample." if agree else FIXES[CauseKind.BATCH_COUPLING.value],
        measured={"cause": None, "difference": difference, "tolerance": tolerance},
        severity=Severity.WARNING if agree else None,
    )


def consequences(repeat: Repeat) -> str:
    """What small batches cost, and whether one sample alone can be run at all."""
    text = "; a batch of one raises an error" if repeat.fails_alone else ""
    changed = [f"{share:.0%} at {size}" for size, share in repeat.predictions_by_batch_size.items()]
    if changed:
        text += f"; predictions that change with the size of the batch, against the largest: {', '.join(changed)}"
    accuracies = [f"{value:.1%} at {size}" for size, value in sorted(repeat.accuracy_by_batch_size.items())]
    if accuracies:
        text += f"; accuracy: {', '.join(accuracies)}"
    return text


RULE = Rule(
    "depends-on-batch",
    Severity.ERROR,
    "repeat: data",
    __doc__,
    evaluation=check,
    headline="results depend on the batch",
    all_clear="batches do not matter",
    prevails=1,
)
