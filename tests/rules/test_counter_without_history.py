"""Counters that cannot be the history of their statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.rules.counter_without_history import RULE
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import fresh, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, asked, fires, note, quiet, the_one

DEAD = 5.6e-45  # where a channel without variance stays in float32 with momentum 0.1

QUIET: Quiet = {
    "a trained layer": (layer(),),
    "a layer that never ran": (fresh(),),
    "one update of a large variance": (layer(num_batches_tracked=1, running_var=[0.95, 2, 3, 4]),),
    "exactly the bound: batches without variance": (layer(num_batches_tracked=2, running_var=0.81),),
    "a dead channel after thousands of updates": (layer(num_batches_tracked=5000, running_var=[DEAD, 1, 1, 1]),),
    "exactly 0 after the counts at which the bound leaves float32": (layer(running_var=[0, 1, 1, 1]),),
    "half precision rounds what is small to 0": (
        layer(num_batches_tracked=200, running_var=[0, 1, 1, 1], dtype="float16"),
    ),
    "half precision rounds the bound itself": (
        layer(num_batches_tracked=1, running_var=np.float32(np.float16(0.9)), dtype="float16"),
    ),
    "and every update": (layer(num_batches_tracked=5, running_var=0.59049 * 0.997, dtype="float16"),),
    "float8 is too coarse to tell": (layer(num_batches_tracked=1, running_var=0.1, dtype="float8_e5m2"),),
    "a cumulative average has no bound": (layer(num_batches_tracked=3, running_var=0.01, momentum=stored(None)),),
    "momentum 0 was set after training": (layer(num_batches_tracked=3, running_var=0.01, momentum=stored(0.0)),),
    "momentum 1 keeps nothing": (layer(num_batches_tracked=3, running_var=0.01, momentum=stored(1.0)),),
    "a small momentum that the file holds": (layer(num_batches_tracked=3, running_var=0.0001, momentum=stored(0.99)),),
    "no counter": (layer(num_batches_tracked=None, running_var=0.01),),
    "a frozen layer has no counter": (layer(num_batches_tracked=0, use=StatisticsUse.FROZEN),),
    "NaN has a rule of its own": (layer(num_batches_tracked=0, running_var=[float("nan"), 1, 1, 1]),),
    "so have negative variances": (layer(num_batches_tracked=1, running_var=[-1, 1, 1, 1]),),
    "an impossible counter": (layer(num_batches_tracked=-1, running_var=0.1),),
    "a counter that overflowed": (layer(num_batches_tracked=float("inf"), running_var=0.1),),
    "no statistics": (layer(running_mean=None, running_var=None),),
    "empty statistics": (
        BatchNormLayer(
            "bn", "", stored("BatchNorm2d"), 0, running_mean=np.empty(0), running_var=np.empty(0), num_batches_tracked=0
        ),
    ),
}

FIRES: Fires = {
    "a converter that kept no counter": (
        (layer("a", num_batches_tracked=0), layer("b", num_batches_tracked=0), fresh("c")),
        "num_batches_tracked is 0 in 2 layers with trained statistics: it was not kept",
    ),
    "half a checkpoint from a converter": (
        (of_state_dict("a"), of_state_dict("b", num_batches_tracked=0)),
        "num_batches_tracked is 0 in 1 layer with trained statistics: it was not kept",
    ),
    "momentum 0 in a port for inference": (
        (layer("a", num_batches_tracked=0, momentum=stored(0.0)),),
        "num_batches_tracked is 0 in 1 layer with trained statistics: it was not kept",
    ),
    "averaged weights with a counter of 1": (
        (of_state_dict("a", num_batches_tracked=1),),
        "num_batches_tracked of a is no history of its statistics: after 1 update with momentum 0.1 (assumed; the file "
        "does not hold it) no variance is below 0.9, and there is one of 0.5",
    ),
    "a pretrained network that counts its fine-tuning": (
        (layer("a", num_batches_tracked=100, running_var=[DEAD, 1, 1, 1]), layer("b", num_batches_tracked=5)),
        "num_batches_tracked is no history of the statistics in 2 layers: after 100 updates with momentum 0.1 no "
        "variance is below 2.656e-05, and there is one of 5.605e-45 in a",
    ),
    "both": (
        (layer("a", num_batches_tracked=0), layer("b", num_batches_tracked=1)),
        "num_batches_tracked is 0 in 1 layer with trained statistics: it was not kept; num_batches_tracked of b is no "
        "history of its statistics: after 1 update with momentum 0.1 no variance is below 0.9, and there is one of 0.5",
    ),
    # 0.9 ** 1.5
    "a counter that was averaged": (
        (layer("a", num_batches_tracked=1.5),),
        "num_batches_tracked of a is no history of its statistics: after 1 update with momentum 0.1 no variance is "
        "below 0.8538, and there is one of 0.5",
    ),
    "half precision leaves enough to tell": (
        (layer("a", num_batches_tracked=1, running_var=0.5, dtype="float16"),),
        "num_batches_tracked of a is no history of its statistics: after 1 update with momentum 0.1 no variance is "
        "below 0.9, and there is one of 0.5",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES, each=note(layer=""))


def bn_after(updates: int, momentum: float | None, scale: float) -> nn.BatchNorm2d:
    torch.manual_seed(updates)
    bn = nn.BatchNorm2d(3, momentum=momentum)
    for _ in range(updates):
        bn(torch.randn(2, 3, 2, 2) * scale)
    return bn


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.9, None])
@pytest.mark.parametrize("updates", [1, 2, 10, 300])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0], ids=["dead", "tiny", "usual"])
def test_no_real_history_breaks_the_bound(momentum: float | None, updates: int, scale: float) -> None:
    assert asked(RULE, live_group(bn_after(updates, momentum, scale)).layers) == []


def test_statistics_that_were_estimated_again_are_seen() -> None:
    """As update_bn leaves them: the average of all batches, counted from 1, and momentum restored."""
    bn = bn_after(3, None, 0.1)
    bn.momentum = 0.1
    evidence = the_one(RULE, live_group(bn).layers)
    assert "after 3 updates with momentum 0.1 no variance is below 0.729" in evidence.message
    assert evidence.measured["momentum_is_known"] is True
