"""Whether two networks hold the same: equal in every bit, or as far as the coarser dtype of the two tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bncheck.subjects.checkpoint import Group, Tensor
    from bncheck.subjects.layer import Array, BatchNormLayer

FROM_COARSE_TO_FINE = ("bfloat16", "float16", "float32", "float64")
# Elements that are compared at a time: 2 MiB of float32 on either side.
PIECE = 2**19
# Elements of a tensor that can only be read whole; readers give no more at once.
LARGEST_WHOLE = 2**20
PARAMETERS = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


# -- arrays


def equal(own: Array, other: Array, own_dtype: str | None = None, other_dtype: str | None = None) -> bool:
    """Whether two arrays hold the same bits; of different dtypes, the same numbers in the coarser one."""
    import numpy as np

    if own.shape != other.shape:
        return False
    if own.dtype == other.dtype and own_dtype == other_dtype:
        return own.tobytes() == other.tobytes()
    coarser = coarser_dtype(own_dtype, other_dtype)
    return bool(np.array_equal(rounded(own, coarser), rounded(other, coarser), equal_nan=True))


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


# -- layers


def parameters_equal(before: BatchNormLayer, after: BatchNormLayer, first: Group, second: Group) -> bool | None:
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


# -- tensors that are read for it


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
