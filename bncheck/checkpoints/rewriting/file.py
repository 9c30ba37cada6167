"""Writes a patched copy of a checkpoint: whole or not at all, and never over what it was made from."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.errors import BncheckError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from bncheck.checkpoints.rewriting.patches import Patch
    from bncheck.checkpoints.rewriting.plan import Plan
    from bncheck.checkpoints.sources import Source

PIECE = 4 * 2**20


def check_target(target: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Raises UsageError where a file may not be written: it is there, or one of the inputs, or has no folder.

    Hard and symbolic links to an input are that input.
    """
    try:
        if not target.parent.is_dir():
            raise UsageError(f"{target.parent} is no folder", "Make the folder of --output first.")
        for path in inputs:
            if path.exists() and is_or_holds(target, path):
                raise UsageError(
                    f"{target} is or holds the input {path}", "Name a new file: the input is never changed."
                )
        if os.path.lexists(target) and not force:
            raise UsageError(f"{target} exists", "Name a new file, or add --force to replace it.")
    except (OSError, ValueError) as error:
        raise UsageError(f"{target} cannot be written: {error}", "Check the path of --output.") from None


def is_or_holds(target: Path, path: Path) -> bool:
    """Whether a file is the target by any of its names, or lies in the folder that the target is."""
    if not target.exists():
        return False
    return os.path.samefile(target, path) or (target.is_dir() and path.resolve().is_relative_to(target.resolve()))


def write_checkpoint(plan: Plan, target: Path, inputs: Sequence[Path], *, force: bool) -> Path:
    """Writes the patched copy, and returns the path to open it by.

    A checkpoint in one file becomes the file `target`. One in several files becomes the folder `target`, with the
    index and the shards under their own names; --force replaces a folder only if it holds nothing but these.

    Everything is written beside the target and put in its place by one renaming, so that an error, a full disk or
    Ctrl-C leaves nothing behind, nor half a file under the name.

    Raises:
        UsageError: it cannot be written.
    """
    check_target(target, inputs, force=force)
    if plan.in_several_files:
        check_folder(plan, target)
    elif target.is_dir():
        raise UsageError(f"{target} is a folder", "Name a file: the checkpoint is in one.")
    made = target.parent / f".bncheck-{secrets.token_hex(8)}.tmp"
    try:
        with naming(target):
            if plan.in_several_files:
                write_folder(plan, made)
                check_target(target, inputs, force=force)
                replace_folder(made, target)
            else:
                write_file(plan.source, plan.of(plan.source), made)
                check_target(target, inputs, force=force)
                os.replace(made, target)
            sync_folder(target.parent)
    except BaseException:
        remove(made)
        raise
    return target / next(iter(plan.files)) if plan.in_several_files else target


@contextlib.contextmanager
def naming(target: Path) -> Iterator[None]:
    """Errors of the system in our words."""
    try:
        yield
    except BncheckError:
        raise
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}",
            "Check the folder, its permissions and the room on the disk.",
        ) from None


def write_file(source: Source, patches: Sequence[Patch], path: Path) -> None:
    """A patched copy, on the disk when this returns; its permissions are those of any new file."""
    with path.open("xb") as out:
        copy(source, out)
        for patch in patches:
            out.seek(patch.start)
            out.write(patch.data)
        out.flush()
        os.fsync(out.fileno())


def copy(source: Source, out: BinaryIO) -> None:
    for start in range(0, source.size, PIECE):
        out.write(source.read(start, min(PIECE, source.size - start)))


def write_folder(plan: Plan, folder: Path) -> None:
    folder.mkdir()
    for name, source in plan.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(source, plan.of(source), path)
        sync_folder(path.parent)


def check_folder(plan: Plan, target: Path) -> None:
    """Raises UsageError where replacing a folder would lose a file that is not of this checkpoint."""
    if not os.path.lexists(target):
        return
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    strange = sorted(present - set(plan.files))
    if not target.is_dir() or target.is_symlink() or strange:
        what = f"holds {strange[0]}, which would be lost" if strange else "is no folder"
        raise UsageError(f"{target} {what}", "Name a new folder: the checkpoint is in several files.")


def replace_folder(made: Path, target: Path) -> None:
    """Puts a folder in the place of another, which comes back if that fails."""
    if not target.exists():
        made.rename(target)
        return
    old = made.with_suffix(".old")
    target.rename(old)
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(made: Path) -> None:
    if made.is_dir() and not made.is_symlink():
        shutil.rmtree(made, ignore_errors=True)
    else:
        made.unlink(missing_ok=True)
