"""One file or folder for each format, and the order in which they are asked. A new one is that file and a line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bncheck.checkpoints.encodings.places import View
    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.checkpoint import Checkpoint


class Format(Protocol):
    """A module that reads one format."""

    FORMAT: str

    def recognises(self, source: Source) -> bool:
        """Whether the source is of this format, by its first bytes."""

    def read(self, source: Source) -> Checkpoint:
        """The checkpoint. Raises UnreadableError or UnsupportedError."""


class FormatInSeveralFiles(Format, Protocol):
    """One whose checkpoints may be an index and other files."""

    def shard_names(self, source: Source) -> set[str]:
        """The files beside the source that belong to the same checkpoint."""


class RewritableFormat(Format, Protocol):
    """One whose tensors lie in the file as they are, so that other numbers can be put in their places."""

    def views(self, source: Source) -> Iterable[View]:
        """The tensors and bare storages of this one file that may share bytes with others of it."""


# The modules, asked in this order; no source is of two of them. In a folder, a file with one of the suffixes is
# examined even if its content is not recognised: a truncated or empty checkpoint must not be passed over in silence.
FORMATS: dict[str, tuple[str, ...]] = {
    "torch_zip": (".pt", ".pth", ".ckpt"),
    "safetensors": (".safetensors",),
    "torch_legacy": (),
    "sharded": (),
    "torchscript": (".ptl",),
    "pt2": (".pt2",),
    "distributed": (),
    "onnx_model": (".onnx",),
}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}


def readers() -> Iterator[Format]:
    """The formats in their order. Each is imported when it is asked: most files are of the first."""
    for name in FORMATS:
        yield cast("Format", import_module(f"{__name__}.{name}"))


def format_of(source: Source) -> Format | None:
    """The format of a source, None if it is none that is known."""
    return next((format_ for format_ in readers() if format_.recognises(source)), None)


def shard_names(source: Source) -> set[str]:
    """The files beside a source that belong to the same checkpoint; none for one in a single file."""
    format_ = format_of(source)
    return cast("FormatInSeveralFiles", format_).shard_names(source) if hasattr(format_, "shard_names") else set()


def rewritable(format_: Format | None) -> RewritableFormat | None:
    """The format, if its files can be given other numbers."""
    return cast("RewritableFormat", format_) if hasattr(format_, "views") else None
