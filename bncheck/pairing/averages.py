"""Averaged weights beside those that were averaged: whose statistics they carry, and how far the parameters moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.pairing.equality import FROM_COARSE_TO_FINE, PARAMETERS, coarser_dtype, rounded, statistics_equal
from bncheck.pairing.names import alignment_of
from bncheck.subjects.layer import StatisticsUse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bncheck.pairing.names import Alignment
    from bncheck.subjects.checkpoint import Group, Tensor
    from bncheck.subjects.layer import Array, BatchNormLayer

# Of the tensors beside the BatchNorm layers, this many are read to tell whether parameters differ, none larger than
# this, which is also the most that a reader gives at once: a float32 convolution of 4 MiB.
MOST_READ = 8
LARGEST_READ = 2**20


@dataclass(frozen=True, slots=True)
class LayerPair:
    """The same layer in two groups."""

    first: BatchNormLayer
    second: BatchNormLayer


@dataclass(frozen=True, slots=True)
class Comparison:
    """The statistics of averaged weights beside those of the weights that were averaged.

    Only layers with statistics in both are listed, each in one of the three. Those that are initial in both, have
    values that are not finite or belong to a class that never updates are in none.
    """

    copied: tuple[LayerPair, ...]  # equal in every bit, or as far as the coarser dtype of the two tells
    initial: tuple[LayerPair, ...]  # mean 0 and variance 1 in the second group only
    different: tuple[LayerPair, ...]


def compare(raw: Group, averaged: Group) -> Comparison | None:
    """Compares the statistics of averaged weights and of those that were averaged.

    None where the latter lack a layer of the average. The names of each may have a prefix of their own.
    """
    pairs = layer_pairs(raw, averaged)
    if not pairs:
        return None
    copied, initial, different = [], [], []
    for pair in pairs:
        if not is_comparable(pair):
            continue
        if pair.second.has_initial_statistics:
            initial.append(pair)
        elif statistics_equal(pair.first, pair.second):
            copied.append(pair)
        else:
            different.append(pair)
    return Comparison(tuple(copied), tuple(initial), tuple(different))


def layer_pairs(first: Group, second: Group) -> tuple[LayerPair, ...]:
    """Each layer of the second group with that of the first, in the order of the second; () unless all have one."""
    return paired(first, second, source_of(first, second))


def source_of(first: Group, second: Group) -> Alignment:
    """How names of the second group, an average, become those of the first, which may hold more than was averaged.

    A single layer is told from others by nothing but its name: then only one of the two may have a prefix.
    """
    return alignment_of(second, first, one_sided=len(second.layers) == 1)


def paired(first: Group, second: Group, naming: Alignment) -> tuple[LayerPair, ...]:
    by_name = {layer.name: layer for layer in first.layers}
    pairs = []
    for layer in second.layers:
        own = by_name.get(name) if (name := naming.name(layer.name)) is not None else None
        if own is None:
            return ()
        pairs.append(LayerPair(own, layer))
    return tuple(pairs)


def is_comparable(pair: LayerPair) -> bool:
    """Whether both have statistics of equal length and finite numbers, and the first has updated them."""
    import numpy as np

    for layer in (pair.first, pair.second):
        mean, var = layer.running_mean, layer.running_var
        if layer.use is StatisticsUse.FROZEN or mean is None or var is None or not var.size:
            return False
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            return False
    first, second = pair.first.running_var, pair.second.running_var
    return (
        first is not None
        and second is not None
        and first.shape == second.shape
        and not pair.first.has_initial_statistics
    )


def parameter_change(first: Group, second: Group, enough: float) -> float:
    """||a - b|| / ||a|| over parameters of two groups of the same layers, a those of the first.

    Those of the BatchNorm layers are at hand. Of the others a few are read, one by one, while the change is not more
    than `enough`. What one group stores more coarsely is compared as coarsely; what is not finite is left out.
    """
    import numpy as np

    difference = total = change = 0.0
    with np.errstate(all="ignore"):
        for together in parameters(first, second):
            for own, other in together:
                wide = own.astype(np.float64)
                squares = (float(np.square(wide - other).sum()), float(np.square(wide).sum()))
                if np.isfinite(squares).all():
                    difference, total = difference + squares[0], total + squares[1]
            change = (difference / total) ** 0.5 if total else 0.0
            if change > enough:
                break
    return change


def parameters(first: Group, second: Group) -> Iterator[list[tuple[Array, Array]]]:
    """Those of the BatchNorm layers together, then some others of two dimensions or more, each by itself."""
    naming = source_of(first, second)
    pairs = paired(first, second, naming)
    yield list(parameters_of_layers(pairs))
    readable = list(other_parameters(first, second, naming)) if pairs else []
    for own, tensor in readable[:: max(-(-len(readable) // MOST_READ), 1)]:
        if own.read and tensor.read:
            coarser = coarser_dtype(own.dtype, tensor.dtype)
            yield [(rounded(own.read(), coarser), rounded(tensor.read(), coarser))]


def parameters_of_layers(pairs: Iterable[LayerPair]) -> Iterator[tuple[Array, Array]]:
    for pair in pairs:
        coarser = coarser_dtype(pair.first.dtype, pair.second.dtype)
        for name in PARAMETERS:
            own, other = getattr(pair.first, name), getattr(pair.second, name)
            if own is not None and other is not None and own.shape == other.shape:
                yield rounded(own, coarser), rounded(other, coarser)


def other_parameters(first: Group, second: Group, naming: Alignment) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors of one name and shape that are small enough to be read."""
    for name, tensor in second.tensors.items():
        own = first.tensors.get(other_name) if (other_name := naming.name(name)) is not None else None
        if own is None or own is tensor or own.shape != tensor.shape or len(tensor.shape) < 2:
            continue
        floating = own.dtype in FROM_COARSE_TO_FINE and tensor.dtype in FROM_COARSE_TO_FINE
        if floating and tensor.size <= LARGEST_READ:
            yield own, tensor
