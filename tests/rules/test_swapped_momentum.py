"""Momenta of TensorFlow."""

import pytest
import torch

from bncheck.rules.swapped_momentum import RULE
from bncheck.subjects.layer import UNKNOWN, StatisticsUse, stored
from tests.rules.layers import fresh, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, Undecided, fires, quiet, undecided, warning

QUIET: Quiet = {
    "PyTorch's default": layer(),
    "ports that only run": layer(momentum=stored(0.0)),
    "ports from TensorFlow that were converted": layer(momentum=stored(0.010000000000000009)),
    "MNASNet": layer(momentum=stored(0.00029999999999996696)),
    "a cumulative mean": layer(momentum=stored(None)),
    "a short memory below the limit": layer(momentum=stored(0.4)),
    "above 1 has a rule of its own": layer(momentum=stored(1.5)),
    "NaN has a rule of its own": layer(momentum=stored(float("nan"))),
    "no statistics": layer(running_mean=None, running_var=None, momentum=stored(0.99)),
    "a frozen layer": layer(use=StatisticsUse.FROZEN, momentum=UNKNOWN),
}

FIRES: Fires = {
    "0.5": (layer(momentum=stored(0.5)), warning("remember about 3 batches")),
    "0.6": (layer(momentum=stored(0.6)), warning(fix="Set momentum lower")),
    "0.7": (layer(momentum=stored(0.7)), warning("remember about 1.86 batches")),
    "0.9": (
        layer(momentum=stored(0.9)),
        warning("about 1.22 batches; what TensorFlow calls 0.9 is 0.1 in PyTorch"),
    ),
    # The default of Keras.
    "0.99": (
        layer(momentum=stored(0.99)),
        warning("about 1.02 batches; what TensorFlow calls 0.99 is 0.01 in PyTorch", fix="Set momentum to 0.01"),
    ),
    "0.997": (layer(momentum=stored(0.997)), warning("what TensorFlow calls 0.997 is 0.003 in PyTorch")),
    "0.999": (layer(momentum=stored(0.999)), warning("what TensorFlow calls 0.999 is 0.001 in PyTorch")),
    "0.9997": (layer(momentum=stored(0.9997)), warning("what TensorFlow calls 0.9997 is 0.0003 in PyTorch")),
    "0.99 as float32": (
        layer(momentum=stored(0.9900000095367432)),
        warning("what TensorFlow calls 0.99 is 0.01 in PyTorch"),
    ),
    "1": (
        layer(momentum=stored(1.0)),
        warning("those of the last batch alone", fix="Set momentum back to what training used"),
    ),
    "a layer that never ran": (fresh(momentum=stored(0.99)), warning()),
}

UNDECIDED: Undecided = {"a state_dict": (of_state_dict(), "the file does not hold momentum")}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
def test_the_average_is_as_noisy_as_the_mean_of_as_many_batches_as_the_message_says(momentum: float) -> None:
    """The variance of an average with weights m(1-m)^k is m/(2-m) of that of one batch."""
    torch.manual_seed(0)
    bn = torch.nn.BatchNorm1d(4000, momentum=momentum)
    for _ in range(60):
        bn(torch.randn(4, 4000))
    window = (2 - momentum) / momentum
    assert float(bn.running_mean.var()) == pytest.approx(1 / 4 / window, rel=0.1)
