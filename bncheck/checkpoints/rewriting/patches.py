"""From new numbers of tensors to the bytes that change in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bncheck.checkpoints.contents.state_dicts import FLOATING
from bncheck.checkpoints.encodings.places import StoredTensor, View
from bncheck.checkpoints.encodings.tensors import DTYPES
from bncheck.checkpoints.encodings.zip_archive import STORED
from bncheck.errors import UnsupportedError, UsageError
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.subjects.checkpoint import Tensor
    from bncheck.subjects.layer import Array

INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
COPY_HINT = "Load the model, clone this buffer, save the model again and repair that file."


class Patch(NamedTuple):
    """Bytes to put at byte `start` of a file."""

    start: int
    data: bytes


@dataclass(slots=True)
class Write:
    """A tensor and the bytes that it gets, in the order of its elements."""

    label: str
    view: View
    data: bytes


def write_of(tensor: Tensor, value: Array | int, label: str) -> Write:
    """The write that gives a tensor a value.

    Raises:
        UnsupportedError: the tensor is of a kind that cannot be overwritten.
        UsageError: the value does not fit it.
    """
    return Write(label, overwritable(tensor, label).view, encoded(value, tensor, label))


def by_container(writes: Sequence[Write]) -> dict[tuple[int, str | None], list[Write]]:
    """The writes into each file, or entry of an archive."""
    into: dict[tuple[int, str | None], list[Write]] = {}
    for write in writes:
        into.setdefault(write.view.region.container, []).append(write)
    return into


# -- what a tensor gets


def overwritable(tensor: Tensor, label: str) -> StoredTensor:
    """The tensor, if the file holds its numbers as they are, each at a place of its own."""
    if not isinstance(tensor, StoredTensor):
        raise UnsupportedError(
            f"{label} holds no numbers that could be overwritten", "Save the model with its numbers."
        )
    entry = tensor.view.region.entry
    if entry is not None and entry.method != STORED:
        raise UnsupportedError(
            f"{label} lies in a compressed entry of the archive, whose length would change",
            "Load the checkpoint and save it again with torch.save, which compresses nothing.",
        )
    if any(stride == 0 and extent > 1 for extent, stride in zip(tensor.shape, tensor.view.strides, strict=True)):
        raise UnsupportedError(f"{label} is one number for several channels (expanded)", COPY_HINT)
    return tensor


def encoded(value: Array | int, tensor: Tensor, label: str) -> bytes:
    """The bytes of new values in the dtype of the tensor.

    Raises:
        UsageError: they are too many or too few, or the dtype does not hold them.
    """
    import numpy as np

    order = ">" if isinstance(tensor, StoredTensor) and tensor.big_endian else "<"
    given = np.asarray(value)
    if given.size != tensor.size:
        raise UsageError(
            f"{label} has {count(tensor.size, 'number')} and should get {given.size:,}",
            "The file and what it is repaired with must be of the same network.",
        )
    if tensor.dtype in INTEGERS:
        return encoded_integers(given, tensor.dtype, order, label)
    if tensor.dtype in FLOATING:
        return encoded_floats(given, tensor.dtype, order, label)
    raise UnsupportedError(f"{label} is of dtype {tensor.dtype}, in which statistics are not written", COPY_HINT)


def encoded_integers(given: Array, dtype: str, order: str, label: str) -> bytes:
    import numpy as np

    _, code = DTYPES[dtype]
    bounds = np.iinfo(code)
    whole = np.isfinite(given).all() and (given == np.round(given)).all()
    if not whole or not fits(given, bounds.min, bounds.max):
        raise UsageError(f"{label} is of dtype {dtype}, which cannot hold its new value", COPY_HINT)
    return given.astype(f"{order}{code}").tobytes()


def fits(values: Array, low: int, high: int) -> bool:
    return all(low <= int(value) <= high for value in values.reshape(-1).tolist())


def encoded_floats(given: Array, dtype: str, order: str, label: str) -> bytes:
    import numpy as np

    if not np.isfinite(given).all():
        raise UsageError(f"{label} would become NaN or infinite", "Check the data, and the weights of the model.")
    bytes_each, code = DTYPES[dtype]
    with np.errstate(over="ignore"):
        if code == "ml_dtypes":
            import ml_dtypes

            rounded = given.astype(np.float64).astype(getattr(ml_dtypes, dtype))
            as_stored = rounded.view(f"u{bytes_each}").astype(f"{order}u{bytes_each}")
        else:
            rounded = given.astype(code)
            as_stored = rounded.astype(f"{order}{code}")
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise UsageError(
            f"{label} would become {number(float(np.abs(given).max()))}, more than {dtype} can hold",
            "Save the BatchNorm layers in float32 first.",
        )
    return as_stored.tobytes()


# -- where it is put


def patches_of(writes: Sequence[Write], start: int) -> list[Patch]:
    """The patches of one container, which starts at byte `start` of its file: in order, none overlaps another.

    Raises:
        UnsupportedError: two writes put different bytes at one place.
    """
    import numpy as np

    positions = np.concatenate([write.view.positions().reshape(-1) for write in writes])
    values = np.concatenate([np.frombuffer(write.data, dtype=np.uint8) for write in writes])
    order = np.argsort(positions, kind="stable")
    positions, values = positions[order], values[order]
    again = positions[1:] == positions[:-1]
    if (again & (values[1:] != values[:-1])).any():
        raise UnsupportedError(
            f"{writes[0].label} shares its bytes with another tensor, and the two get different numbers", COPY_HINT
        )
    kept = np.concatenate([[True], ~again]) if len(positions) else again
    positions, values = positions[kept], values[kept]
    runs = np.flatnonzero(np.diff(positions) != 1) + 1
    return [
        Patch(start + int(place[0]), data.tobytes())
        for place, data in zip(np.split(positions, runs), np.split(values, runs), strict=True)
        if place.size
    ]
