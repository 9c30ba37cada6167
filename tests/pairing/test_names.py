"""How names of two networks are matched."""

import pytest

from bncheck.pairing.names import Alignment, align, alignment_of, modules_of
from bncheck.subjects.checkpoint import Group
from tests.rules.layers import layer

PREFIXES = {
    "the same names": (["a.bn", "b.bn"], ["a.bn", "b.bn"], ("", "")),
    "one name in common is enough": (["a.bn", "model.b.bn"], ["a.bn", "b.bn"], ("", "")),
    "the file has a prefix": (["model.a.bn", "model.b.bn"], ["a.bn", "b.bn"], ("model.", "")),
    "the architecture has one": (["a.bn", "b.bn"], ["net.a.bn", "net.b.bn"], ("", "net.")),
    "some names in common, but more below a prefix": (["a.bn", "m.a.bn", "m.b.bn"], ["a.bn", "b.bn"], ("m.", "")),
    "a prefix on both sides is not looked for": (["x.a.bn", "x.b.bn"], ["y.a.bn", "y.b.bn"], ("", "")),
    "the most frequent one": (["x.a.bn", "x.b.bn", "y.c.bn"], ["a.bn", "b.bn", "c.bn"], ("x.", "")),
    "the end of a word is no prefix": (["subn"], ["bn"], ("", "")),
    "nothing in the file": ([], ["bn"], ("", "")),
    "nothing in the architecture": (["bn"], [], ("", "")),
}
GROUPS = {
    "the same names": (["a.bn", "b.bn"], ["a.bn", "b.bn"], ("", "")),
    "the second has a prefix": (["a.bn", "b.bn"], ["ema.a.bn", "ema.b.bn"], ("ema.", "")),
    "the first has one": (["net.a.bn", "net.b.bn"], ["a.bn", "b.bn"], ("", "net.")),
    "each has its own": (["m.a.bn", "m.b.bn"], ["ema.n.a.bn", "ema.n.b.bn"], ("ema.n.", "m.")),
    "some layers stand beside the prefix": (["net.a.bn", "net.b.bn", "aux.bn"], ["a.bn", "b.bn"], ("", "net.")),
    "the end of a word is no prefix": (["subn"], ["bn"], ("", "")),
    "nothing in common": (["a.bn", "b.bn"], ["c.bm", "d.bm"], ("", "")),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_the_prefix_that_one_side_has(name: str) -> None:
    of_file, of_architecture, expected = PREFIXES[name]
    naming = align(of_file, of_architecture)
    assert expected == (naming.instead_of, naming.put)


@pytest.mark.parametrize("name", GROUPS)
def test_the_prefixes_with_which_most_layers_match(name: str) -> None:
    first, second, expected = GROUPS[name]
    assert Alignment(*expected) == alignment_of(named(first), named(second))
    assert Alignment(*expected).inverse == alignment_of(named(second), named(first))


def test_of_several_prefixes_that_fit_it_is_the_one_with_equal_parameters() -> None:
    plain = Group("", "state_dict", {}, (layer("bn1", weight=[1, 2, 3, 4]), layer("bn2", weight=[5, 6, 7, 8])))
    joint = Group(
        "",
        "state_dict",
        {},
        (
            layer("rgb.bn1", weight=[1, 1, 1, 1]),
            layer("rgb.bn2", weight=[1, 1, 1, 1]),
            layer("depth.bn1", weight=[1, 2, 3, 4]),
            layer("depth.bn2", weight=[5, 6, 7, 8]),
        ),
    )
    assert Alignment("depth.", "") == alignment_of(plain, joint)
    assert Alignment("", "depth.") == alignment_of(joint, plain)


def named(names: list[str]) -> Group:
    return Group("", "state_dict", {}, tuple(map(layer, names)))


def test_modules_are_listed_once_and_in_order() -> None:
    assert modules_of(["b.weight", "b.bias", "a.c.weight", "top_level"]) == ["b", "a.c"]
