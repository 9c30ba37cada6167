"""eps and momentum that are not the same everywhere."""

import pytest
import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.findings.rule import CannotTell, Evidence
from bncheck.rules.inconsistent_settings import RULE
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import layer, of_state_dict
from tests.rules.tables import Fires, Quiet, Undecided, asked, fires, note, quiet, the_one, undecided, warning

# A network as MobileNetV3 has it, with variances for which 1e-3 instead of 1e-5 matters.
PORTED = {"eps": stored(1e-3), "momentum": stored(0.01), "running_var": [2e-3, 1, 1, 1]}
MOMENTUM = {"momentum": stored(0.01)}


def ported(number: int, part: str = "features") -> tuple[BatchNormLayer, ...]:
    return tuple(layer(f"{part}.{index}.bn", **PORTED) for index in range(number))


def odd(name: str, **fields: object) -> BatchNormLayer:
    """A layer with PyTorch's eps among ported ones."""
    return layer(name, **{**PORTED, "eps": stored(1e-5), **fields})


QUIET: Quiet = {
    "all alike": ported(3),
    "one layer": (layer(),),
    "one layer of a state_dict": (of_state_dict(),),
    "rounding": (layer("a", **MOMENTUM), layer("b", momentum=stored(0.010000000000000009))),
    "float32 in a graph": (layer("a"), layer("b", eps=stored(9.999999747378752e-06))),
    "a frozen backbone with eps 0": (layer("a"), layer("b", eps=stored(0.0), use=StatisticsUse.FROZEN)),
    "a layer without statistics": (layer("a"), layer("b", eps=stored(1e-3), running_mean=None, running_var=None)),
    "what other rules speak of": (
        layer("a"),
        layer("b", eps=stored(0.0), momentum=stored(0.99)),
        layer("c", eps=stored(float("nan")), momentum=stored(-1.0)),
    ),
}

FIRES: Fires = {
    # sqrt((2e-3 + 1e-3) / (2e-3 + 1e-5)), in the channel of the least variance
    "a rebuilt layer": (
        (*ported(10), odd("features.10.bn")),
        warning(
            "eps is 1e-05, but 0.001 in 10 layers around it: the output of some channels differs by a factor of up to "
            "1.22",
            layer="features.10.bn",
        ),
    ),
    "a rebuilt layer below a common prefix": (
        (*ported(10, "model.features"), odd("model.features.10.bn"), *ported(1, "model.head")),
        warning("eps is 1e-05", layer="model.features.10.bn"),
    ),
    "a head of its own": (
        (*ported(10), odd("head.bn")),
        note("eps differs between the layers: 0.001 in 10 layers, 1e-05 in 1 layer (head.bn)", layer=""),
    ),
    "a head of its own below a common prefix": (
        (*ported(10, "model.features"), odd("model.head.bn")),
        note("eps differs", layer=""),
    ),
    "many layers": ((*ported(8), odd("features.8.bn")), note("eps differs", layer="")),
    "variances for which it does not matter": (
        (*ported(10), odd("features.10.bn", running_var=1)),
        note("eps differs", layer=""),
    ),
    "channels that are dead or off": (
        (*ported(10), odd("features.10.bn", running_var=[2e-3, 1e-4, 0, 1], weight=[0, 1, 1, 1])),
        note("eps differs", layer=""),
    ),
    "momentum": (
        (layer("a"), layer("b"), layer("c", **MOMENTUM)),
        note("momentum differs between the layers: 0.1 in 2 layers, 0.01 in 1 layer (c)", layer=""),
    ),
    "a cumulative mean": (
        (layer("a"), layer("b"), layer("c", momentum=stored(None))),
        note("momentum differs between the layers: 0.1 in 2 layers, None in 1 layer (c)", layer=""),
    ),
}

UNDECIDED: Undecided = {
    "a state_dict holds neither": (
        (of_state_dict("a"), of_state_dict("b")),
        [
            CannotTell("the file does not hold eps", group=""),
            CannotTell("the file does not hold momentum", group=""),
        ],
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_what_is_known_is_compared_although_some_is_not() -> None:
    layers = (layer("a"), layer("b", eps=stored(1e-3)), layer("c", eps=UNKNOWN))
    [open_question, evidence] = asked(RULE, layers)
    assert CannotTell("the file does not hold eps", group="") == open_question
    assert isinstance(evidence, Evidence)


def test_the_factor_is_what_torch_computes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.BatchNorm2d(3, eps=1e-3) for _ in range(11)]).eval()
    parts = nn.ModuleDict({"features": network})
    last = network[10]
    last.running_var.fill_(0.002)
    images = torch.randn(4, 3, 5, 5)
    right = last(images).detach()
    last.eps = 1e-5
    evidence = the_one(RULE, live_group(parts).layers)
    factor = float((last(images).detach() / right).max())
    assert evidence.measured["largest_impact"] == pytest.approx(factor - 1, rel=1e-4)
