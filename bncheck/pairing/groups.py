"""Matches the layers of two checkpoints by name, and compares what belongs together.

The names of one may have something in front that those of the other lack: the part of a joint model, the attribute of
a training framework. What fits most layers is taken, and said.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bncheck.errors import UsageError
from bncheck.pairing.names import FROM_COARSE_TO_FINE, coarser_dtype, realigned, rounded
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.pair import CheckpointPair, GroupPair, LayerChange
from bncheck.subjects.shift import Shift, distances
from bncheck.wording import count, few, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bncheck.subjects.checkpoint import Group, Tensor
    from bncheck.subjects.layer import Array, BatchNormLayer, Setting

# Settings that were stored in single precision differ by less: 1e-5 becomes 9.99999975e-06.
SINGLE_PRECISION = 1e-6
# Elements that are compared at a time: 2 MiB of float32 on either side.
PIECE = 2**19
# Elements of a tensor that can only be read whole; readers give no more at once.
LARGEST_WHOLE = 2**20
# Layers of the first checkpoint that propose prefixes, and proposals that are tried. One layer in its place is enough.
PROPOSING = 16
TRIED = 32
# Groups of either file that are tried with those of the other, where no two have one name.
TRIED_GROUPS = 8
PARAMETERS = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a name of the first checkpoint becomes one of the second: `put` in place of `instead_of`, at its front."""

    put: str
    instead_of: str

    def name(self, name: str) -> str | None:
        """The name in the second checkpoint; None where there can be none."""
        return realigned(name, self.put, self.instead_of) if name.startswith(self.instead_of) else None


SAME_NAMES = Alignment("", "")


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the user says: names below a prefix of the first checkpoint are those below another of the second."""

    prefixes: tuple[tuple[str, str], ...]

    def name(self, name: str) -> str | None:
        for before, after in self.prefixes:
            if name.startswith(before):
                return after + name.removeprefix(before)
        return name


Naming = Alignment | Mapped


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
    """Groups of the same name where there are any with layers in common, else the two that have most in common."""
    firsts = [group for group in before.groups if group.layers]
    seconds = [group for group in after.groups if group.tensors or group.layers]
    by_name = {group.name: group for group in seconds}
    named = [(group, by_name[group.name]) for group in firsts if group.name in by_name]
    fitting = [(first, second) for first, second in named if common(first, second, mapping)]
    if fitting:
        return fitting
    both = [(first, second) for first in largest(firsts) for second in largest(seconds)]
    if not both:
        return []
    first, second = max(both, key=lambda pair: common(pair[0], pair[1], mapping))
    if len(firsts) > 1:
        notes.append(left_out(before, first, "--before-group"))
    if len([group for group in seconds if group.layers]) > 1:
        notes.append(left_out(after, second, "--after-group"))
    return [(first, second)]


def largest(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: -len(group.layers))[:TRIED_GROUPS]


def common(first: Group, second: Group, mapping: Sequence[tuple[str, str]]) -> int:
    """How many layers two groups share, those without statistics included."""
    naming = naming_of(first, second, mapping)
    return len(matched(first, second, naming)) + len(stripped(first, second, naming))


def left_out(checkpoint: Checkpoint, group: Group, option: str) -> str:
    others = [shown(other) for other in checkpoint.groups if other is not group and other.layers]
    return f"of {checkpoint.source}, {shown(group)} is compared, not {few(others)} ({option} chooses)"


def shown(group: Group) -> str:
    return group.name or "the whole file"


# -- which names belong together


def naming_of(first: Group, second: Group, mapping: Sequence[tuple[str, str]]) -> Naming:
    """What the user says, or the prefixes with which most layers match; of several, where most parameters are equal."""
    if mapping:
        return Mapped(tuple(mapping))
    candidates = proposals([layer.name for layer in first.layers], names_of(second))
    scores: dict[Alignment, tuple[int, int, int]] = {}
    for place, alignment in enumerate(candidates):
        pairs = matched(first, second, alignment)
        scores[alignment] = (len(pairs), len(stripped(first, second, alignment)), -place)
    most = max(scores.values())[:2]
    best = [alignment for alignment, score in scores.items() if score[:2] == most]
    if len(best) == 1 or not most[0]:
        return best[0]
    return max(best, key=lambda alignment: (equal_parameters(first, second, alignment), scores[alignment]))


def names_of(group: Group) -> list[str]:
    """The names of its layers; where there is none, of the modules that have a weight of one dimension."""
    return [layer.name for layer in group.layers] or [
        name.removesuffix(".weight")
        for name, tensor in group.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 1
    ]


def proposals(first: Sequence[str], second: Sequence[str]) -> list[Alignment]:
    """Equal names, and what is left in front of names that end alike; the most frequent ones first."""
    votes: Counter[Alignment] = Counter()
    by_end: dict[str, list[list[str]]] = {}
    for name in second:
        parts = name.split(".")
        by_end.setdefault(parts[-1], []).append(parts)
    for name in first[:: -(-len(first) // PROPOSING) or 1]:
        parts = name.split(".")
        for other in by_end.get(parts[-1], []):
            alike = 1
            while alike < min(len(parts), len(other)) and parts[-alike - 1] == other[-alike - 1]:
                alike += 1
            put, instead_of = ("".join(f"{part}." for part in names[: len(names) - alike]) for names in (other, parts))
            votes[Alignment(put, instead_of)] += 1
    ranked = sorted(votes, key=lambda one: (-votes[one], len(one.put) + len(one.instead_of)))
    return list(dict.fromkeys([SAME_NAMES, *ranked[:TRIED]]))


def matched(first: Group, second: Group, naming: Naming) -> list[tuple[BatchNormLayer, BatchNormLayer]]:
    """The layers of the same name and number of channels."""
    by_name = {layer.name: layer for layer in second.layers}
    pairs = []
    for layer in first.layers:
        name = naming.name(layer.name)
        other = by_name.get(name) if name is not None else None
        if other is not None and (layer.num_features == other.num_features or other.num_features is None):
            pairs.append((layer, other))
    return pairs


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
    return sum(own_parameters_equal(*pair, first, second) is True for pair in matched(first, second, naming))


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


def prefix_note(naming: Alignment) -> str:
    """How the names were brought together."""
    if not naming.instead_of:
        return f"layers of the first are matched with those below {quoted(naming.put)} in the second"
    if not naming.put:
        return f"layers below {quoted(naming.instead_of)} in the first are matched with those of the second"
    return f"layers below {quoted(naming.instead_of)} in the first are matched with those below {quoted(naming.put)}"


def change_of(
    before: BatchNormLayer, after: BatchNormLayer, first: Group, second: Group, feeders: Feeders
) -> LayerChange:
    own = own_parameters_equal(before, after, first, second)
    fed_by: tuple[str, ...] = ()
    if own is not False:  # else the rest need not be read
        fed_by, fed_alike = feeders.compare(before.name)
        own = own if fed_alike is None else fed_alike
    shift, broken = shift_between(before, after)
    return LayerChange(
        before,
        after,
        same_parameters=own,
        fed_by=fed_by,
        same_statistics=statistics_equal(before, after),
        shift=shift,
        broken=broken,
        counter_change=counter_change(before, after),
        settings=settings_changed(before, after),
    )


def own_parameters_equal(before: BatchNormLayer, after: BatchNormLayer, first: Group, second: Group) -> bool | None:
    """Whether weight and bias are equal; None where neither has any."""
    compared = []
    for part in PARAMETERS:
        own, other = getattr(before, part), getattr(after, part)
        if own is None and other is None:
            continue
        if own is None or other is None:
            if before.has(part) and after.has(part):
                continue  # one holds no numbers
            return False
        dtypes = (
            group.tensors[f"{layer.name}.{part}"].dtype if f"{layer.name}.{part}" in group.tensors else layer.dtype
            for group, layer in ((first, before), (second, after))
        )
        compared.append(equal(own, other, *dtypes))
    return all(compared) if compared else None


def statistics_equal(before: BatchNormLayer, after: BatchNormLayer) -> bool | None:
    compared = []
    for part in STATISTICS:
        own, other = getattr(before, part), getattr(after, part)
        if own is None or other is None or own.shape != other.shape:
            return None
        compared.append(equal(own, other, before.dtype, after.dtype))
    return all(compared)


def equal(own: Array, other: Array, own_dtype: str | None = None, other_dtype: str | None = None) -> bool:
    """Whether two arrays hold the same bits; of different dtypes, the same numbers in the coarser one."""
    import numpy as np

    if own.shape != other.shape:
        return False
    if own.dtype == other.dtype and own_dtype == other_dtype:
        return own.tobytes() == other.tobytes()
    coarser = coarser_dtype(own_dtype, other_dtype)
    return bool(np.array_equal(rounded(own, coarser), rounded(other, coarser), equal_nan=True))


def shift_between(before: BatchNormLayer, after: BatchNormLayer) -> tuple[Shift | None, int]:
    """How far the statistics moved, measured by those before, and how many channels are no longer finite."""
    import numpy as np

    arrays = [getattr(layer, part) for layer in (before, after) for part in STATISTICS]
    if any(array is None or array.shape != arrays[0].shape for array in arrays):
        return None, 0
    mean, var, new_mean, new_var = (array.astype(np.float64) for array in arrays)
    mean_shift, variance_shift = distances(mean, var, new_mean, new_var, before.assumed_eps)
    was, is_ = np.isfinite(mean) & np.isfinite(var), np.isfinite(new_mean) & np.isfinite(new_var)
    usable = was & is_
    broken = int((was & ~is_).sum())
    return Shift(np.where(usable, mean_shift, np.nan), np.where(usable, variance_shift, np.nan)), broken


def counter_change(before: BatchNormLayer, after: BatchNormLayer) -> int | None:
    counters = (before.num_batches_tracked, after.num_batches_tracked)
    if any(dtype in ("float16", "bfloat16") for dtype in (before.counter_dtype, after.counter_dtype)):
        return None  # every second batch, or every hundredth, cannot be told from the next
    if any(counter is None or not math.isfinite(counter) for counter in counters):
        return None
    return int((counters[1] or 0) - (counters[0] or 0))


def settings_changed(before: BatchNormLayer, after: BatchNormLayer) -> dict[str, tuple[object, object]]:
    """Settings that both files hold and that differ, and the dtype of the statistics."""
    changed: dict[str, tuple[object, object]] = {}
    for name in ("eps", "momentum", "affine", "track_running_stats", "training", "kind"):
        own: Setting[object] = getattr(before, name)
        other: Setting[object] = getattr(after, name)
        if not (own.is_known and other.is_known) or (name == "kind" and own.known is not other.known):
            continue
        if not same_setting(own.value, other.value):
            changed[name] = (own.value, other.value)
    if before.dtype != after.dtype:
        changed["dtype"] = (before.dtype, after.dtype)
    return changed


def same_setting(own: object, other: object) -> bool:
    if isinstance(own, float) and isinstance(other, float):
        return math.isclose(own, other, rel_tol=SINGLE_PRECISION)
    return own == other


# -- what feeds a layer


class Feeders:
    """The convolutions and linear layers in front of the BatchNorm layers of two groups.

    In the order of registration it is the last weight before the layer that has as many outputs, beside the layer if
    there is one. safetensors sorts by dtype and name: then the order of the other file is used, and where both are
    sorted, all such weights beside the layer.
    """

    def __init__(self, first: Group, second: Group, naming: Naming) -> None:
        self.first, self.second, self.naming = first, second, naming
        self.order = list(first.tensors)
        self.ordered = is_ordered(self.order)
        if not self.ordered and is_ordered(list(second.tensors)):
            position = {name: place for place, name in enumerate(second.tensors)}
            self.order.sort(key=lambda name: position.get(naming.name(name) or "", len(position)))
            self.ordered = True
        self.position = {name: place for place, name in enumerate(self.order)}
        self.weights = [
            (place, name, first.tensors[name].shape)
            for place, name in enumerate(self.order)
            if name.rpartition(".")[2].startswith("weight") and len(first.tensors[name].shape) > 1
        ]

    def compare(self, layer: str) -> tuple[tuple[str, ...], bool | None]:
        """The tensors that feed a layer, and whether they are equal in both files; None where that cannot be told."""
        names = self.before(layer)
        answers = [self.equal(name) for name in names]
        if not answers or None in answers or len(set(answers)) > 1:
            return names, None
        return names, answers[0]

    def before(self, layer: str) -> tuple[str, ...]:
        held = self.first.tensors.get(f"{layer}.running_mean") or self.first.tensors.get(f"{layer}.running_var")
        if held is None:
            return ()
        here = self.position.get(f"{layer}.running_mean", self.position.get(f"{layer}.running_var", 0))
        fitting = [(place, name) for place, name, shape in self.weights if held.size in outputs(shape)]
        scope = layer.rpartition(".")[0]
        beside = [(place, name) for place, name in fitting if scope in scopes(name)]
        if not self.ordered:
            return tuple(name for _, name in beside)
        for candidates in (beside, fitting):
            earlier = [name for place, name in candidates if place < here]
            if earlier:
                return (earlier[-1],)
        return ()

    def equal(self, name: str) -> bool | None:
        other_name = self.naming.name(name)
        other = self.second.tensors.get(other_name) if other_name is not None else None
        return None if other is None else equal_tensors(self.first.tensors[name], other)


def is_ordered(names: Sequence[str]) -> bool:
    """Whether tensors stand in the order of registration, in which torch's modules have a weight before its bias."""
    position = {name: place for place, name in enumerate(names)}
    both = [
        position[name] < position[bias]
        for name in names
        if name.endswith("weight") and (bias := f"{name.removesuffix('weight')}bias") in position
    ]
    return both.count(True) > both.count(False) if both else list(names) != sorted(names)


def outputs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The number of outputs; a transposed convolution has it in the second dimension."""
    return (shape[0],) if len(shape) == 2 else shape[:2]


def scopes(weight: str) -> tuple[str, str]:
    """The modules in which a BatchNorm would stand beside a weight: that of the weight, and the one that holds it."""
    module = weight.rpartition(".")[0]
    return module, module.rpartition(".")[0]


def equal_tensors(own: Tensor, other: Tensor) -> bool | None:
    """Whether two tensors hold the same numbers, read piece by piece up to the first difference; None: not readable."""
    if own.shape != other.shape:
        return False
    if own.dtype not in FROM_COARSE_TO_FINE or other.dtype not in FROM_COARSE_TO_FINE:
        return None
    readers = (reader(own), reader(other))
    if None in readers:
        return None
    return all(
        equal(piece, same, own.dtype, other.dtype)
        for piece, same in zip(*(pieces(own, read) for read in readers if read), strict=True)
    )


def reader(tensor: Tensor) -> Callable[[int, int], Array] | None:
    """Reads a range of elements; None where the tensor holds none, or can only be read whole and is large."""
    if tensor.read is None or (tensor.part is None and tensor.size > LARGEST_WHOLE):
        return None
    if tensor.part is not None:
        return tensor.part
    whole = tensor.read().reshape(-1)
    return lambda start, stop: whole[start:stop]


def pieces(tensor: Tensor, read: Callable[[int, int], Array]) -> Iterator[Array]:
    for start in range(0, tensor.size, PIECE):
        yield read(start, min(start + PIECE, tensor.size))
