"""Evaluations that give something else when they are run again."""

from __future__ import annotations

import pytest

from bncheck.rules.differs_between_runs import RULE
from bncheck.subjects.evaluation import Cause, CauseKind
from tests.rules.evaluations import evaluated, evaluation, repeated
from tests.rules.tables import Fires, Quiet, error, fires, left_open, note, quiet, said, the_one

NAN = float("nan")
DROPOUT = Cause(CauseKind.RANDOM_OPERATOR.value, "1 random operator ran in drop", ("drop",))
SHUFFLE = Cause(CauseKind.INPUTS.value, "the data come in another order each time")
KERNEL = Cause(CauseKind.KERNEL.value, "a kernel decides")

QUIET: Quiet = {
    "the same bit for bit": repeated(),
    "what depends on the batch is for another rule": repeated(
        other_company_max_difference=0.5, company_causes=(Cause(CauseKind.BATCHNORM.value, "train mode"),)
    ),
    "numbers of the evaluation that agree": repeated(metrics=({"accuracy": 0.9}, {"accuracy": 0.9})),
    "NaN in both runs": repeated(metrics=({"loss": NAN}, {"loss": NAN})),
    "drift does not repeat": evaluation(evaluated()),
}

FIRES: Fires = {
    "dropout": (repeated(same_batches_max_difference=0.7, run_causes=(DROPOUT,)), error(layer="")),
    "shuffling": (repeated(identical_inputs=False, run_causes=(SHUFFLE,)), error(layer="")),
    "both": (
        repeated(same_batches_max_difference=0.7, identical_inputs=False, run_causes=(SHUFFLE, DROPOUT)),
        [error(layer=""), error(layer="")],
    ),
    "a kernel that rounds": (repeated(same_batches_max_difference=1e-7, run_causes=(KERNEL,)), note(layer="")),
    "a kernel that does more": (repeated(same_batches_max_difference=1e-3, run_causes=(KERNEL,)), error(layer="")),
    "numbers that differ for no cause that was seen": (
        repeated(metrics=({"accuracy": 0.91}, {"accuracy": 0.93})),
        error(layer=""),
    ),
    "a number that is missing in the second run": (repeated(metrics=({"accuracy": 0.91}, {})), error(layer="")),
    "NaN in one run": (repeated(metrics=({"loss": 1.0}, {"loss": NAN})), error(layer="")),
    "the cause, how far, the predictions and the module": (
        repeated(
            same_batches_max_difference=0.7, predictions_changed=13, first_difference="drop", run_causes=(DROPOUT,)
        ),
        error(
            message="1 random operator ran in drop; outputs differ by up to 0.7 of the largest; 13 predictions change; "
            "the first module that differs is drop",
            layer="",
        ),
    ),
    # The loss is the same, and is not named.
    "the numbers of the evaluation beside the cause": (
        repeated(
            identical_inputs=False,
            run_causes=(SHUFFLE,),
            metrics=({"accuracy": 0.91, "loss": 1.0}, {"accuracy": 0.93, "loss": 1.0}),
        ),
        error(
            message="the data come in another order each time; the evaluation returned accuracy 0.91, 0.93", layer=""
        ),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


@pytest.mark.parametrize("kind", [CauseKind.INPUTS, CauseKind.RANDOM_OPERATOR, CauseKind.KERNEL, CauseKind.STATE])
def test_each_cause_has_a_fix_of_its_own(kind: CauseKind) -> None:
    fixes = {other: the_one(RULE, repeated(run_causes=(Cause(other.value, ""),))).fix for other in CauseKind}
    assert [other for other in fixes if fixes[other] == fixes[kind]] == [kind]


def test_a_model_that_the_evaluator_did_not_call_is_left_open() -> None:
    reason = "the evaluator did not call the model"
    examined = repeated(unable={"repeat": reason}, same_batches_max_difference=None, metrics=({"a": 1.0}, {"a": 2.0}))
    assert [reason] == left_open(RULE, examined)
    assert said(RULE, examined) == [("error", "")]
