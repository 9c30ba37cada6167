"""The one search for names that belong together: those of one network, and those of another with other prefixes.

The names of one may have something in front that those of the other lack: the part of a joint model, the attribute of
a training framework. What fits most names is taken; of several that fit as many layers, what has most parameters equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.pairing.equality import PARAMETERS, STATISTICS, parameters_equal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bncheck.subjects.checkpoint import Group
    from bncheck.subjects.layer import BatchNormLayer

    LayerPairs = list[tuple[BatchNormLayer, BatchNormLayer]]

# Names that propose prefixes on both sides, and proposals that are tried. One name in its place is enough.
PROPOSING = 16
TRIED = 32


# -- how names become those of the other network


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a name of the first network becomes one of the second: `put` in place of `instead_of`, at its front."""

    put: str
    instead_of: str

    def name(self, name: str) -> str | None:
        """The name in the second network; None where there can be none."""
        return self.put + name.removeprefix(self.instead_of) if name.startswith(self.instead_of) else None

    @property
    def inverse(self) -> Alignment:
        """How a name of the second becomes one of the first."""
        return Alignment(self.instead_of, self.put)


SAME_NAMES = Alignment("", "")


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the user says: names below a prefix of the first network are those below another of the second."""

    prefixes: tuple[tuple[str, str], ...]

    def name(self, name: str) -> str | None:
        for before, after in self.prefixes:
            if name.startswith(before):
                return after + name.removeprefix(before)
        return name


Naming = Alignment | Mapped


# -- the search


def align(first: Sequence[str], second: Sequence[str]) -> Alignment:
    """The prefix of one side with which most names of the first are names of the second; none where none fits more.

    A prefix on both sides is not looked for: where names alone decide, a block of one network would be found in any
    other whose blocks have the same names inside.
    """
    known = set(second)
    return best(
        proposals(first, second, one_sided=True),
        lambda naming: (sum(naming.name(name) in known for name in first),),
    )


def alignment_of(
    first: Group, second: Group, wanted: Sequence[BatchNormLayer] = (), *, one_sided: bool = False
) -> Alignment:
    """The prefixes with which most layers of two groups match; of several, those where most parameters are equal.

    Args:
        first, second: the groups. Layers without statistics in the second count, too, after all others.
        wanted: layers of the first that matter more than the rest, which only tells where those leave a choice.
        one_sided: whether only one of the two may have a prefix.
    """
    mine, others = [layer.name for layer in first.layers], names_of(second)
    proposed = proposals(mine, others, one_sided=one_sided)
    if wanted:
        proposed = list(dict.fromkeys([*proposals([layer.name for layer in wanted], others), *proposed]))
    matter_more = {id(layer) for layer in wanted}

    def fit(naming: Alignment) -> tuple[int, ...]:
        pairs = matched(first, second, naming)
        foremost = sum(id(layer) in matter_more for layer, _ in pairs)
        return foremost, len(pairs), len(stripped(first, second, naming))

    return best(proposed, fit, lambda naming: equal_parameters(first, second, naming))


def best(
    proposed: Sequence[Alignment],
    fit: Callable[[Alignment], tuple[int, ...]],
    decide: Callable[[Alignment], int] = lambda _: 0,
) -> Alignment:
    """The alignment that fits best; of several the one for which `decide` gives most, else the first of them."""
    fits = {naming: fit(naming) for naming in proposed}
    most = max(fits.values())
    equally_good = [naming for naming in proposed if fits[naming] == most]
    return max(equally_good, key=decide) if len(equally_good) > 1 and any(most) else equally_good[0]


def proposals(first: Sequence[str], second: Sequence[str], *, one_sided: bool = False) -> list[Alignment]:
    """Equal names, and what is left in front of names that end alike; what most names propose comes first."""
    votes = prefixes_of_one(first, second)
    if not one_sided:
        votes.update(prefixes_of_both(first, second))
    ranked = sorted(votes, key=lambda one: (-votes[one], len(one.put) + len(one.instead_of)))
    return [SAME_NAMES, *ranked[:TRIED]]


def prefixes_of_one(first: Sequence[str], second: Sequence[str]) -> Counter[Alignment]:
    """The prefixes without which a name is one of the other side, and how many names say so."""
    votes: Counter[Alignment] = Counter()
    mine, others = set(first), set(second)
    for name in first:
        votes.update(Alignment("", prefix) for prefix, end in split(name) if end in others)
    for name in second:
        votes.update(Alignment(prefix, "") for prefix, end in split(name) if end in mine)
    return votes


def prefixes_of_both(first: Sequence[str], second: Sequence[str]) -> Counter[Alignment]:
    """What stands on both sides in front of names that end alike.

    Some names of the side that has fewer are asked, since all of those may have a counterpart; each votes for as many
    as it stands for.
    """
    votes: Counter[Alignment] = Counter()
    fewer, more = (first, second) if len(first) <= len(second) else (second, first)
    by_end: dict[str, list[list[str]]] = {}
    for name in more:
        parts = name.split(".")
        by_end.setdefault(parts[-1], []).append(parts)
    step = max(-(-len(fewer) // PROPOSING), 1)
    for name in fewer[::step]:
        parts = name.split(".")
        for other in by_end.get(parts[-1], []):
            alike = common_end(parts, other)
            if alike < min(len(parts), len(other)):  # else one has no prefix
                own, its = ("".join(f"{part}." for part in names[: len(names) - alike]) for names in (parts, other))
                votes[Alignment(its, own) if fewer is first else Alignment(own, its)] += step
    return votes


def common_end(parts: Sequence[str], others: Sequence[str]) -> int:
    """How many parts are alike from the end."""
    alike = 0
    while alike < min(len(parts), len(others)) and parts[-alike - 1] == others[-alike - 1]:
        alike += 1
    return alike


# -- the layers of two groups


def matched(first: Group, second: Group, naming: Naming) -> LayerPairs:
    """The layers of the same name, and the same number of channels as far as that is known."""
    by_name = {layer.name: layer for layer in second.layers}
    pairs = []
    for layer in first.layers:
        name = naming.name(layer.name)
        other = by_name.get(name) if name is not None else None
        if other is not None and may_be_as_wide(layer, other):
            pairs.append((layer, other))
    return pairs


def may_be_as_wide(layer: BatchNormLayer, other: BatchNormLayer) -> bool:
    """Whether two layers have as many channels, as far as that is known."""
    widths = (layer.num_features, other.num_features)
    return None in widths or widths[0] == widths[1]


def stripped(first: Group, second: Group, naming: Naming) -> list[BatchNormLayer]:
    """Layers of the first group with statistics whose weight or bias is in the second, which has no statistics."""
    known = {layer.name for layer in second.layers}
    found = []
    for layer in first.layers:
        name = naming.name(layer.name)
        if name is None or name in known or not all(layer.has(part) for part in STATISTICS):
            continue
        held = [second.tensors.get(f"{name}.{part}") for part in PARAMETERS]
        if any(tensor is not None and tensor.shape == (layer.num_features,) for tensor in held):
            found.append(layer)
    return found


def equal_parameters(first: Group, second: Group, naming: Naming) -> int:
    """How many of the layers that match have equal weights and biases."""
    return sum(parameters_equal(*pair, first, second) is True for pair in matched(first, second, naming))


def names_of(group: Group) -> list[str]:
    """The names of its layers; where there is none, of the modules that have a weight of one dimension."""
    return [layer.name for layer in group.layers] or [
        name.removesuffix(".weight")
        for name, tensor in group.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 1
    ]


# -- parts of names


def modules_of(tensors: Iterable[str]) -> list[str]:
    """The names of the modules that hold the tensors, each once."""
    return list(dict.fromkeys(module for name in tensors if (module := name.rpartition(".")[0])))


def blocks(names: Iterable[str], others: Iterable[str]) -> dict[str, int]:
    """The shortest prefixes under which none of the others stands, and how many of the names stand there: `layer4`."""
    taken = {prefix for other in others for prefix in prefixes(other)}
    found: dict[str, int] = {}
    for name in names:
        block = next((prefix for prefix in prefixes(name) if prefix not in taken), name)
        found[block] = found.get(block, 0) + 1
    return found


def prefixes(name: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c`."""
    end = name.find(".")
    while end != -1:
        yield name[:end]
        end = name.find(".", end + 1)
    yield name


def split(name: str) -> Iterator[tuple[str, str]]:
    """`a.` and `b.c`, `a.b.` and `c`."""
    end = name.find(".") + 1
    while end:
        yield name[:end], name[end:]
        end = name.find(".", end) + 1
