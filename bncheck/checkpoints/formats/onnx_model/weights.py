"""The weights of an ONNX model: in its own bytes, as numbers of the message, or in files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bncheck.checkpoints.encodings.limits import largest_tensor
from bncheck.checkpoints.encodings.tensors import DTYPES, MAX_DIMENSIONS, contiguous_strides, read_from, strided_tensor
from bncheck.checkpoints.formats.onnx_model.skeleton import Raw, parse
from bncheck.errors import DAMAGED_HINT, UnreadableError, UsageError
from bncheck.subjects.checkpoint import Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.layer import Array

    # Messages of the package onnx, which makes its classes when it is imported.
    Message = Any

# onnx.TensorProto.DataType
DTYPE_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the model, or a Constant node. `raw` is None where the message itself holds the numbers."""

    name: str
    proto: Message
    raw: Raw | None = None


def parsed(source: Source) -> tuple[Message, list[Weight]]:
    """The model, and its weights in the order of its graph."""
    model, places = parse(source)
    initializers = model.graph.initializer
    return model, [Weight(proto.name, proto, place) for proto, place in zip(initializers, places, strict=True)]


def tensor_of(source: Source, weight: Weight) -> Tensor:
    """The tensor of a weight, whose numbers are read when they are asked for."""
    proto, raw = weight.proto, weight.raw
    label = f"{quoted(weight.name)} in {source.name}"
    shape = tuple(proto.dims)
    if len(shape) > MAX_DIMENSIONS or any(extent < 0 for extent in shape):
        raise UnreadableError(f"{label} has an impossible shape", DAMAGED_HINT)
    dtype = DTYPE_NAMES.get(proto.data_type, "unknown")
    if dtype not in DTYPES:
        return Tensor(dtype, shape, None)
    place = partial(strided_tensor, label, dtype, shape, contiguous_strides(list(shape)), 0)
    if proto.data_location == EXTERNAL:
        external = external_data(source, proto)
        need = Tensor(dtype, shape, None).size * DTYPES[dtype][0]
        size = need if external.length is None else external.length
        return place(size, partial(read_external, source, external))
    if raw and raw.end > raw.start:
        return place(raw.end - raw.start, partial(read_from, source, raw.start))
    if proto.HasField("raw_data") and proto.raw_data:
        data = proto.raw_data
        return place(len(data), lambda offset, length: data[offset : offset + length])
    return Tensor(dtype, shape, partial(typed_numbers, label, shape, weight))


def typed_numbers(label: str, shape: tuple[int, ...], weight: Weight) -> Array:
    """Numbers that are written as numbers and not as bytes."""
    import numpy as np
    from onnx import numpy_helper

    if (weight.raw and weight.raw.dropped) or Tensor("", shape, None).size > largest_tensor():
        raise UnreadableError(f"{label} has more elements than a per-channel tensor has", "Check what the file holds.")
    try:
        values: Array = np.asarray(numpy_helper.to_array(weight.proto)).reshape(shape)
    except (ValueError, TypeError):
        raise UnreadableError(f"{label} has numbers that do not fit its shape", DAMAGED_HINT) from None
    return values if values.dtype.kind in "iub" or values.dtype == np.float64 else values.astype(np.float32)


class External(NamedTuple):
    """Where the numbers of a weight lie in a file beside the model."""

    file: str
    offset: int
    length: int | None


def external_data(source: Source, proto: Message) -> External:
    entries = {entry.key: entry.value for entry in proto.external_data}
    numbers = [entries.get("offset", "0"), entries.get("length", "0")]
    if "location" not in entries or not all(text.isascii() and text.isdigit() and len(text) < 19 for text in numbers):
        raise UnreadableError(f"{quoted(proto.name)} in {source.name} has no proper place", DAMAGED_HINT)
    offset, length = map(int, numbers)
    return External(entries["location"], offset, length if "length" in entries else None)


def open_external(source: Source, file: str) -> Source:
    try:
        return source.sibling(file)
    except UsageError as error:
        raise UnreadableError(
            f"{source.name} needs a file that cannot be opened: {error.message}",
            "Copy the external data beside the model.",
        ) from None


def read_external(source: Source, external: External, offset: int, length: int) -> bytes:
    return open_external(source, external.file).read(external.offset + offset, length)


def check_external(source: Source, protos: Iterable[Message]) -> None:
    """UnreadableError where a file with weights is missing or too short."""
    ends: dict[str, int] = {}
    for proto in protos:
        if proto.data_location == EXTERNAL:
            external = external_data(source, proto)
            ends[external.file] = max(ends.get(external.file, 0), external.offset + (external.length or 0))
    for file, end in sorted(ends.items()):
        opened = open_external(source, file)
        if opened.size < end:
            raise UnreadableError(
                f"{opened.name} has {opened.size:,} bytes, and {source.name} says it has {end:,}", DAMAGED_HINT
            )
