"""NaN and infinity in what a model gives."""

from __future__ import annotations

import pytest

from bncheck.rules.output_not_finite import RULE
from bncheck.subjects.evaluation import Evaluation
from tests.rules.evaluations import answers, evaluated, evaluation, left_open, message, repeated, said

QUIET: dict[str, Evaluation] = {
    "finite": repeated(),
    "drift does not look for it": evaluation(evaluated()),
}

FIRES: dict[str, tuple[Evaluation, str]] = {
    "some samples": (
        repeated(first_non_finite="head", non_finite_samples=23),
        "the output is NaN or infinite for 23 of 360 samples; the first to make it of finite numbers is head",
    ),
    "an output that has no samples": (
        repeated(first_non_finite="the model"),
        "the output is NaN or infinite; the first to make it of finite numbers is the model",
    ),
    "the data hold it": (
        repeated(first_non_finite="the input itself", non_finite_samples=1),
        "the output is NaN or infinite for 1 of 360 samples; so is the input already",
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    examined, expected = FIRES[name]
    assert said(RULE, examined) == [("error", "")]
    assert expected == message(RULE, examined)


def test_data_that_hold_it_are_what_must_be_mended() -> None:
    [answer] = answers(RULE, FIRES["the data hold it"][0])
    assert "data" in answer.fix  # type: ignore[union-attr]


def test_a_model_that_was_not_run_is_left_open() -> None:
    reason = "the evaluator did not call the model"
    assert left_open(RULE, repeated(unable={"repeat": reason}, same_batches_max_difference=None)) == [reason]
