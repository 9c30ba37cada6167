"""Variances below zero."""

import pytest

from bncheck.rules.negative_variance import RULE
from bncheck.subjects.layer import stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, error, fires, quiet, said, warning

QUIET: Quiet = {
    "a trained layer": layer(),
    "variances of exactly 0, as good released models have them": of_state_dict(running_var=[0, 0, 1, 1]),
    "NaN has a rule of its own": layer(running_var=[float("nan"), 1, 1, 1]),
    "no statistics": layer(running_var=None),
}

FIRES: Fires = {
    "below -eps the output is NaN": (layer(running_var=[-2e-5, 1, 1, 1]), error()),
    # 1e-3 as float32 has it.
    "exactly -eps divides by zero": (
        layer(running_var=[-1e-3, 1, 1, 1], eps=stored(float.fromhex("0x1.0624de0000000p-10"))),
        error(),
    ),
    "between -eps and 0 the scale explodes": (layer(running_var=[-0.99e-5, 1, 1, 1]), warning()),
    "a larger eps makes it harmless to the root": (layer(running_var=[-2e-5, 1, 1, 1], eps=stored(1e-3)), warning()),
    "eps unknown, near 0": (of_state_dict(running_var=[-9.9999e-06, 1, 1, 1]), warning()),
    "eps unknown, below any usual eps": (of_state_dict(running_var=[-0.01, 1, 1, 1]), error()),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


@pytest.mark.parametrize(("variance", "eps"), [(-2e-5, 1e-5), (-0.99e-5, 1e-5), (-2e-5, 1e-3), (-1e-3, 1e-3)])
def test_an_error_is_what_torch_turns_into_nan_or_infinity(variance: float, eps: float) -> None:
    import torch

    bn = torch.nn.BatchNorm2d(4, eps=eps).eval()
    bn.running_var[0] = variance
    broken = not bool(torch.isfinite(bn(torch.randn(2, 4, 3, 3))).all())
    [(severity, _)] = said(RULE, layer(running_var=bn.running_var.numpy(), eps=stored(eps)))
    assert (severity == "error") == broken
