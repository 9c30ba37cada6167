"""The table of contents of a zip file, read without trusting it.

`zipfile` would read the same tables; it keeps half a kilobyte for each entry, believes the sizes it is told, and
returns the last of two entries of one name. Here the tables are bounded, and a file that contradicts itself is
refused, since two programs that read it could see two different models.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.checkpoints.sources import Source

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCAL_MAGIC = b"PK\x03\x04"
CENTRAL_MAGIC = b"PK\x01\x02"
END_MAGIC = b"PK\x05\x06"
END64_LOCATOR_MAGIC = b"PK\x06\x07"
END64_MAGIC = b"PK\x06\x06"
MAX_COMMENT = 2**16
# A table of contents has about 70 bytes for each entry; the largest model has some ten thousand entries.
MAX_TABLE = 16 * 2**20
IN_EXTRA_FIELD = 0xFFFFFFFF
STORED, DEFLATED = 0, 8
# The largest entry of which ranges are read although it is packed.
MAX_UNPACKED = 64 * 2**20


class Entry(NamedTuple):
    """A file in the archive. Sizes and offsets in bytes; `record_offset` is where the table of contents has it."""

    name: str
    method: int
    compressed_size: int
    size: int
    header_offset: int
    record_offset: int
    flags: int
    crc: int


@lru_cache(maxsize=1)
def open_archive(source: Source) -> ZipArchive:
    """The archive in a source; the last one is kept, since recognising a file and reading it need the same table."""
    return ZipArchive(source)


class ZipArchive:
    """The entries of a zip file by name.

    Raises:
        UnreadableError: the table of contents is missing, out of bounds, or names an entry twice.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.entries: dict[str, Entry] = {}
        self._names: set[str] = set()
        self._unpacked: tuple[Entry | None, bytes] = (None, b"")
        start, size, count = self._table()
        self.table_start = start
        if size > MAX_TABLE:
            raise self._damaged(f"has a table of contents of {size:,} bytes")
        table = source.read(start, size)
        place = 0
        while place < size:
            place = self._add(table, place, start)
        if len(self.entries) != count:
            raise self._damaged(f"announces {count:,} entries and has {len(self.entries):,}")

    def _damaged(self, what: str) -> UnreadableError:
        return UnreadableError(f"{self.source.name} {what}", DAMAGED_HINT)

    def _table(self) -> tuple[int, int, int]:
        """Start, size and number of entries of the table of contents."""
        size = self.source.size
        tail_start = max(0, size - END.size)  # torch writes no comment
        tail = self.source.read(tail_start, size - tail_start)
        if not tail.startswith(END_MAGIC):
            tail_start = max(0, tail_start - MAX_COMMENT)
            tail = self.source.read(tail_start, size - tail_start)
        place = tail.rfind(END_MAGIC)
        if place < 0 or len(tail) - place < END.size:
            raise self._damaged("is a zip file without its end")
        _, disk, _, _, count, table_size, table_start, _ = END.unpack_from(tail, place)
        end = tail_start + place
        locator_at = end - END64_LOCATOR.size
        if locator_at >= 0:
            magic, _, end64_at, _ = END64_LOCATOR.unpack(self.source.read(locator_at, END64_LOCATOR.size))
            if magic == END64_LOCATOR_MAGIC:
                record = END64.unpack(self.source.read(end64_at, END64.size))
                if record[0] != END64_MAGIC:
                    raise self._damaged("has a ZIP64 locator that leads nowhere")
                _, _, _, _, disk, _, _, count, table_size, table_start = record
                end = end64_at
        if disk != 0:
            raise self._damaged("is one part of a zip file in several parts")
        if table_start + table_size > end:
            raise self._damaged("has a table of contents outside the file")
        return table_start, table_size, count

    def _add(self, table: bytes, place: int, table_start: int) -> int:
        """Adds the entry at `place` of the table, returns the place of the next."""
        if len(table) - place < CENTRAL_HEADER.size:
            raise self._damaged("has a table of contents that breaks off")
        fields = CENTRAL_HEADER.unpack_from(table, place)
        magic, flags, method, crc, compressed, size = fields[0], fields[3], fields[4], *fields[7:10]
        name_length, extra_length, comment_length, header_offset = fields[10], fields[11], fields[12], fields[16]
        name_at = place + CENTRAL_HEADER.size
        extra_at = name_at + name_length
        following: int = extra_at + extra_length + comment_length
        if magic != CENTRAL_MAGIC or following > len(table):
            raise self._damaged("has a table of contents that breaks off")
        name = table[name_at:extra_at].decode("utf-8", "surrogateescape")
        wide = [value for value in (size, compressed, header_offset) if value == IN_EXTRA_FIELD]
        if wide:
            numbers = self._wide_numbers(table[extra_at : extra_at + extra_length], len(wide))
            size = next(numbers) if size == IN_EXTRA_FIELD else size
            compressed = next(numbers) if compressed == IN_EXTRA_FIELD else compressed
            header_offset = next(numbers) if header_offset == IN_EXTRA_FIELD else header_offset
        if name.lower() in self._names:  # torch finds entries whatever their case
            raise self._damaged(f"has two entries of the name {quoted(name)}")
        self._names.add(name.lower())
        if flags & 1:
            raise UnreadableError(f"{self.source.name} is encrypted", "Decrypt it first.")
        if header_offset + compressed > table_start or (method == STORED and size != compressed):
            raise self._damaged(f"has an entry {quoted(name)} that lies about its size or place")
        self.entries[name] = Entry(name, method, compressed, size, header_offset, table_start + place, flags, crc)
        return following

    def _wide_numbers(self, extra: bytes, count: int) -> Iterator[int]:
        """The 64-bit numbers of a ZIP64 extra field (id 1)."""
        place = 0
        while place + 4 <= len(extra):
            identity, length = struct.unpack_from("<2H", extra, place)
            if identity == 1 and length >= 8 * count and place + 4 + length <= len(extra):
                return iter(struct.unpack_from(f"<{count}Q", extra, place + 4))
            place += 4 + length
        raise self._damaged("has an entry that misses its ZIP64 sizes")

    def start(self, entry: Entry) -> int:
        """The offset in the file at which the bytes of an entry start."""
        name = entry.name.encode("utf-8", "surrogateescape")
        data = self.source.read(entry.header_offset, LOCAL_HEADER.size + len(name))
        header = LOCAL_HEADER.unpack_from(data)
        if header[0] != LOCAL_MAGIC or header[9] != len(name) or data[LOCAL_HEADER.size :] != name:
            raise self._damaged(f"has no entry {quoted(entry.name)} where it should be")
        start: int = entry.header_offset + len(data) + header[10]
        if start + entry.compressed_size > self.source.size:
            raise self._damaged(f"ends inside {quoted(entry.name)}")
        return start

    def read(self, name: str, limit: int) -> bytes:
        """A whole entry, unpacked, of at most `limit` bytes."""
        return self._unpack(self.entries[name], limit)

    def read_range(self, entry: Entry, offset: int, length: int) -> bytes:
        """A range of an entry. A packed one allows no access by offset: the one that was unpacked last is kept."""
        if entry.method == STORED:
            return self.source.read(self.start(entry) + offset, length)
        if self._unpacked[0] != entry:
            self._unpacked = (entry, self._unpack(entry, MAX_UNPACKED))
        return self._unpacked[1][offset : offset + length]

    def is_big_endian(self, root: str) -> bool:
        """What torch writes into `byteorder` in its root folder."""
        name = f"{root}byteorder"
        return name in self.entries and self.read(name, 16).strip() == b"big"

    def _unpack(self, entry: Entry, limit: int) -> bytes:
        if entry.size > limit:
            raise UnreadableError(
                f"{self.source.name} holds {quoted(entry.name)} of {entry.size:,} bytes; at most {limit:,} are read",
                "Tensors belong outside the pickle: save them as torch tensors, not as Python or numpy objects.",
            )
        data = self.source.read(self.start(entry), min(entry.compressed_size, limit + 2**16))
        if entry.method == STORED:
            return data
        if entry.method != DEFLATED:
            raise self._damaged(f"packs {quoted(entry.name)} in a way that torch does not read")
        try:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            unpacked = unpacker.decompress(data, entry.size + 1)  # 0 would be no limit
        except zlib.error as error:
            raise self._damaged(f"has {quoted(entry.name)} damaged: {error}") from None
        if len(unpacked) != entry.size:
            raise self._damaged(f"has {quoted(entry.name)} of another size than it says")
        return unpacked
