"""Numbers from bytes: dtypes, strided views, byte order."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints.encodings.limits import LARGEST_TENSOR, largest_tensor
from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.subjects.checkpoint import Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy

    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.layer import Array

    ReadBytes = Callable[[int, int], bytes]

# PyTorch's dtypes: (bytes an element, numpy's type). Types that numpy lacks come from ml_dtypes.
DTYPES: dict[str, tuple[int, str]] = {
    "float64": (8, "f8"),
    "float32": (4, "f4"),
    "float16": (2, "f2"),
    "bfloat16": (2, "ml_dtypes"),
    "float8_e4m3fn": (1, "ml_dtypes"),
    "float8_e4m3fnuz": (1, "ml_dtypes"),
    "float8_e5m2": (1, "ml_dtypes"),
    "float8_e5m2fnuz": (1, "ml_dtypes"),
    "float8_e8m0fnu": (1, "ml_dtypes"),
    "int64": (8, "i8"),
    "int32": (4, "i4"),
    "int16": (2, "i2"),
    "int8": (1, "i1"),
    "uint64": (8, "u8"),
    "uint32": (4, "u4"),
    "uint16": (2, "u2"),
    "uint8": (1, "u1"),
    "bool": (1, "?"),
    "complex64": (8, "c8"),
    "complex128": (16, "c16"),
    # quantised integers and types narrower than a byte hold no statistics: their sizes are checked, their
    # numbers are not read
    "quint8": (1, ""),
    "qint8": (1, ""),
    "qint32": (4, ""),
    "complex32": (4, ""),
    "float4_e2m1fn_x2": (1, ""),
    "quint4x2": (1, ""),
    "quint2x4": (1, ""),
    "bits8": (1, ""),
}

# What torch allows; it bounds the size of the numbers that shapes multiply to.
MAX_DIMENSIONS = 64
# A view is read in one piece unless that would read this many times its own size.
MAX_SPARSITY = 64


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63  # a bool is an int, too


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The number of elements from the first to the last of a strided view, both included; 0 if it is empty."""
    if any(extent == 0 for extent in shape):
        return 0
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose elements lie one after the other in the order of C."""
    strides = []
    stride = 1
    for extent in reversed(shape):
        strides.append(stride)
        stride *= max(extent, 1)
    return tuple(reversed(strides))


def read_from(source: Source, start: int, offset: int, length: int) -> bytes:
    """Bytes of a source, counted from `start`."""
    return source.read(start + offset, length)


def strided_tensor(
    label: str,
    dtype: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    storage_bytes: int,
    read: ReadBytes,
    *,
    big_endian: bool = False,
) -> Tensor:
    """A view into a storage, as `torch.as_strided` makes it.

    Args:
        label: what an error calls the tensor.
        dtype: PyTorch's name.
        shape, strides, offset: in elements.
        storage_bytes: the size of the storage.
        read: reads `length` bytes from `start` of the storage.
        big_endian: byte order of the storage.

    Raises:
        UnreadableError: the view reaches outside the storage.
    """
    if dtype not in DTYPES:
        raise UnreadableError(
            f"{label} has the unknown dtype {quoted(dtype)}", "Save it as float32, float16 or bfloat16."
        )
    size, _ = DTYPES[dtype]
    if len(shape) != len(strides) or any(number < 0 for number in (*shape, *strides, offset)):
        raise UnreadableError(f"{label} has an impossible shape, stride or offset", DAMAGED_HINT)
    extent = span(shape, strides)
    if extent and (offset + extent) * size > storage_bytes:
        raise UnreadableError(
            f"{label} needs {(offset + extent) * size} bytes of a storage that has {storage_bytes}", DAMAGED_HINT
        )

    def read_values() -> Array:
        import numpy as np

        count = 1
        for length in shape:
            count *= length
        if count > largest_tensor():
            raise UnreadableError(
                f"{label} has {count:,} elements, more than a per-channel tensor has", "Check what the file holds."
            )
        if not extent:
            if max(shape) > largest_tensor():
                raise UnreadableError(f"{label} is empty and has an impossible shape", DAMAGED_HINT)
            return decode(b"", dtype, big_endian=big_endian).reshape(shape)
        if extent > MAX_SPARSITY * count:
            # A thin view of a large storage, such as a column of a matrix.
            indices = sum(
                (np.arange(n) * stride).reshape(n, *(1,) * (len(shape) - axis - 1))
                for axis, (n, stride) in enumerate(zip(shape, strides, strict=True))
            )
            starts = [(offset + int(index)) * size for index in np.ravel(indices)]
            return decode(b"".join(read(at, size) for at in starts), dtype, big_endian=big_endian).reshape(shape)
        values = decode(read(offset * size, extent * size), dtype, big_endian=big_endian)
        if extent == count and strides[-1:] in ((), (1,)) and len(shape) < 2:
            return values.reshape(shape)  # what nearly all statistics are
        view = np.lib.stride_tricks.as_strided(values, shape, [stride * values.itemsize for stride in strides])
        return np.ascontiguousarray(view).reshape(shape)  # the former makes a 0-d array 1-d

    part: Callable[[int, int], Array] | None = None
    if is_contiguous(shape, strides):
        part = partial(read_elements, dtype, offset, read, big_endian)
    else:
        rows = partial(strided_tensor, label, dtype, shape[1:], strides[1:])
        part = parts_by_rows(
            shape, strides, lambda row: rows(offset + row * strides[0], storage_bytes, read, big_endian=big_endian)
        )
    return Tensor(dtype, shape, read_values, part)


def read_elements(dtype: str, offset: int, read: ReadBytes, big_endian: bool, start: int, stop: int) -> Array:
    """Elements of a contiguous tensor that starts at `offset`."""
    size, _ = DTYPES[dtype]
    return decode(read((offset + start) * size, (stop - start) * size), dtype, big_endian=big_endian)


def read_rows(row_at: Callable[[int], Tensor], length: int, start: int, stop: int) -> Array:
    """Elements of a tensor whose rows have this length and are read one by one."""
    import numpy as np

    first = start // length
    rows = [row.read().reshape(-1) for row in map(row_at, range(first, -(-stop // length))) if row.read]
    values: Array = np.concatenate(rows)
    return values[start - first * length : stop - first * length]


def parts_by_rows(
    shape: tuple[int, ...], strides: tuple[int, ...], row_at: Callable[[int], Tensor]
) -> Callable[[int, int], Array] | None:
    """Reads rows that lie close together and do not overlap, as in a convolution with its channels last."""
    inner = math.prod(shape[1:])
    if not 0 < inner <= LARGEST_TENSOR or span(shape[1:], strides[1:]) > MAX_SPARSITY * inner:
        return None
    return partial(read_rows, row_at, inner) if math.prod(shape) <= span(shape, strides) else None


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one after the other in the order of C."""
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def decode(data: bytes, dtype: str, *, big_endian: bool = False) -> Array:
    """The numbers of a contiguous tensor, flat; 16- and 8-bit floats as float32, which holds them exactly."""
    import numpy as np

    size, code = DTYPES[dtype]
    if not code:
        raise UnreadableError(f"Numbers of dtype {dtype} cannot be read", "Save the statistics as float32.")
    values: Array
    if code == "ml_dtypes":
        import ml_dtypes

        words = np.frombuffer(data, dtype=f"{'>' if big_endian else '<'}u{size}").astype(f"u{size}")
        narrow: numpy.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype))
        values = words.view(narrow)
    else:
        values = np.frombuffer(data, dtype=np.dtype(code).newbyteorder(">" if big_endian else "<"))
        values = values.astype(np.dtype(code), copy=False)
    return values.astype(np.float32) if dtype.startswith(("float16", "bfloat16", "float8")) else values
