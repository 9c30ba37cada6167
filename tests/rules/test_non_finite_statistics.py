"""NaN and infinity in statistics and parameters."""

from dataclasses import replace

import pytest

from bncheck.rules.non_finite_statistics import RULE
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, error, fires, quiet, the_one

NAN, INF = float("nan"), float("inf")

QUIET: Quiet = {
    "a trained layer": layer(),
    "subnormal variances of dead channels": of_state_dict(running_var=[5.6e-45, 0, 1, 1]),
    "variances of half a million": of_state_dict(running_var=4.97e5),
    "no statistics at all": layer(running_mean=None, running_var=None, weight=None, bias=None),
}

FIRES: Fires = {
    "one overflowed batch": (
        of_state_dict(running_mean=[0, INF, -INF, 1], running_var=[1, NAN, NAN, 1]),
        error("overflowed in half precision", measured={"channels": (1, 2)}),
    ),
    "NaN everywhere": (
        of_state_dict(running_mean=NAN, running_var=NAN),
        error("all 4 channels", measured={"channels": (0, 1, 2, 3)}),
    ),
    "an infinite variance after a cast": (
        of_state_dict(running_var=[1, 1, 1, INF]),
        error("running_var is not finite", measured={"channels": (3,)}),
    ),
    "a parameter": (
        of_state_dict(weight=[NAN, 1, 1, 1]),
        error("weight is not finite", measured={"channels": (0,)}),
    ),
    "the mean alone": (
        of_state_dict(running_mean=[NAN, 0, 0, 0]),
        error("while weight and bias are finite", measured={"channels": (0,)}),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


@pytest.mark.parametrize("num_features", [None, 64], ids=["unknown", "wrong"])
def test_channels_are_counted_by_the_numbers_that_are_there(num_features: int | None) -> None:
    """A variance that was cast to integers leaves the number of channels open."""
    examined = replace(of_state_dict(running_mean=[NAN, 0, 0, 0], running_var=None), num_features=num_features)
    assert "running_mean is not finite in channel 0 of 4" in the_one(RULE, examined).message


def test_an_overflow_is_not_claimed_when_parameters_are_broken_too() -> None:
    fields = {"running_mean": [0, INF, 0, 1], "running_var": [1, NAN, 1, 1], "bias": [0, NAN, 0, 0]}
    evidence = the_one(RULE, of_state_dict(**fields))
    assert "overflowed" not in evidence.message
    assert "last checkpoint" in evidence.fix
