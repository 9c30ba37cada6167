"""NaN and infinity in statistics and parameters."""

from dataclasses import replace
from typing import Any

import pytest

from bncheck.findings.rule import Evidence
from bncheck.rules.non_finite_statistics import RULE
from tests.rules.layers import answers, layer, of_state_dict

NAN, INF = float("nan"), float("inf")

QUIET = {
    "a trained layer": layer(),
    "subnormal variances of dead channels": of_state_dict(running_var=[5.6e-45, 0, 1, 1]),
    "variances of half a million": of_state_dict(running_var=4.97e5),
    "no statistics at all": layer(running_mean=None, running_var=None, weight=None, bias=None),
}

FIRES: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "one overflowed batch": (
        {"running_mean": [0, INF, -INF, 1], "running_var": [1, NAN, NAN, 1]},
        (1, 2),
        "overflowed in half precision",
    ),
    "NaN everywhere": ({"running_mean": NAN, "running_var": NAN}, (0, 1, 2, 3), "all 4 channels"),
    "an infinite variance after a cast": ({"running_var": [1, 1, 1, INF]}, (3,), "running_var is not finite"),
    "a parameter": ({"weight": [NAN, 1, 1, 1]}, (0,), "weight is not finite"),
    "the mean alone": ({"running_mean": [NAN, 0, 0, 0]}, (0,), "while weight and bias are finite"),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    fields, channels, words = FIRES[name]
    [evidence] = answers(RULE, of_state_dict(**fields))
    assert isinstance(evidence, Evidence)
    assert evidence.measured["channels"] == channels
    assert words in evidence.message


@pytest.mark.parametrize("num_features", [None, 64], ids=["unknown", "wrong"])
def test_channels_are_counted_by_the_numbers_that_are_there(num_features: int | None) -> None:
    """A variance that was cast to integers leaves the number of channels open."""
    examined = replace(of_state_dict(running_mean=[NAN, 0, 0, 0], running_var=None), num_features=num_features)
    [evidence] = answers(RULE, examined)
    assert isinstance(evidence, Evidence)
    assert "running_mean is not finite in channel 0 of 4" in evidence.message


def test_an_overflow_is_not_claimed_when_parameters_are_broken_too() -> None:
    fields = {"running_mean": [0, INF, 0, 1], "running_var": [1, NAN, 1, 1], "bias": [0, NAN, 0, 0]}
    [evidence] = answers(RULE, of_state_dict(**fields))
    assert isinstance(evidence, Evidence)
    assert "overflowed" not in evidence.message
    assert "last checkpoint" in evidence.fix
