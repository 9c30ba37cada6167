"""Matches what belongs together in two networks of the same shape: names below a prefix, layers, parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.subjects.layer import StatisticsUse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bncheck.subjects.checkpoint import Group, Tensor
    from bncheck.subjects.layer import Array, BatchNormLayer

# Of the tensors beside the BatchNorm layers, this many are read to tell whether parameters differ, none larger than
# this, which is also the most that a reader gives at once: a float32 convolution of 4 MiB.
MOST_READ = 8
LARGEST_READ = 2**20
FROM_COARSE_TO_FINE = ("bfloat16", "float16", "float32", "float64")


# -- names


def common_prefix(file_names: Sequence[str], model_names: Sequence[str]) -> tuple[str, str]:
    """What the file's names have before those of the architecture, or the other way round; the most frequent pair."""
    known = set(model_names)
    if known.intersection(file_names) or not known or not file_names:
        return "", ""
    votes: dict[tuple[str, str], int] = {}
    by_end: dict[str, list[str]] = {}
    for name in model_names:
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    for name in file_names:
        for other in by_end.get(name.rpartition(".")[2], []):
            if name.endswith(f".{other}"):
                pair = (name.removesuffix(other), "")
            elif other.endswith(f".{name}"):
                pair = ("", other.removesuffix(name))
            else:
                continue
            votes[pair] = votes.get(pair, 0) + 1
    return max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1]))) if votes else ("", "")


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


# -- two groups of one network


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
    """Compares the statistics of two groups, None where they do not hold the same layers.

    The names of one may have a prefix more.
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
        elif same_statistics(pair):
            copied.append(pair)
        else:
            different.append(pair)
    return Comparison(tuple(copied), tuple(initial), tuple(different))


def layer_pairs(first: Group, second: Group) -> tuple[LayerPair, ...]:
    """Each layer of the second group with that of the first, in the order of the second; () unless all have one."""
    by_name = {layer.name: layer for layer in first.layers}
    prefixes = alignment(list(by_name), [layer.name for layer in second.layers])
    if prefixes is None:
        return ()
    return tuple(LayerPair(by_name[realigned(layer.name, *prefixes)], layer) for layer in second.layers)


def alignment(first: Sequence[str], second: Sequence[str]) -> tuple[str, str] | None:
    """What to put in place of what, at the front of the second names, to get first ones; None if that fails for one."""
    known = set(first)
    shift, cut = common_prefix(second, first)
    both_have_one = (own_prefix(first), own_prefix(second))
    for prefixes in ((cut, shift), both_have_one if len(second) > 1 else ("", "")):  # a single layer is all prefix
        if second and all(realigned(name, *prefixes) in known for name in second):
            return prefixes
    return None


def realigned(name: str, put: str, instead_of: str) -> str:
    return put + name.removeprefix(instead_of)


def own_prefix(names: Sequence[str]) -> str:
    """The modules that all names have in front, `model.backbone.`; the last part of a name is its own."""
    paths = [name.split(".")[:-1] for name in names]
    shared = ""
    for modules in zip(*paths, strict=False):
        if len(set(modules)) > 1:
            break
        shared += f"{modules[0]}."
    return shared


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


def same_statistics(pair: LayerPair) -> bool:
    import numpy as np

    coarser = coarser_dtype(pair.first.dtype, pair.second.dtype)
    return all(
        np.array_equal(rounded(getattr(pair.first, name), coarser), rounded(getattr(pair.second, name), coarser))
        for name in ("running_mean", "running_var")
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
    beside = []
    for pair in layer_pairs(first, second):
        coarser = coarser_dtype(pair.first.dtype, pair.second.dtype)
        for name in ("weight", "bias"):
            own, other = getattr(pair.first, name), getattr(pair.second, name)
            if own is not None and other is not None and own.shape == other.shape:
                beside.append((rounded(own, coarser), rounded(other, coarser)))
    yield beside
    readable = list(other_parameters(first, second))
    for own_tensor, tensor in readable[:: -(-len(readable) // MOST_READ) or 1]:
        if own_tensor.read and tensor.read:
            coarser = coarser_dtype(own_tensor.dtype, tensor.dtype)
            yield [(rounded(own_tensor.read(), coarser), rounded(tensor.read(), coarser))]


def other_parameters(first: Group, second: Group) -> Iterator[tuple[Tensor, Tensor]]:
    prefixes = alignment([layer.name for layer in first.layers], [layer.name for layer in second.layers])
    for name, tensor in second.tensors.items():
        own = first.tensors.get(realigned(name, *prefixes)) if prefixes else None
        if own is None or own is tensor or own.shape != tensor.shape or len(tensor.shape) < 2:
            continue
        floating = own.dtype in FROM_COARSE_TO_FINE and tensor.dtype in FROM_COARSE_TO_FINE
        if floating and tensor.size <= LARGEST_READ:
            yield own, tensor


def coarser_dtype(first: str | None, second: str | None) -> str | None:
    """The dtype to which both are rounded for comparison; None where they have the same, or one is of another kind."""
    if first == second or first not in FROM_COARSE_TO_FINE or second not in FROM_COARSE_TO_FINE:
        return None
    return min(first, second, key=FROM_COARSE_TO_FINE.index)


def rounded(values: Array, dtype: str | None) -> Array:
    """The values as the dtype holds them, for comparison with what was stored in it."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "float32":
            return values.astype(np.float32)
        if dtype == "float16":
            return values.astype(np.float16)
        if dtype == "bfloat16":
            import ml_dtypes

            return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    return values
