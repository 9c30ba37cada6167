"""Momenta that make no average."""

import torch

from bncheck.evaluation.models.live import live_group
from bncheck.rules.invalid_momentum import RULE
from bncheck.subjects.layer import StatisticsUse, stored
from tests.rules.layers import fresh, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, quiet, said, undecided, warning

NAN, INF = float("nan"), float("inf")
CUMULATIVE = {"momentum": stored(None)}

QUIET: Quiet = {
    "PyTorch's default": layer(),
    "0 in ports that only run": layer(momentum=stored(0.0)),
    "1 has a rule of its own": layer(momentum=stored(1.0)),
    "a cumulative mean after update_bn": layer(num_batches_tracked=22, **CUMULATIVE),
    "a cumulative mean that has not begun": fresh(**CUMULATIVE),
    "a cumulative mean without a counter never moves": layer(num_batches_tracked=None, **CUMULATIVE),
    "no statistics": layer(running_mean=None, running_var=None, momentum=stored(-1.0)),
    "a frozen layer": layer(use=StatisticsUse.FROZEN, momentum=stored(-1.0)),
}

FIRES: Fires = {
    "negative": (layer(momentum=stored(-0.01)), error("-0.01, not between 0 and 1")),
    "a percentage": (layer(momentum=stored(10.0)), error("10, not between 0 and 1")),
    "NaN": (layer(momentum=stored(NAN)), error("nan, not")),
    "infinite": (layer(momentum=stored(INF)), error("inf, not")),
    "a cumulative mean whose counter was lost": (
        layer(num_batches_tracked=0, **CUMULATIVE),
        warning("replaces them entirely"),
    ),
}

UNDECIDED: Undecided = {"a state_dict": (of_state_dict(), "the file does not hold momentum")}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_torch_replaces_the_statistics_when_a_cumulative_mean_lost_its_counter() -> None:
    bn = torch.nn.BatchNorm2d(3, momentum=None)
    bn(torch.randn(8, 3, 4, 4) + 2)
    bn.num_batches_tracked.zero_()
    assert said(RULE, live_group(bn).layers) == [("warning", "")]
    images = torch.randn(8, 3, 4, 4) - 7
    bn(images)
    torch.testing.assert_close(images.mean((0, 2, 3)), bn.running_mean)


def test_torch_drives_the_statistics_away_with_a_negative_momentum() -> None:
    torch.manual_seed(0)
    bn = torch.nn.BatchNorm2d(3, momentum=-0.1)
    for _ in range(30):
        bn(torch.randn(8, 3, 4, 4) * 2)
    assert float(bn.running_var.min()) < 0
    assert said(RULE, live_group(bn).layers) == [("error", "")]
