"""Results of a sample that depend on its company."""

from __future__ import annotations

import pytest

from bncheck.rules.depends_on_batch import RULE
from bncheck.subjects.evaluation import Cause, CauseKind, Evaluation
from tests.rules.evaluations import answers, evaluated, evaluation, left_open, message, repeated, said

NORM = Cause(CauseKind.BATCHNORM.value, "1 BatchNorm layer normalises by the batch (in train mode: bn)", ("bn",))
COUPLING = Cause(CauseKind.BATCH_COUPLING.value, "samples of a batch see each other, first in head", ("head",))

QUIET: dict[str, Evaluation] = {
    "rounding in float64": repeated(),
    "rounding in float32, without any BatchNorm": repeated(
        other_company_max_difference=4e-6, company_tolerance=1.2e-4, company_dtype="float32"
    ),
    "exactly what is allowed": repeated(other_company_max_difference=2.2e-13),
    "what differs between runs is for another rule": repeated(same_batches_max_difference=0.7),
    "drift does not repeat": evaluation(evaluated()),
}

FIRES: dict[str, tuple[Evaluation, list[tuple[str, str]]]] = {
    "BatchNorm": (repeated(other_company_max_difference=0.12, company_causes=(NORM,)), [("error", "")]),
    "BatchNorm, damped to 6e-10": (
        repeated(other_company_max_difference=6e-10, company_causes=(NORM,)),
        [("error", "")],
    ),
    "both": (
        repeated(other_company_max_difference=0.5, company_causes=(NORM, COUPLING)),
        [("error", ""), ("error", "")],
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    examined, expected = FIRES[name]
    assert expected == said(RULE, examined)


def test_the_message_says_what_small_batches_cost() -> None:
    examined = repeated(
        other_company_max_difference=0.5,
        company_causes=(NORM,),
        fails_alone=True,
        predictions_by_batch_size={2: 0.86, 8: 0.77},
        accuracy_by_batch_size={2: 0.137, 8: 0.227, 256: 0.988},
    )
    assert message(RULE, examined) == (
        "1 BatchNorm layer normalises by the batch (in train mode: bn): outputs of the same samples differ by up to "
        "0.5 of the largest in other batches (float64; 2.2e-13 is rounding); a batch of one raises an error; "
        "predictions that change with the size of the batch, against the largest: 86% at 2, 77% at 8; "
        "accuracy: 13.7% at 2, 22.7% at 8, 98.8% at 256"
    )


def test_samples_that_were_not_run_in_other_batches_leave_it_open() -> None:
    reason = "3 samples are too few to change their company"
    examined = repeated(unable={"other company": reason}, other_company_max_difference=None, company_tolerance=None)
    assert [reason] == left_open(RULE, examined)
    assert said(RULE, examined) == []


def test_a_difference_without_a_cause_is_found_all_the_same() -> None:
    assert said(RULE, repeated(other_company_max_difference=0.5)) == [("error", "")]
    assert said(RULE, repeated(fails_alone=True)) == [("warning", "")]
    assert "a batch of one raises an error" in message(RULE, repeated(fails_alone=True))
