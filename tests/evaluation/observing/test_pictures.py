"""What moved between two moments is said with the layer's own settings, zeros included."""

import pytest
import torch
from torch import nn

from bncheck.evaluation.observing.pictures import changes, picture


def moved(layer: nn.Module) -> str:
    """What is said of the layer after its mean moved by 1, in one update."""
    before = picture(layer)
    layer.running_mean += 1
    layer.num_batches_tracked += 1
    [change] = changes(layer, before)
    return change.what


def test_an_eps_of_zero_is_the_eps() -> None:
    layer = nn.BatchNorm1d(2, eps=0.0)
    layer.running_var.fill_(1e-6)
    assert moved(layer) == "running_mean moved in 1 update, the mean by up to 1000 standard deviations"


def test_a_counter_of_zero_counts() -> None:
    layer = nn.BatchNorm1d(2)
    assert layer.num_batches_tracked == 0
    assert "in 1 update," in moved(layer)
    before = picture(layer)
    layer.num_batches_tracked.zero_()
    [change] = changes(layer, before)
    assert change.what == "num_batches_tracked alone went from 1 to 0"


@pytest.mark.parametrize("counter", [True, False])
def test_statistics_move_without_a_counter_too(counter: bool) -> None:
    layer = nn.BatchNorm1d(2)
    if not counter:
        layer.num_batches_tracked = None
    before = picture(layer)
    with torch.no_grad():
        layer.running_var *= 4
    [change] = changes(layer, before)
    assert change.what.startswith("running_var moved, the standard deviation by up to a factor of 2")
