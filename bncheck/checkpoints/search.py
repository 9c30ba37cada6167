"""Which files an argument names: a file, a folder with all below it, or a pattern."""

from __future__ import annotations

import os
from pathlib import Path

from bncheck.checkpoints.formats import SUFFIXES, format_of, shard_names
from bncheck.checkpoints.sources import open_source
from bncheck.errors import BncheckError, UsageError
from bncheck.wording import count, few

SKIPPED_FOLDERS = {"__pycache__", "node_modules"}


def single_checkpoint(name: str | os.PathLike[str]) -> Path:
    """The one checkpoint file that a path, a folder or a pattern names.

    Raises:
        UsageError: a folder or pattern holds no checkpoint, or several.
    """
    paths = find_checkpoints(Path(name))
    if len(paths) > 1:
        raise UsageError(f"{name} holds {count(len(paths), 'checkpoint')}: {few(paths)}", "Give one of them.")
    return paths[0]


def find_checkpoints(name: str | os.PathLike[str]) -> list[Path]:
    """The checkpoint files that a path, a folder or a pattern names.

    A folder is searched with all below it; the shards of an index are not listed beside it. A pattern that the
    shell did not expand is expanded here. A path to a file is returned as it is.

    Raises:
        UsageError: a folder or pattern holds no checkpoint.
    """
    name = os.fspath(name)
    path = Path(name)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError):
        return [path]  # opening it says what is wrong
    if is_folder:
        paths = in_folder(path)
        if not paths:
            raise UsageError(f"{name} holds no checkpoint", "Give a folder with checkpoints in it, or the file itself.")
        return paths
    return [path] if exists else matching(name)


def matching(pattern: str) -> list[Path]:
    """The checkpoints that a pattern names; the path itself where it is none."""
    import glob

    if not glob.has_magic(pattern):
        return [Path(pattern)]
    matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    paths = [inner for match in matches for inner in (in_folder(match) if match.is_dir() else [match])]
    if not paths:
        raise UsageError(f"{pattern} matches no checkpoint", "Check the pattern; it starts at the current directory.")
    return paths


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints in a folder and below, sorted; hidden folders are left out."""
    paths: list[Path] = []
    shards: set[Path] = set()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS)
        for name in sorted(files):
            path = Path(place, name)
            if is_checkpoint(path):
                paths.append(path)
                shards.update(path.parent / shard for shard in shards_of(path))
    return [path for path in paths if path not in shards]


def is_checkpoint(path: Path) -> bool:
    if path.suffix in SUFFIXES:
        return True
    try:
        with open_source(path) as source:
            return format_of(source) is not None
    except BncheckError:
        return False


def shards_of(path: Path) -> set[str]:
    """The files beside this one that belong to the same checkpoint; none for one in a single file."""
    try:
        with open_source(path) as source:
            return shard_names(source)
    except BncheckError:
        return set()  # reading it says what is wrong
