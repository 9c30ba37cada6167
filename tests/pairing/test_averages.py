"""Averaged weights and those that were averaged: which layers belong together, and how far apart they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bncheck.pairing.averages import compare, layer_pairs, parameter_change
from bncheck.subjects.checkpoint import Group
from tests.rules.layers import fresh, layer
from tests.rules.pairs import tensor

OWN = {"running_mean": [0.2, -0.1, 0.3, 0.1], "running_var": [0.6, 1.4, 2.1, 1.0]}

PAIRED = {
    "the same names": (["a.bn", "b.bn"], ["a.bn", "b.bn"]),
    "fewer names": (["b.bn"], ["b.bn"]),
    "the second has a prefix": (["a.bn", "b.bn"], ["ema.a.bn", "ema.b.bn"]),
    "the first has one": (["net.a.bn", "net.b.bn"], ["a.bn", "b.bn"]),
    "each has its own": (["model.a.bn", "model.b.bn"], ["ema.m.a.bn", "ema.m.b.bn"]),
    "a single layer below a prefix": (["b.bn"], ["ema.b.bn"]),
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


def test_the_first_may_have_some_of_the_names_at_two_places() -> None:
    """All of them stand below the prefix."""
    pairs = layer_pairs(named(["a.bn", "net.a.bn", "net.b.bn"]), named(["a.bn", "b.bn"]))
    assert [pair.first.name for pair in pairs] == ["net.a.bn", "net.b.bn"]


def test_a_comparison_sorts_the_layers() -> None:
    names = ("copied", "initial", "different", "both_initial")
    raw = group(*(layer(name) for name in names[:3]), fresh(names[3]))
    averaged = group(layer("copied"), fresh("initial"), layer("different", **OWN), fresh(names[3]))
    compared = compare(raw, averaged)
    assert compared is not None
    kinds = (compared.copied, compared.initial, compared.different)
    sorted_names = [[pair.second.name for pair in pairs] for pairs in kinds]
    assert sorted_names == [["copied"], ["initial"], ["different"]]
    assert compare(raw, group(layer("other"))) is None


def test_the_change_of_parameters_is_a_relative_norm() -> None:
    first = group(layer("bn", weight=[3, 0, 0, 0], bias=[0, 4, 0, 0]))
    second = group(layer("bn", weight=[3, 0, 0, 0.05], bias=[0, 4, 0, 0]))
    assert parameter_change(first, second, 1e-3) == pytest.approx(0.01)
    assert parameter_change(first, first, 1e-3) == 0.0
    broken = group(layer("bn", weight=np.inf, bias=[0, 4, 0, 0]))
    assert parameter_change(first, broken, 1e-3) == 0.0


def test_other_parameters_are_found_where_the_layers_stand() -> None:
    plain = {"weight": None, "bias": None}
    raw = group(layer("m.a", **plain), layer("m.b", **plain), m__conv__weight=np.ones((2, 2)))
    outside, inside = np.full((2, 2), 9.0), np.full((2, 2), 1.5)
    averaged = group(*(layer(f"ema.{name}", **plain) for name in "ab"), ema__conv__weight=inside, conv__weight=outside)
    assert parameter_change(raw, averaged, 1e-3) == pytest.approx(0.5)
    assert parameter_change(raw, group(layer("x"), m__conv__weight=inside), 1e-3) == 0.0


def group(*layers: Any, **tensors: Any) -> Group:
    """A state_dict with these layers and other parameters; `__` in their names stands for a dot."""
    return Group("", "state_dict", {key.replace("__", "."): tensor(held) for key, held in tensors.items()}, layers)
