"""The outermost structure of protobuf messages, walked without reading what they hold.

A message is a row of fields: a number of the field, how it is written, and a number or a length and that many bytes.
https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bncheck.errors import DAMAGED_HINT, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.checkpoints.sources import Source

# How a field is written: a number, or a length and that many bytes.
NUMBER, LONG, BYTES, SHORT = 0, 1, 2, 5
# Read at once while walking: more than most fields, less than most weights.
WINDOW = 2**14


class Field(NamedTuple):
    """A field of a message: a number, or the range of its bytes. `tag` is where it starts."""

    number: int
    wire: int
    tag: int
    value: int
    start: int
    end: int


class Window:
    """A source of which a stretch is kept, for many small reads in a row."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.offset = 0
        self.data = b""

    def head(self, offset: int) -> bytes:
        """Up to 20 bytes from `offset`: a tag and a number."""
        at = offset - self.offset
        if at < 0 or (at + 20 > len(self.data) and self.offset + len(self.data) < self.source.size):
            self.data = self.source.read(offset, max(0, min(WINDOW, self.source.size - offset)))
            self.offset, at = offset, 0
        return self.data[at : at + 20]


def fields(window: Window, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in a range of the source. The last one may reach beyond `end`: ask."""
    place = start
    while place < end:
        head = window.head(place)
        tag, used = varint(head, 0, window.source.name)
        number, wire = tag >> 3, tag & 7
        if tag >= 2**32:
            raise damaged(window.source.name)
        value, length = 0, 0
        if wire in (NUMBER, BYTES):
            value, used = varint(head, used, window.source.name)
            length = value if wire == BYTES else 0
        elif wire in (LONG, SHORT):
            length = 8 if wire == LONG else 4
        else:
            raise damaged(window.source.name)
        data = place + used
        yield Field(number, wire, place, value, data, data + length)
        place = data + length


def varint(data: bytes, place: int, name: str) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    value = 0
    for index, byte in enumerate(data[place : place + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise damaged(name)


def as_field(number: int, data: bytes) -> bytes:
    """A field that holds bytes."""
    return as_varint(number << 3 | BYTES) + as_varint(len(data)) + data


def as_varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def damaged(name: str) -> UnreadableError:
    return UnreadableError(f"{name} is not a proper ONNX model", DAMAGED_HINT)
