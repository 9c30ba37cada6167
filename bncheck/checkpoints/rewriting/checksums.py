"""The checksums that a zip archive keeps of an entry, once its bytes are others."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.zip_archive import LOCAL_HEADER
from bncheck.checkpoints.rewriting.patches import Patch
from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.checkpoints.encodings.zip_archive import Entry, ZipArchive
    from bncheck.checkpoints.sources import Source

CRC = struct.Struct("<L")
CRC_IN_LOCAL_HEADER = 14
CRC_IN_RECORD = 16
# Sizes and checksum stand behind the bytes of an entry whose flags have this bit, with or without these four bytes.
HAS_DESCRIPTOR = 0x8
DESCRIPTOR_MAGIC = b"PK\x07\x08"
# How much of an entry is read at once.
PIECE = 4 * 2**20


def checksums(archive: ZipArchive, entry: Entry, start: int, patches: Sequence[Patch]) -> Iterator[Patch]:
    """The patches of the checksum of an entry: in the table of contents, before its bytes, and behind them.

    Args:
        archive, entry: what is patched.
        start: the first byte of the entry in the file.
        patches: those of its bytes, in order.
    """
    end = start + entry.size
    label = f"{quoted(entry.name)} in {archive.source.name}"
    others = (other.header_offset for other in archive.entries.values() if other is not entry)
    if end > archive.table_start or any(entry.header_offset <= other < end for other in others):
        raise UnreadableError(f"{label} lies over another part of the archive", DAMAGED_HINT)
    new = CRC.pack(crc_of(archive.source, start, end, patches))
    yield Patch(entry.record_offset + CRC_IN_RECORD, new)
    header = LOCAL_HEADER.unpack(archive.source.read(entry.header_offset, LOCAL_HEADER.size))
    if not header[2] & HAS_DESCRIPTOR or header[6]:
        yield Patch(entry.header_offset + CRC_IN_LOCAL_HEADER, new)
    if header[2] & HAS_DESCRIPTOR:
        behind = archive.source.read(end, len(DESCRIPTOR_MAGIC) + CRC.size)
        if behind.startswith(DESCRIPTOR_MAGIC):
            yield Patch(end + len(DESCRIPTOR_MAGIC), new)
        elif behind.startswith(CRC.pack(entry.crc)):
            yield Patch(end, new)
        else:
            raise UnreadableError(f"{label} has no checksum behind its bytes, as it says", DAMAGED_HINT)


def crc_of(source: Source, start: int, end: int, patches: Sequence[Patch]) -> int:
    """The checksum of a range of a file once it is patched; the patches are in order and lie within."""
    crc = 0
    for patch in (*patches, Patch(end, b"")):
        while start < patch.start:
            length = min(PIECE, patch.start - start)
            crc = zlib.crc32(source.read(start, length), crc)
            start += length
        crc = zlib.crc32(patch.data, crc)
        start += len(patch.data)
    return crc
