"""What a command is asked about: the path of one checkpoint, or a live module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.checkpoints import find_checkpoints, read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UsageError
from bncheck.wording import count, few

if TYPE_CHECKING:
    from contextlib import ExitStack

    import torch

    from bncheck.subjects.checkpoint import Checkpoint

    Subject = str | os.PathLike[str] | torch.nn.Module


def read(subject: Subject, open_files: ExitStack) -> Checkpoint:
    """The checkpoint of a subject; its tensors can be read until `open_files` are closed.

    Raises:
        BncheckError: the file cannot be read, or several are named.
    """
    if isinstance(subject, (str, os.PathLike)):
        return read_checkpoint(open_files.enter_context(FileSource(single_checkpoint(subject))))
    from bncheck.evaluation.models.live import live_checkpoint

    return live_checkpoint(subject)


def single_checkpoint(name: str | os.PathLike[str]) -> Path:
    """The one file that a path, a folder or a pattern names.

    Raises:
        UsageError: there are several, or none.
    """
    paths = find_checkpoints(str(Path(name)))
    if len(paths) > 1:
        raise UsageError(f"{name} holds {count(len(paths), 'checkpoint')}: {few(paths)}", "Give one of them.")
    return paths[0]
