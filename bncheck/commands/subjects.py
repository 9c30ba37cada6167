"""What a command is asked about: the path of one checkpoint, or a live module."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.search import single_checkpoint
from bncheck.checkpoints.sources import open_source

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
        return read_checkpoint(open_files.enter_context(open_source(single_checkpoint(subject))))
    from bncheck.evaluation.models.live import live_checkpoint

    return live_checkpoint(subject)
