"""How names of two networks are matched."""

from dataclasses import replace

import pytest

from bncheck.pairing.groups import pair_of
from bncheck.pairing.names import Alignment, align, alignment_of, modules_of, proposals
from bncheck.subjects.checkpoint import Group
from tests.rules.layers import layer, of_state_dict
from tests.rules.pairs import file

PREFIXES = {
    "the same names": (["a.bn", "b.bn"], ["a.bn", "b.bn"], ("", "")),
    "as many equal names as below a prefix": (["a.bn", "model.b.bn"], ["a.bn", "b.bn"], ("", "")),
    "the file has a prefix": (["model.a.bn", "model.b.bn"], ["a.bn", "b.bn"], ("model.", "")),
    "the architecture has one": (["a.bn", "b.bn"], ["net.a.bn", "net.b.bn"], ("", "net.")),
    "some names in common, but more below a prefix": (["a.bn", "m.a.bn", "m.b.bn"], ["a.bn", "b.bn"], ("m.", "")),
    "a prefix on both sides is not looked for": (["x.a.bn", "x.b.bn"], ["y.a.bn", "y.b.bn"], ("", "")),
    "the most frequent one": (["x.a.bn", "x.b.bn", "y.c.bn"], ["a.bn", "b.bn", "c.bn"], ("x.", "")),
    "one name among many that have another prefix": (
        [*(f"x.{place}.bn" for place in range(99)), "y.stem.bn"],
        ["stem.bn", "head.bn"],
        ("y.", ""),
    ),
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


def test_an_alignment_leads_back() -> None:
    there = Alignment("model.", "net.")
    assert (there.name("net.a.bn"), there.name("aux.bn")) == ("model.a.bn", None)
    assert (there.inverse.name("model.a.bn"), there.inverse.name("aux.bn")) == ("net.a.bn", None)


def test_a_part_is_found_in_what_is_much_larger() -> None:
    """Whichever comes first: the names of the part propose where it stands."""
    part, joint = ["m.a.bn", "m.b.bn"], [*(f"other.{place}.norm.bn" for place in range(200)), "net.a.bn", "net.b.bn"]
    assert Alignment("net.", "m.") == alignment_of(named(part), named(joint))
    assert Alignment("m.", "net.") == alignment_of(named(joint), named(part))


def test_layers_that_are_wanted_count_before_all_others() -> None:
    rgb, depth = [f"rgb.{name}.bn" for name in "abc"], [f"depth.{name}.bn" for name in "ab"]
    joint, plain = named([*rgb, *depth]), named([f"{name}.bn" for name in "abc"])
    assert Alignment("", "rgb.") == alignment_of(joint, plain)
    assert Alignment("", "depth.") == alignment_of(joint, plain, joint.layers[3:])
    # A single one could stand in place of any other; the rest tells.
    assert Alignment("", "depth.") == alignment_of(joint, plain, joint.layers[4:])


def test_a_number_of_channels_that_is_not_known_fits_any() -> None:
    plain = {"running_mean": None, "running_var": None, "weight": None, "bias": None}
    unknown = replace(layer(**plain), num_features=None)
    assert len(pair_of(file(unknown), file(layer())).changes) == 1
    assert len(pair_of(file(layer()), file(unknown)).changes) == 1


def test_many_layers_are_matched_in_a_moment() -> None:
    names = [f"layer{block}.{index}.bn{place}" for block in range(4) for index in range(60) for place in (1, 2, 3)]
    assert len(proposals(names, [f"net.{name}" for name in names])) <= 33
    before, after = file(*map(of_state_dict, names)), file(*(of_state_dict(f"net.{name}") for name in names))
    assert len(names) == len(pair_of(before, after).changes)
