"""The flag says no, the buffers are there."""

import torch

from bncheck.evaluation.models.live import live_group
from bncheck.rules.tracking_switched_off import RULE
from bncheck.subjects.layer import StatisticsUse, inferred, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, fires, quiet, the_one, warning

OFF = {"track_running_stats": stored(False)}

QUIET: Quiet = {
    "a trained layer": layer(),
    "a state_dict does not hold the flag": of_state_dict(),
    "made without statistics": layer(running_mean=None, running_var=None, **OFF),
    "no flag and no statistics": layer(running_mean=None, running_var=None, track_running_stats=inferred(False)),
    "a frozen layer has no such flag": layer(use=StatisticsUse.FROZEN, **OFF),
}

FIRES: Fires = {
    "switched off in eval mode": (layer(**OFF), warning()),
    "switched off in train mode": (layer(training=stored(True), **OFF), warning()),
    "one of the two buffers": (layer(running_mean=None, **OFF), warning()),
    "buffers on the meta device": (
        layer(running_mean=None, running_var=None, without_data=("running_mean", "running_var"), **OFF),
        warning(),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def test_torch_uses_the_buffers_in_eval_mode_and_leaves_them_alone_in_train_mode() -> None:
    bn = torch.nn.BatchNorm2d(3)
    bn(torch.randn(8, 3, 4, 4))
    bn.track_running_stats = False
    before = bn.running_mean.clone()
    bn(torch.randn(8, 3, 4, 4) + 5)
    assert torch.equal(before, bn.running_mean)
    images = torch.randn(8, 3, 4, 4)
    assert torch.equal(bn.eval()(images)[:1], bn(images[:1]))
    assert "running_mean and running_var are there" in the_one(RULE, live_group(bn).layers).message
