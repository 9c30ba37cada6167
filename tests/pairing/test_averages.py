"""Which layers of averaged weights belong to those of the weights that were averaged."""

import pytest

from bncheck.pairing.averages import layer_pairs
from bncheck.subjects.checkpoint import Group
from tests.rules.layers import layer

PAIRED = {
    "the same names": (["a.bn", "b.bn"], ["a.bn", "b.bn"]),
    "fewer names": (["b.bn"], ["b.bn"]),
    "the second has a prefix": (["a.bn", "b.bn"], ["ema.a.bn", "ema.b.bn"]),
    "the first has one": (["net.a.bn", "net.b.bn"], ["a.bn", "b.bn"]),
    "each has its own": (["model.a.bn", "model.b.bn"], ["ema.m.a.bn", "ema.m.b.bn"]),
}
APART = {
    "more names": (["a.bn"], ["a.bn", "b.bn"]),
    "a single layer is all prefix": (["model.bn"], ["ema.bn"]),
    "other names": (["a.bn", "b.bn"], ["c.bn", "d.bn"]),
    "nothing": (["a.bn"], []),
}


@pytest.mark.parametrize("name", PAIRED)
def test_every_layer_of_the_average_finds_its_own(name: str) -> None:
    of_raw, of_average = PAIRED[name]
    beside = ["beside.it"]
    found = layer_pairs(named([*of_raw, *beside]), named(of_average))
    assert list(zip(of_raw, of_average, strict=True)) == [(pair.first.name, pair.second.name) for pair in found]


@pytest.mark.parametrize("name", APART)
def test_there_are_no_pairs_unless_all_have_one(name: str) -> None:
    of_raw, of_average = APART[name]
    assert layer_pairs(named(of_raw), named(of_average)) == ()


def named(names: list[str]) -> Group:
    return Group("", "state_dict", {}, tuple(map(layer, names)))
