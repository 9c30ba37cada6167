"""What to say of a file that is no checkpoint: an archive gets a hint how to come to the checkpoint inside."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.zip_archive import LOCAL_MAGIC, ZipArchive
from bncheck.errors import BncheckError, UnreadableError, UnsupportedError
from bncheck.wording import few, quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from bncheck.checkpoints.sources.local import Source

PICKLE_START = b"\x80"
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")
TAR_BLOCK = 512
TAR_NAME, TAR_SIZE, TAR_TYPE, TAR_MAGIC = slice(0, 100), slice(124, 136), slice(156, 157), slice(257, 262)
# Entries of other types (folders, links, longer names) hold no file.
TAR_FILES = (b"0", b"\0")
# A hint needs the first few members only.
MAX_MEMBERS = 1000


def unrecognised(source: Source, suffixes: Collection[str]) -> BncheckError:
    """The error for a file of no known format; `suffixes` are those of checkpoints inside an archive."""
    name = source.name
    if source.size == 0:
        return UnreadableError(f"{name} is empty", "Copy or save it again.")
    head = source.read(0, min(source.size, TAR_BLOCK))
    if head.startswith(LOCAL_MAGIC):
        return in_archive(name, "zip file", list(ZipArchive(source).entries), suffixes)
    if head[TAR_MAGIC] == b"ustar":
        return in_archive(name, "tar archive", list(tar_members(source)), suffixes)
    if head.startswith(COMPRESSED_STARTS):
        return in_archive(name, "compressed file", [], suffixes)
    if head.startswith(PICKLE_START):
        return UnsupportedError(
            f"{name} is a pickle that torch.save did not write", "Save the model with torch.save or safetensors."
        )
    return UnsupportedError(
        f"{name} is not a checkpoint that bncheck reads",
        "Give a file written by torch.save, safetensors, torch.jit.save, torch.export or ONNX, or a folder with such.",
    )


def in_archive(name: str, kind: str, members: list[str], suffixes: Collection[str]) -> UnsupportedError:
    inside = [quoted(member) for member in members if PurePosixPath(member).suffix in suffixes]
    holding = f" that holds {few(inside)}" if inside else ""
    return UnsupportedError(f"{name} is a {kind}{holding}", "Unpack it and give the checkpoint inside.")


def tar_members(source: Source) -> Iterator[str]:
    """The names of the files in a tar archive, as far as its headers make sense."""
    place = 0
    for _ in range(MAX_MEMBERS):
        if place + TAR_BLOCK > source.size:
            return
        header = source.read(place, TAR_BLOCK)
        size = header[TAR_SIZE].strip(b" \0")
        if header[TAR_MAGIC] != b"ustar" or not size.isdigit() or size.strip(b"01234567"):
            return
        if header[TAR_TYPE] in TAR_FILES:
            yield header[TAR_NAME].rstrip(b"\0").decode("utf-8", "replace")
        place += TAR_BLOCK + -(-int(size, 8) // TAR_BLOCK) * TAR_BLOCK
