"""safetensors files: a JSON header with the place of each tensor, then the bytes.

The header is parsed here because the package's own reader wants a path and has no numpy type for bfloat16 and float8.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.state_dicts import state_dict_group
from bncheck.checkpoints.encodings.json import parse_json
from bncheck.checkpoints.encodings.places import Region, stored
from bncheck.checkpoints.encodings.tensors import (
    DTYPES,
    MAX_DIMENSIONS,
    contiguous_strides,
    is_count,
    read_from,
    strided_tensor,
)
from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.subjects.checkpoint import Checkpoint, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from bncheck.checkpoints.encodings.places import View
    from bncheck.checkpoints.sources import Source

FORMAT = "safetensors"
PREFIX = 8  # bytes that hold the length of the header
# The limit of the reference implementation.
MAX_HEADER = 100_000_000
# JSON of this many bytes is parsed; a header has about 120 for each tensor.
MAX_PARSED = 16 * 2**20
METADATA = "__metadata__"
DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
# Narrower than a byte; their sizes are not checked and their numbers not read.
SUB_BYTE = {"F4", "F6_E2M3", "F6_E3M2"}


def recognises(source: Source) -> bool:
    """Eight bytes of length, then an opening brace."""
    if source.size < PREFIX + 2:
        return False
    head = source.read(0, PREFIX + 1)
    return head[PREFIX:] == b"{" and int.from_bytes(head[:PREFIX], "little") <= MAX_HEADER


def read(source: Source) -> Checkpoint:
    """The state_dict in a safetensors file.

    Raises:
        UnreadableError: the header is damaged or contradicts the file.
    """
    tensors, metadata = read_tensors(source)
    facts = {f"metadata.{key}": value for key, value in metadata.items()}
    return Checkpoint(source.name, FORMAT, (state_dict_group("", tensors, ordered=False),), facts=facts)


def read_tensors(source: Source) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by key, in the order of its header, and its metadata."""
    length = int.from_bytes(source.read(0, PREFIX), "little")
    start = PREFIX + length
    if start > source.size:
        raise UnreadableError(
            f"{source.name} announces a header of {length:,} bytes and has {source.size:,} bytes in all", DAMAGED_HINT
        )
    if length > MAX_PARSED:
        raise UnreadableError(
            f"{source.name} has a header of {length:,} bytes; at most {MAX_PARSED:,} are read",
            "Check what the file holds.",
        )
    header = parse_json(source.read(PREFIX, length), source.name)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict):
        raise UnreadableError(f"{source.name} has metadata that are not a table", DAMAGED_HINT)
    tensors: dict[str, Tensor] = {}
    places: list[tuple[int, int, str]] = []
    for key, entry in header.items():
        tensor, place = tensor_at(source, start, key, entry)
        tensors[key] = tensor
        places.append((*place, key))
    end = 0
    for first, last, key in sorted(places):
        if first < end and last > first:
            raise UnreadableError(f"{source.name} has tensors that overlap, {quoted(key)} among them", DAMAGED_HINT)
        end = max(end, last)
    if start + end > source.size:
        raise UnreadableError(f"{source.name} needs {start + end:,} bytes and has {source.size:,}", DAMAGED_HINT)
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def tensor_at(source: Source, start: int, key: str, entry: object) -> tuple[Tensor, tuple[int, int]]:
    """The tensor of a header entry, and its first and last byte, counted from the end of the header."""
    label = f"{quoted(key)} in {source.name}"
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(first), int(last)]} if (
            len(shape) <= MAX_DIMENSIONS and all(is_count(number) for number in (*shape, first, last)) and first <= last
        ):
            pass
        case _:
            raise UnreadableError(f"{label} has no dtype, shape or place", DAMAGED_HINT)
    if code in SUB_BYTE:
        return Tensor(code.lower(), tuple(shape), None), (first, last)
    if code not in DTYPE_NAMES:
        raise UnreadableError(f"{label} has the unknown dtype {quoted(code)}", "Save it as F32, F16 or BF16.")
    dtype = DTYPE_NAMES[code]
    strides = contiguous_strides(shape)
    tensor = strided_tensor(
        label, dtype, tuple(shape), strides, 0, last - first, partial(read_from, source, start + first)
    )
    if tensor.size * DTYPES[dtype][0] != last - first:
        raise UnreadableError(f"{label} has {last - first:,} bytes, which do not fit its shape", DAMAGED_HINT)
    return stored(tensor, Region(source, start + first), strides, 0), (first, last)


def views(_: Source) -> tuple[View, ...]:
    """None of its tensors shares bytes: a file in which two overlap is refused."""
    return ()
