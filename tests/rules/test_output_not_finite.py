"""NaN and infinity in what a model gives."""

from __future__ import annotations

from bncheck.rules.output_not_finite import RULE
from tests.rules.evaluations import evaluated, evaluation, repeated
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, quiet, undecided

QUIET: Quiet = {
    "finite": repeated(),
    "drift does not look for it": evaluation(evaluated()),
}

FIRES: Fires = {
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
        error(
            message="the output is NaN or infinite for 1 of 360 samples; so is the input already",
            fix="in the data",
            layer="",
        ),
    ),
}

UNDECIDED: Undecided = {
    "a model that was not run": (
        repeated(unable={"repeat": "the evaluator did not call the model"}, same_batches_max_difference=None),
        "the evaluator did not call the model",
    ),
    "and nobody said why": (repeated(same_batches_max_difference=None), "the model was not run"),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES, each=error(layer=""))
test_undecided = undecided(RULE, UNDECIDED)
