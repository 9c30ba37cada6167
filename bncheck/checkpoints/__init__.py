"""Reads checkpoints without running them. Content decides which format a file is of, never its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.limits import limits_for
from bncheck.checkpoints.formats import format_of

if TYPE_CHECKING:
    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.checkpoint import Checkpoint


def read_checkpoint(source: Source) -> Checkpoint:
    """The checkpoint in a source.

    Raises:
        UnreadableError: it is damaged.
        UnsupportedError: it is of a kind that is not read.
    """
    format_ = format_of(source)
    if format_ is None:
        from bncheck.checkpoints.formats.unrecognised import unrecognised

        raise unrecognised(source)
    with limits_for(source.name):
        return format_.read(source)
