"""Momenta of TensorFlow."""

import pytest
import torch

from bncheck.findings.rule import CannotTell, Evidence
from bncheck.rules.swapped_momentum import RULE
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import answers, layer, of_state_dict, said

QUIET: dict[str, BatchNormLayer] = {
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

FIRES: dict[float, str] = {
    0.5: "remember about 3 batches",
    0.7: "remember about 1.86 batches",
    0.9: "about 1.22 batches; what TensorFlow calls 0.9 is 0.1 in PyTorch",
    0.99: "about 1.02 batches; what TensorFlow calls 0.99 is 0.01 in PyTorch",
    0.997: "what TensorFlow calls 0.997 is 0.003 in PyTorch",
    0.9997: "what TensorFlow calls 0.9997 is 0.0003 in PyTorch",
    0.9900000095367432: "what TensorFlow calls 0.99 is 0.01 in PyTorch",  # as float32
    1.0: "those of the last batch alone",
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("momentum", FIRES)
def test_fires(momentum: float) -> None:
    examined = layer(momentum=stored(momentum))
    assert said(RULE, examined) == [("warning", "bn")]
    [evidence] = answers(RULE, examined)
    assert isinstance(evidence, Evidence)
    assert FIRES[momentum] in evidence.message


@pytest.mark.parametrize(
    ("momentum", "meant"), [(0.99, "to 0.01"), (0.6, "lower"), (1.0, "back to what training used")]
)
def test_the_fix_names_what_was_probably_meant(momentum: float, meant: str) -> None:
    [evidence] = answers(RULE, layer(momentum=stored(momentum)))
    assert isinstance(evidence, Evidence)
    assert f"Set momentum {meant}" in evidence.fix


def test_a_state_dict_leaves_it_undecided() -> None:
    [answer] = answers(RULE, of_state_dict())
    assert isinstance(answer, CannotTell)
    assert answer.reason == "the file does not hold momentum"


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
def test_the_average_is_as_noisy_as_the_mean_of_as_many_batches_as_the_message_says(momentum: float) -> None:
    """The variance of an average with weights m(1-m)^k is m/(2-m) of that of one batch."""
    torch.manual_seed(0)
    bn = torch.nn.BatchNorm1d(4000, momentum=momentum)
    for _ in range(60):
        bn(torch.randn(4, 4000))
    window = (2 - momentum) / momentum
    assert float(bn.running_mean.var()) == pytest.approx(1 / 4 / window, rel=0.1)
