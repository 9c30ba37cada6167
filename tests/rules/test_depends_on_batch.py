"""Results of a sample that depend on its company."""

from __future__ import annotations

from bncheck.rules.depends_on_batch import RULE
from bncheck.subjects.evaluation import Cause, CauseKind
from tests.rules.evaluations import evaluated, evaluation, repeated
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, quiet, undecided, warning

NORM = Cause(CauseKind.BATCHNORM.value, "1 BatchNorm layer normalises by the batch (in train mode: bn)", ("bn",))
COUPLING = Cause(CauseKind.BATCH_COUPLING.value, "samples of a batch see each other, first in head", ("head",))

QUIET: Quiet = {
    "rounding in float64": repeated(),
    "rounding in float32, without any BatchNorm": repeated(
        other_company_max_difference=4e-6, company_tolerance=1.2e-4, company_dtype="float32"
    ),
    "exactly what is allowed": repeated(other_company_max_difference=2.2e-13),
    "what differs between runs is for another rule": repeated(same_batches_max_difference=0.7),
    "drift does not repeat": evaluation(evaluated()),
}

FIRES: Fires = {
    "BatchNorm": (repeated(other_company_max_difference=0.12, company_causes=(NORM,)), error(layer="")),
    "BatchNorm, damped to 6e-10": (
        repeated(other_company_max_difference=6e-10, company_causes=(NORM,)),
        error(layer=""),
    ),
    "both": (
        repeated(other_company_max_difference=0.5, company_causes=(NORM, COUPLING)),
        [error(layer=""), error(layer="")],
    ),
    "what small batches cost": (
        repeated(
            other_company_max_difference=0.5,
            company_causes=(NORM,),
            fails_alone=True,
            predictions_by_batch_size={2: 0.86, 8: 0.77},
            accuracy_by_batch_size={2: 0.137, 8: 0.227, 256: 0.988},
        ),
        error(
            message="1 BatchNorm layer normalises by the batch (in train mode: bn): outputs of the same samples differ "
            "by up to 0.5 of the largest in other batches (float64; 2.2e-13 is rounding); a batch of one raises an "
            "error; predictions that change with the size of the batch, against the largest: 86% at 2, 77% at 8; "
            "accuracy: 13.7% at 2, 22.7% at 8, 98.8% at 256",
            layer="",
        ),
    ),
    "a difference whose cause did not show": (repeated(other_company_max_difference=0.5), error(layer="")),
    "a model that needs two samples": (repeated(fails_alone=True), warning("a batch of one raises an error", layer="")),
}

UNDECIDED: Undecided = {
    "too few samples for other batches": (
        repeated(
            other_company_max_difference=None,
            company_tolerance=None,
            unable={"other company": "3 samples are too few to change their company"},
        ),
        "3 samples are too few to change their company",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)
