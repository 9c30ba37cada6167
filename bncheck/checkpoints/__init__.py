"""Reads checkpoints without running them. One file per format; content decides, never the name of a file.

A format is a module with `FORMAT` (its name), `recognises(source)` and `read(source)`.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bncheck.checkpoints import safetensors, sharded, torch_legacy, torch_zip
from bncheck.checkpoints.source import FileSource, Source
from bncheck.errors import BncheckError, UnreadableError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from bncheck.subjects import Checkpoint


class Format(Protocol):
    """A module that reads one format."""

    FORMAT: str

    def recognises(self, source: Source) -> bool:
        """Whether the source is of this format, by its first bytes."""

    def read(self, source: Source) -> Checkpoint:
        """The checkpoint. Raises UnreadableError or UnsupportedError."""


# Asked in this order. Each looks at the first bytes only.
FORMATS: tuple[Format, ...] = (torch_zip, torch_legacy, safetensors, sharded)

# In a folder, a file so named is examined even if its content is not recognised: a truncated or empty checkpoint
# must not be passed over in silence.
CHECKPOINT_SUFFIXES = {".pt", ".pth", ".ckpt", ".safetensors"}
SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
PICKLE_START = b"\x80"


def read_checkpoint(source: Source) -> Checkpoint:
    """The checkpoint in a source.

    Raises:
        UnreadableError: it is damaged.
        UnsupportedError: it is of a kind that is not read.
    """
    for format_ in FORMATS:
        if format_.recognises(source):
            return format_.read(source)
    raise unrecognised(source)


def unrecognised(source: Source) -> BncheckError:
    """What to say of a file of no known format."""
    name = source.name
    if source.size == 0:
        return UnreadableError(f"{name} is empty", "Copy or save it again.")
    head = source.read(0, min(source.size, 512))
    if head.startswith(b"PK\x03\x04"):
        return UnsupportedError(
            f"{name} is a zip file without a checkpoint of torch in it", "Unpack it and give the checkpoint inside."
        )
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return UnsupportedError(f"{name} is a tar or gzip archive", "Unpack it and give the checkpoint inside.")
    if head.startswith(PICKLE_START):
        return UnsupportedError(
            f"{name} is a pickle that torch.save did not write", "Save the model with torch.save or safetensors."
        )
    return UnsupportedError(
        f"{name} is not a checkpoint that bncheck reads",
        "Give a file written by torch.save or safetensors, or a folder with such files.",
    )


def find_checkpoints(name: str) -> list[Path]:
    """The checkpoint files that a path, a folder or a pattern names.

    A folder is searched with all below it; the shards of an index are not listed beside it. A pattern that the
    shell did not expand is expanded here. A path to a file is returned as it is.

    Raises:
        UsageError: a folder or pattern holds no checkpoint.
    """
    path = Path(name)
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = True  # opening it says what is wrong
    if not exists and glob.has_magic(name):
        matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
        found = [inner for match in matches for inner in (in_folder(match) if match.is_dir() else [match])]
        if not found:
            raise UsageError(f"{name} matches no checkpoint", "Check the pattern; it starts at the current directory.")
        return found
    if exists and path.is_dir():
        found = in_folder(path)
        if not found:
            raise UsageError(
                f"{name} holds no checkpoint", "Give a folder with files written by torch.save or safetensors."
            )
        return found
    return [path]


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints in a folder and below, sorted; hidden folders are left out."""
    found: list[Path] = []
    shards: set[Path] = set()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS)
        for name in sorted(files):
            path = Path(place, name)
            if is_checkpoint(path):
                found.append(path)
                shards.update(path.parent / shard for shard in shards_of(path))
    return [path for path in found if path not in shards]


def is_checkpoint(path: Path) -> bool:
    if path.suffix in CHECKPOINT_SUFFIXES:
        return True
    try:
        with FileSource(path) as source:
            return any(format_.recognises(source) for format_ in FORMATS)
    except BncheckError:
        return False


def shards_of(path: Path) -> set[str]:
    """The files beside an index of shards that belong to it; none for anything else."""
    try:
        with FileSource(path) as source:
            return sharded.shard_names(source) if sharded.recognises(source) else set()
    except BncheckError:
        return set()  # reading it says what is wrong
