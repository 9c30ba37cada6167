"""What to say of a file that is no checkpoint: an archive gets a hint how to come to the checkpoint inside."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.tar import BLOCK, MAGIC, USTAR, tar_members
from bncheck.checkpoints.encodings.zip_archive import LOCAL_MAGIC, ZipArchive
from bncheck.checkpoints.formats import SUFFIXES
from bncheck.errors import BncheckError, UnreadableError, UnsupportedError
from bncheck.wording import few, quoted

if TYPE_CHECKING:
    from bncheck.checkpoints.sources import Source

PICKLE_START = b"\x80"
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")


def unrecognised(source: Source) -> BncheckError:
    """The error for a file of no known format."""
    name = source.name
    if source.size == 0:
        return UnreadableError(f"{name} is empty", "Copy or save it again.")
    head = source.read(0, min(source.size, BLOCK))
    if head.startswith(LOCAL_MAGIC):
        return in_archive(name, "zip file", list(ZipArchive(source).entries))
    if head[MAGIC] == USTAR:
        return in_archive(name, "tar archive", list(tar_members(source)))
    if head.startswith(COMPRESSED_STARTS):
        return in_archive(name, "compressed file", [])
    if head.startswith(PICKLE_START):
        return UnsupportedError(
            f"{name} is a pickle that torch.save did not write", "Save the model with torch.save or safetensors."
        )
    return UnsupportedError(
        f"{name} is not a checkpoint that bncheck reads",
        "Give a file written by torch.save, safetensors, torch.jit.save, torch.export or ONNX, or a folder with such.",
    )


def in_archive(name: str, kind: str, members: list[str]) -> UnsupportedError:
    """The error for an archive, with the checkpoints that it holds by their names."""
    inside = [quoted(member) for member in members if PurePosixPath(member).suffix in SUFFIXES]
    holding = f" that holds {few(inside)}" if inside else ""
    return UnsupportedError(f"{name} is a {kind}{holding}", "Unpack it and give the checkpoint inside.")
