"""Which groups of two checkpoints belong together, and what differs between them: a pair for the rules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bncheck.errors import UsageError
from bncheck.pairing.changes import change_of
from bncheck.pairing.equality import parameters_equal
from bncheck.pairing.feeders import Feeders
from bncheck.pairing.names import SAME_NAMES, Alignment, Mapped, alignment_of, equal_parameters, matched, stripped
from bncheck.subjects.pair import CheckpointPair, GroupPair
from bncheck.wording import count, few, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bncheck.pairing.names import Naming
    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer

# Groups of either file that are tried with those of the other, where no two have one name.
TRIED_GROUPS = 8
# The share of the layers of the smaller group that must match below a prefix, if they are to be those of one network.
LEAST_SHARED = 0.5


def pair_of(
    before: Checkpoint, after: Checkpoint, mapping: Sequence[tuple[str, str]] = (), *, several: bool = False
) -> CheckpointPair:
    """What two checkpoints have in common, and what differs.

    Args:
        before, after: the checkpoints, narrowed to the groups that are compared.
        mapping: prefixes of names in `before`, and what stands for them in `after`; empty to find them.
        several: whether this is one pair of many.

    Raises:
        UsageError: they have no layer in common.
        UnreadableError: one of them is damaged.
    """
    if not before.layers and not after.layers:
        return CheckpointPair(before, after, (), several)
    notes: list[str] = []
    pairs = []
    for first, second in group_pairs(before, after, mapping, notes):
        made = group_pair(first, second, naming_of(first, second, mapping), notes)
        if made.changes or made.without_statistics:
            pairs.append(made)
    if not pairs:
        raise UsageError(
            f"{before.source} and {after.source} have no BatchNorm layer in common",
            "Name the prefixes with --map FROM=TO if they are one network; a fused model has no BatchNorm left.",
        )
    notes += [note for checkpoint in (before, after) if (note := wrappers(checkpoint))]
    notes += [f"{one.source}: {note}" for one in (before, after) for note in one.notes]
    return CheckpointPair(before, after, tuple(pairs), several, tuple(dict.fromkeys(notes)))


# -- which groups belong together


def group_pairs(
    before: Checkpoint, after: Checkpoint, mapping: Sequence[tuple[str, str]], notes: list[str]
) -> list[tuple[Group, Group]]:
    """Groups of the same name where there are any with layers in common, else the two that are most alike."""
    firsts = [group for group in before.groups if group.layers]
    seconds = [group for group in after.groups if group.tensors or group.layers]
    by_name = {group.name: group for group in seconds}
    named = [(group, by_name[group.name]) for group in firsts if group.name in by_name]
    fitting = [(first, second) for first, second in named if alike(first, second, mapping)[0]]
    if fitting:
        return fitting
    both = [(first, second) for first in largest(firsts) for second in largest(seconds)]
    if not both:
        return []
    first, second = max(both, key=lambda pair: alike(pair[0], pair[1], mapping))
    if len(firsts) > 1:
        notes.append(left_out(before, first, "--before-group"))
    if len([group for group in seconds if group.layers]) > 1:
        notes.append(left_out(after, second, "--after-group"))
    return [(first, second)]


def largest(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: -len(group.layers))[:TRIED_GROUPS]


def alike(first: Group, second: Group, mapping: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """How many layers two groups share, those without statistics included, and how many have equal parameters."""
    naming = naming_of(first, second, mapping)
    shared = len(matched(first, second, naming)) + len(stripped(first, second, naming))
    return shared, equal_parameters(first, second, naming)


def left_out(checkpoint: Checkpoint, group: Group, option: str, done: str = "compared") -> str:
    others = [shown(other) for other in checkpoint.groups if other is not group and other.layers]
    return f"of {checkpoint.source}, {shown(group)} is {done}, not {few(others)} ({option} chooses)"


def shown(group: Group) -> str:
    return group.name or "the whole file"


def naming_of(first: Group, second: Group, mapping: Sequence[tuple[str, str]]) -> Naming:
    """What the user says, or what is found."""
    return Mapped(tuple(mapping)) if mapping else alignment_of(first, second)


def wrappers(checkpoint: Checkpoint) -> str | None:
    """What readers leave out of names, since wrappers of torch have put it there."""
    removed: set[str] = set()
    for layer in checkpoint.layers:
        kept = layer.name.split(".")
        for part in layer.stored_name.split("."):
            if kept and part == kept[0]:
                kept = kept[1:]
            elif part:
                removed.add(f"{part}.")
    return f"names of {checkpoint.source} are read without {few(sorted(removed))}" if removed else None


# -- a pair of groups


def group_pair(first: Group, second: Group, naming: Naming, notes: list[str]) -> GroupPair:
    """Compares two groups, and notes how their names differ and what only one of them has."""
    pairs = matched(first, second, naming)
    without = stripped(first, second, naming)
    if isinstance(naming, Alignment) and naming != SAME_NAMES:
        notes.append(prefix_note(naming))
    befores, afters = {id(layer) for layer, _ in pairs}, {id(layer) for _, layer in pairs}
    gone = {id(layer) for layer in without}
    only_first = [layer.name for layer in first.layers if id(layer) not in befores | gone]
    only_second = [layer.name for layer in second.layers if id(layer) not in afters]
    for names, which in ((only_first, "first"), (only_second, "second")):
        if names:
            notes.append(f"{count(len(names), 'layer')} only in the {which} of the two: {few(names)}")
    feeders = Feeders(first, second, naming)
    return GroupPair(
        replace(first, layers=tuple(layer for layer, _ in pairs)),
        replace(second, layers=tuple(layer for _, layer in pairs)),
        tuple(change_of(before, after, first, second, feeders) for before, after in pairs),
        tuple(without),
    )


def prefix_note(naming: Alignment, first: str = "the first", second: str = "the second") -> str:
    """How the names were brought together."""
    if not naming.instead_of:
        return f"layers of {first} are matched with those below {quoted(naming.put)} in {second}"
    if not naming.put:
        return f"layers below {quoted(naming.instead_of)} in {first} are matched with those of {second}"
    return f"layers below {quoted(naming.instead_of)} in {first} are matched with those below {quoted(naming.put)}"


# -- where the layers of one group stand in another


@dataclass(frozen=True, slots=True)
class Counterparts:
    """The layers of a group that belong to those that are wanted of another, by the names of the latter."""

    group: Group
    layers: Mapping[str, BatchNormLayer]
    naming: Alignment
    equal: int  # how many layers have equal parameters


def counterparts(wanted: Sequence[BatchNormLayer], first: Group, second: Group) -> Counterparts:
    """Finds layers of the first group in the second; none where those that match could do so by chance.

    Layers of equal names belong together though their widths differ: whoever compares the numbers can say so.
    """
    held = replace(first, layers=tuple(layer for layer in first.layers if layer.running_mean is not None))
    naming = alignment_of(held, second, wanted)
    layers = named(wanted, second, naming) if are_one_network(held, second, naming) else {}
    same = named(wanted, second, SAME_NAMES)
    if len(same) > len(layers):
        naming, layers = SAME_NAMES, same
    return Counterparts(second, layers, naming, equal_parameters(held, second, naming))


def named(wanted: Sequence[BatchNormLayer], second: Group, naming: Naming) -> dict[str, BatchNormLayer]:
    by_name = {layer.name: layer for layer in second.layers}
    names = {layer.name: naming.name(layer.name) for layer in wanted}
    return {own: by_name[name] for own, name in names.items() if name is not None and name in by_name}


def are_one_network(first: Group, second: Group, naming: Alignment) -> bool:
    """Whether a prefix tells where the layers of one group stand in the other, though both may hold more.

    One layer of several, or a block in another network whose blocks have the same names inside, match by chance;
    weights and biases that were trained and are equal do not.
    """
    pairs = matched(first, second, naming)
    if len(pairs) >= max(min(2, len(first.layers)), LEAST_SHARED * min(len(first.layers), len(second.layers))):
        return True
    trained = [pair for pair in pairs if not pair[0].has_initial_parameters]
    return bool(trained) and all(parameters_equal(*pair, first, second) for pair in trained)


def likeliest(wanted: Sequence[BatchNormLayer], first: Group, candidates: Sequence[Group]) -> Counterparts | None:
    """The counterparts in the group that has most of the wanted layers; None where it is no single one.

    Of several, the group of the same name counts, then that with most equal parameters.
    """
    found = [counterparts(wanted, first, group) for group in candidates]
    ranks = [(len(one.layers), one.group.name == first.name, one.equal) for one in found]
    return found[ranks.index(max(ranks))] if ranks and ranks.count(max(ranks)) == 1 else None
