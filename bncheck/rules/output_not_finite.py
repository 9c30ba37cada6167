"""A model that gives NaN or infinity on the data.

## What it checks

Every output of an evaluation is finite. If one is not, the first module is named whose input was finite and whose
output is not.

## Why it matters

NaN spreads: one channel of one layer is enough to make every prediction meaningless, and argmax hides it by always
giving the same class.

## When it is wrong

Models that use infinity on purpose, such as masked scores. Data that hold NaN themselves: then the input is named.

## What to do

Look at the module that is named. A BatchNorm with NaN, infinite or negative statistics is reset and estimated again; a
half-precision model that overflows is run in bfloat16 or float32.

## Seen in

ultralytics/yolov5#9045 (NaN in validation after mixed precision), lukemelas/EfficientNet-PyTorch#185
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.evaluation import Evaluation

PROBE = "repeat"
INPUT = "the input itself"  # what the probe names where no module is to blame


def check(evaluation: Evaluation) -> Iterator[Evidence | CannotTell]:
    repeat = evaluation.repeat
    if repeat is not None and repeat.same_batches_max_difference is None:
        yield CannotTell(evaluation.unable.get(PROBE, "the model was not run"))
    if repeat is None or repeat.first_non_finite is None:
        return
    share = f" for {repeat.non_finite_samples:,} of {evaluation.samples:,} samples" if repeat.non_finite_samples else ""
    if repeat.first_non_finite == INPUT:
        yield Evidence(
            f"the output is NaN or infinite{share}; so is the input already",
            "Look for NaN and infinity in the data and their preprocessing, such as a division by zero.",
            measured={"module": INPUT, "samples": repeat.non_finite_samples},
        )
        return
    yield Evidence(
        f"the output is NaN or infinite{share}; the first to make it of finite numbers is {repeat.first_non_finite}",
        "Look at that module: statistics that are not finite, a division by zero, an overflow in half precision.",
        measured={"module": repeat.first_non_finite, "samples": repeat.non_finite_samples},
    )


RULE = Rule(
    "output-not-finite",
    Severity.ERROR,
    "repeat: data",
    __doc__,
    evaluation=check,
    headline="the output is NaN or infinite",
    prevails=2,
)
