"""How names of two networks are matched."""

import pytest

from bncheck.pairing.names import alignment, common_prefix, modules_of

PREFIXES = {
    "the same names": (["a.bn", "b.bn"], ["a.bn", "b.bn"], ("", "")),
    "one name in common is enough": (["a.bn", "model.b.bn"], ["a.bn", "b.bn"], ("", "")),
    "the file has a prefix": (["model.a.bn", "model.b.bn"], ["a.bn", "b.bn"], ("model.", "")),
    "the architecture has one": (["a.bn", "b.bn"], ["net.a.bn", "net.b.bn"], ("", "net.")),
    "the most frequent one": (["x.a.bn", "x.b.bn", "y.c.bn"], ["a.bn", "b.bn", "c.bn"], ("x.", "")),
    "the end of a word is no prefix": (["subn"], ["bn"], ("", "")),
    "nothing in the file": ([], ["bn"], ("", "")),
    "nothing in the architecture": (["bn"], [], ("", "")),
}
ALIGNMENTS = {
    "the same names": (["a.bn", "b.bn"], ["a.bn", "b.bn"], ("", "")),
    "fewer names": (["a.bn", "b.bn"], ["b.bn"], ("", "")),
    "more names": (["a.bn"], ["a.bn", "b.bn"], None),
    "the second has a prefix": (["a.bn", "b.bn"], ["ema.a.bn", "ema.b.bn"], ("", "ema.")),
    "the first has one": (["net.a.bn", "net.b.bn"], ["a.bn", "b.bn"], ("net.", "")),
    "each has its own": (["model.a.bn", "model.b.bn"], ["ema.m.a.bn", "ema.m.b.bn"], ("model.", "ema.m.")),
    "a single layer is all prefix": (["model.bn"], ["ema.bn"], None),
    "other names": (["a.bn", "b.bn"], ["c.bn", "d.bn"], None),
    "nothing": (["a.bn"], [], None),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_the_prefix_that_one_side_has(name: str) -> None:
    of_file, of_architecture, expected = PREFIXES[name]
    assert expected == common_prefix(of_file, of_architecture)


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_two_groups_are_aligned_if_every_layer_finds_its_own(name: str) -> None:
    first, second, expected = ALIGNMENTS[name]
    assert expected == alignment(first, second)


def test_modules_are_listed_once_and_in_order() -> None:
    assert modules_of(["b.weight", "b.bias", "a.c.weight", "top_level"]) == ["b", "a.c"]
