"""Clusters of num_batches_tracked, and what they say."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from bncheck.evaluation.models.live import live_group
from bncheck.pairing.names import blocks
from bncheck.rules.uneven_counters import RULE
from bncheck.subjects.checkpoint import Checkpoint, Group
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse
from tests.rules.layers import fresh, layer
from tests.rules.tables import Fires, Quiet, fires, note, quiet, the_one


def counting(**counters: float | None) -> tuple[BatchNormLayer, ...]:
    """Trained layers with these counters; `__` in a name stands for a dot."""
    return tuple(layer(name.replace("__", "."), num_batches_tracked=value) for name, value in counters.items())


QUIET: Quiet = {
    "equal counters": counting(a=1000, b=1000),
    "one layer": counting(a=1000),
    "no layer": (),
    "all at 0": counting(a=0, b=0),
    "a part that never ran has a rule of its own": (*counting(a=1000, b=1000), fresh("head")),
    "frozen layers count nothing": (
        *counting(a=1000, b=1000),
        layer("f", num_batches_tracked=0, use=StatisticsUse.FROZEN),
    ),
    "layers without a counter": counting(a=1000, b=None, c=1000),
    "counters that are no counts": counting(a=1000, b=float("inf"), c=float("nan"), d=-3),
    # Averaged weights count what they like beside the weights that they average.
    "groups that count differently": Checkpoint(
        "model.pt",
        "torch.save",
        (
            Group("model", "state_dict", {}, counting(bn=100)),
            Group("ema", "state_dict", {}, counting(bn=0)),
        ),
    ),
}

FIRES: Fires = {
    "a block under gradient checkpointing": (
        counting(stem=1000, layer1__0=1000, layer1__1=1000, layer2__0=2000, layer2__1=2000),
        "num_batches_tracked is 1,000 in 3 of 5 layers, 2,000 in layer2 (twice as many: recomputed by gradient "
        "checkpointing, or two passes a step)",
    ),
    "most layers under gradient checkpointing": (
        counting(stem=1000, layer1__0=2000, layer1__1=2000),
        "num_batches_tracked is 2,000 in 2 of 3 layers, 1,000 in stem (the others ran twice as often)",
    ),
    "a head over five levels": (
        counting(backbone__a=720, backbone__b=720, backbone__c=720, head__cls=3600, head__box=3600),
        "num_batches_tracked is 720 in 3 of 5 layers, 3,600 in head (5 times as many: called so often a step)",
    ),
    "twice, less a pass that failed": (
        counting(a=1000, b=1000, c=1999),
        "num_batches_tracked is 1,000 in 2 of 3 layers, 1,999 in c (about twice as many: recomputed by gradient "
        "checkpointing, or two passes a step)",
    ),
    "forward passes that failed in the head": (
        counting(a=503, b=503, head=500),
        "num_batches_tracked is 503 in 2 of 3 layers, 500 in head (3 updates apart: passes that failed or ran through "
        "a part only)",
    ),
    "a backbone that was frozen later": (
        counting(a__0=440, a__1=440, b__0=462, b__1=462, c=462),
        "num_batches_tracked is 462 in 3 of 5 layers, 440 in a (frozen from then on, or added later)",
    ),
    "most layers were frozen": (
        counting(a__0=440, a__1=440, head=962),
        "num_batches_tracked is 440 in 2 of 3 layers, 962 in head (the others were frozen, or these ran in more "
        "passes)",
    ),
    "a part from a converter": (
        counting(a=0, b=440, c=440),
        "num_batches_tracked is 440 in 2 of 3 layers, 0 in a (statistics of another source, loaded without a counter, "
        "or frozen)",
    ),
    "most of it from a converter": (
        counting(a=0, b=0, head=440),
        "num_batches_tracked is 0 in 2 of 3 layers, 440 in head (the others were loaded without a counter, or frozen)",
    ),
    "counts too small for a factor that is not exact": (
        counting(a=4, b=4, c=6),
        "num_batches_tracked is 4 in 2 of 3 layers, 6 in c (the others were frozen, or these ran in more passes)",
    ),
    "three clusters": (
        counting(a=100, b=100, c=250, d=800),
        "num_batches_tracked is 100 in 2 of 4 layers, 250 in c (the others were frozen, or these ran in more passes), "
        "800 in d (8 times as many: called so often a step)",
    ),
    "more clusters than are told": (
        counting(a=100, b=100, c=250, d=330, e=460, f=570),
        "num_batches_tracked is 100 in 2 of 6 layers, 250 in c (the others were frozen, or these ran in more passes), "
        "330 in d (the others were frozen, or these ran in more passes), 460 in e (the others were frozen, or these "
        "ran in more passes), and 1 other value",
    ),
    "blocks that are skipped at random": (
        counting(**{f"block{i}": 900 + 7 * i for i in range(10)}),
        "num_batches_tracked has 10 values from 900 to 963 in 10 layers: parts ran in some steps only, or bring counts "
        "of their own",
    ),
    "a counter that a cast has rounded": (
        counting(a=1000, b=1000, c=1001.5),
        "num_batches_tracked is 1,000 in 2 of 3 layers, 1002 in c (2 updates apart: passes that failed or ran through "
        "a part only)",
    ),
    "a counter as large as no count": (
        counting(a=1, b=1, c=1e300),
        "num_batches_tracked is 1 in 2 of 3 layers, 1e+300 in c (the others were frozen, or these ran in more passes)",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES, each=note(layer=""))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["layer4.0.bn1", "layer4.0.bn2", "layer4.1.bn1"], ["layer4"]),
        (["layer4.0.bn1", "layer4.0.bn2"], ["layer4.0"]),
        (["layer4.0.bn2", "layer4.1.bn1", "bn1"], ["layer4.0.bn2", "layer4.1", "bn1"]),
        (["bn10"], ["bn10"]),
    ],
    ids=["a stage", "a block of it", "parts", "a name that begins like another"],
)
def test_blocks_are_named_by_what_holds_them_alone(names: list[str], expected: list[str]) -> None:
    network = ["bn1", "bn10", "layer3.0.bn1", "layer4.0.bn1", "layer4.0.bn2", "layer4.1.bn1"]
    assert expected == list(blocks(names, set(network) - set(names)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.last = nn.Sequential(nn.BatchNorm2d(4))
        self.end = nn.BatchNorm1d(4)
        self.after = nn.BatchNorm1d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = recompute(self.body, self.stem(images), use_reentrant=False)
        return self.after(self.end(self.last(features).mean((2, 3))))  # type: ignore[no-any-return]


def message(network: nn.Module) -> str:
    return the_one(RULE, live_group(network).layers).message


def test_torch_counts_twice_under_gradient_checkpointing() -> None:
    network = Network()
    for _ in range(10):
        torch.autograd.backward(network(torch.randn(4, 1, 9, 9)).sum())
    assert "10 in 4 of 6 layers, 20 in body (twice as many: recomputed by gradient checkpointing" in message(network)


def test_torch_counts_a_forward_that_fails() -> None:
    """A batch of one image: `end` refuses it after counting, and `after` never sees it."""
    network = Network()
    for images in (4, 4, 4, 4, 4, 1, 4, 4):
        with contextlib.suppress(ValueError):
            network(torch.randn(images, 1, 9, 9))
    assert "8 in 5 of 6 layers, 7 in after (1 update apart: passes that failed" in message(network)
