"""An ONNX model without the bytes of its weights, which stay in the file until they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints.encodings.protobuf import BYTES, Field, Window, as_field, damaged, fields
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.checkpoints.sources import Source

    # Messages of the package onnx, which makes its classes when it is imported.
    Message = Any

# Fields of the messages
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
# float_data, int32_data, int64_data, double_data, uint64_data: numbers that are not raw bytes
TYPED_DATA = {4, 5, 7, 10, 11}
# The largest typed data that are kept: per-channel tensors are far smaller.
MAX_TYPED = 2**20
# What is left of a model without its weights: a node has about a hundred bytes.
MAX_SKELETON = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Raw:
    """Where the numbers of a weight lie in the file. `dropped`: there are too many typed numbers to keep."""

    start: int = 0
    end: int = 0
    dropped: bool = False


def parse(source: Source) -> tuple[Message, list[Raw]]:
    """The model without the bytes of its weights, and where those lie, in the order of the weights."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise UnsupportedError(
            f"{source.name} is an ONNX model, and reading it needs the onnx package", "pip install 'bncheck[onnx]'"
        ) from None
    data, places = skeleton(source)
    try:
        model = onnx.ModelProto.FromString(data)
        sound = len(model.graph.initializer) == len(places) and all_text(model)
    except (DecodeError, UnicodeDecodeError):
        sound = False
    if not sound:
        raise damaged(source.name)
    return model, places


def all_text(model: Message) -> bool:
    """Whether the texts of a message are text: protobuf hands out bytes where they are not."""
    waiting = [model]
    while waiting:
        for kind, value in waiting.pop().ListFields():
            values = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
            if kind.type == kind.TYPE_STRING and any(isinstance(text, bytes) for text in values):
                return False
            if kind.type == kind.TYPE_MESSAGE:
                waiting.extend(values)
    return True


def skeleton(source: Source) -> tuple[bytes, list[Raw]]:
    """The bytes of the model without its weights, and the places of those."""
    window = Window(source)
    kept = Kept(source)
    places: list[Raw] = []
    graph: bytes | None = None
    for outer in inside(window, 0, source.size):
        if outer.number != GRAPH:
            kept.add(outer)
            continue
        if graph is not None:
            raise UnreadableError(f"{source.name} has two graphs", DAMAGED_HINT)
        inner = Kept(source)
        for field in inside(window, outer.start, outer.end):
            if field.number == INITIALIZER and field.wire == BYTES:
                initializer, place = without_numbers(window, field)
                inner.insert(as_field(INITIALIZER, initializer))
                places.append(place)
            else:
                inner.add(field)
        graph = inner.bytes()
    return kept.bytes() + as_field(GRAPH, graph or b""), places


def inside(window: Window, start: int, end: int) -> Iterator[Field]:
    """The fields of a message, none of which reaches beyond it."""
    for field in fields(window, start, end):
        if field.end > end:
            raise UnreadableError(f"{window.source.name} ends at byte {end:,}, inside its model", DAMAGED_HINT)
        yield field


def without_numbers(window: Window, initializer: Field) -> tuple[bytes, Raw]:
    """A TensorProto without its raw data, and where those lie."""
    kept = Kept(window.source)
    raw: Raw | None = None
    dropped = False
    for field in inside(window, initializer.start, initializer.end):
        if field.number == RAW_DATA and field.wire == BYTES:
            if raw is not None:
                raise UnreadableError(f"{window.source.name} has a weight that is given twice", DAMAGED_HINT)
            raw = Raw(field.start, field.end)
        elif field.number in TYPED_DATA and field.end - field.start > MAX_TYPED:
            dropped = True
        else:
            kept.add(field)
    return kept.bytes(), raw or Raw(dropped=dropped)


class Kept:
    """What is kept of a message, read in as few pieces as possible."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pieces: list[bytes] = []
        self.start = self.end = 0
        self.size = 0

    def add(self, field: Field) -> None:
        if field.tag != self.end:
            self.flush()
            self.start = field.tag
        self.end = field.end
        self.count(field.end - field.tag)

    def insert(self, data: bytes) -> None:
        self.flush()
        self.pieces.append(data)
        self.count(len(data))

    def count(self, size: int) -> None:
        self.size += size
        if self.size > MAX_SKELETON:
            raise UnsupportedError(
                f"{self.source.name} has a graph of more than {MAX_SKELETON:,} bytes without its weights",
                "Keep large constants as initializers, or in external data.",
            )

    def flush(self) -> None:
        if self.end > self.start:
            self.pieces.append(self.source.read(self.start, self.end - self.start))
        self.start = self.end = 0

    def bytes(self) -> bytes:
        self.flush()
        return b"".join(self.pieces)
