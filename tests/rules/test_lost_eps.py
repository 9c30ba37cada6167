"""What an eps of 0 does to channels of small variance."""

import pytest
import torch

from bncheck.evaluation.models.live import live_group
from bncheck.rules.lost_eps import RULE
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, note, quiet, said, undecided, warning

NAN, INF = float("nan"), float("inf")
ZERO = {"eps": stored(0.0)}
SMALL = {"running_var": [5e-5, 1, 1, 1]}
DEAD = {"running_var": [0, 1, 1, 1]}

QUIET: Quiet = {
    "PyTorch's default": layer(**DEAD),
    "TensorFlow's": layer(eps=stored(1e-3), **DEAD),
    "EfficientViT of timm": layer(eps=stored(1e-7), **DEAD),
    "EfficientViT in float32": layer(eps=stored(9.999999e-08), **SMALL),
    "torchvision's detection models": layer(use=StatisticsUse.FROZEN, **ZERO, **SMALL),
    "transformers' FrozenBatchNorm2d has no eps": layer(use=StatisticsUse.FROZEN, eps=UNKNOWN),
    "without statistics nothing can be compared": layer(running_mean=None, running_var=None, **ZERO),
    "nor is eps missed there": layer(running_mean=None, running_var=None, eps=UNKNOWN),
}

FIRES: Fires = {
    "0 where variances are small": (layer(**ZERO, **SMALL), warning("channel 0 of 4: the output is up to 1.1 times")),
    # sqrt(1e-5 / 1e-12)
    "a tiny one where a variance is 0": (layer(eps=stored(1e-12), **DEAD), warning("3.16e+03 times")),
    "0 where a variance is 0": (layer(**ZERO, **DEAD), error("channel 0 of 4: eval mode divides by 0")),
    "a frozen layer that divides by 0": (layer(use=StatisticsUse.FROZEN, **ZERO, **DEAD), error("divides by 0")),
    "0 where it does not matter": (layer(**ZERO), note("no running_var is small enough")),
    "a channel that is off": (layer(weight=[0, 1, 1, 1], **ZERO, **SMALL), note("no running_var is small enough")),
    "other values that have rules of their own": (layer(running_var=[NAN, INF, -1, 1], **ZERO), note("eps is 0")),
    "a weight of another length": (
        BatchNormLayer("bn", "", stored("BatchNorm2d"), 4, eps=stored(0.0), running_var=layer(**SMALL).running_var),
        warning("as low as 5e-05"),
    ),
    "negative": (layer(eps=stored(-1e-5)), error("eps is -1e-05")),
    "NaN": (layer(eps=stored(NAN)), error("eps is nan")),
    "infinite": (layer(eps=stored(INF)), error("eps is inf")),
}

UNDECIDED: Undecided = {"a state_dict": (of_state_dict(), "the file does not hold eps")}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


@pytest.mark.parametrize(("variance", "severity"), [(0.0, "error"), (5e-5, "warning"), (2e-4, "note")])
def test_torch_agrees_with_the_severity(variance: float, severity: str) -> None:
    """An error is NaN in the output, a warning a change of more than 5 %."""
    torch.manual_seed(0)
    bn = torch.nn.BatchNorm2d(3).eval()
    bn.running_var[1] = variance
    images = torch.randn(4, 3, 5, 5)
    right = bn(images)
    bn.eps = 0.0
    assert said(RULE, live_group(bn).layers) == [(severity, "")]
    change = (bn(images) / right - 1).abs().max()
    assert bool(torch.isfinite(change)) == (severity != "error")
    assert bool(change > 0.05) == (severity == "warning")
