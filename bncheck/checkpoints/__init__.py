"""Reads checkpoints without running them. One file per format; content decides, never the name of a file.

A format is a module with `FORMAT` (its name), `recognises(source)` and `read(source)`; one in several files also has
`shard_names(source)`, the files that belong to it.
"""

from __future__ import annotations

import glob
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from bncheck.checkpoints.encodings.limits import limits_for
from bncheck.checkpoints.sources.local import FileSource, Source
from bncheck.errors import BncheckError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint


class Format(Protocol):
    """A module that reads one format."""

    FORMAT: str

    def recognises(self, source: Source) -> bool:
        """Whether the source is of this format, by its first bytes."""

    def read(self, source: Source) -> Checkpoint:
        """The checkpoint. Raises UnreadableError or UnsupportedError."""


# The modules, asked in this order; no source is of two of them.
FORMATS = (
    "torch_zip",
    "safetensors",
    "torch_legacy",
    "sharded",
    "torchscript",
    "pt2",
    "distributed",
    "onnx_model",
)

# In a folder, a file so named is examined even if its content is not recognised: a truncated or empty checkpoint
# must not be passed over in silence.
CHECKPOINT_SUFFIXES = {".pt", ".pth", ".ckpt", ".safetensors", ".pt2", ".ptl", ".onnx"}
SKIPPED_FOLDERS = {"__pycache__", "node_modules"}


def readers() -> Iterator[Format]:
    """The formats in their order. Each is imported when it is asked: most files are of the first."""
    for name in FORMATS:
        yield cast("Format", import_module(f"{__name__}.formats.{name}"))


def format_of(source: Source) -> Format | None:
    """The format of a source, None if it is none that is known."""
    return next((format_ for format_ in readers() if format_.recognises(source)), None)


def read_checkpoint(source: Source) -> Checkpoint:
    """The checkpoint in a source.

    Raises:
        UnreadableError: it is damaged.
        UnsupportedError: it is of a kind that is not read.
    """
    format_ = format_of(source)
    if format_ is None:
        from bncheck.checkpoints.formats.unrecognised import unrecognised

        raise unrecognised(source, CHECKPOINT_SUFFIXES)
    with limits_for(source.name):
        return format_.read(source)


def find_checkpoints(name: str) -> list[Path]:
    """The checkpoint files that a path, a folder or a pattern names.

    A folder is searched with all below it; the shards of an index are not listed beside it. A pattern that the
    shell did not expand is expanded here. A path to a file is returned as it is.

    Raises:
        UsageError: a folder or pattern holds no checkpoint.
    """
    path = Path(name)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError):
        return [path]  # opening it says what is wrong
    if not exists and glob.has_magic(name):
        matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
        found = [inner for match in matches for inner in (in_folder(match) if match.is_dir() else [match])]
        if not found:
            raise UsageError(f"{name} matches no checkpoint", "Check the pattern; it starts at the current directory.")
        return found
    if is_folder:
        found = in_folder(path)
        if not found:
            raise UsageError(f"{name} holds no checkpoint", "Give a folder with checkpoints in it, or the file itself.")
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
            return format_of(source) is not None
    except BncheckError:
        return False


def shards_of(path: Path) -> set[str]:
    """The files beside this one that belong to the same checkpoint; none for one in a single file."""
    try:
        with FileSource(path) as source:
            shard_names = getattr(format_of(source), "shard_names", None)
            return shard_names(source) if shard_names else set()
    except BncheckError:
        return set()  # reading it says what is wrong
