"""Where the bytes of a tensor lie in its file, so that they can be overwritten there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.tensors import DTYPES, span
from bncheck.subjects.checkpoint import Tensor

if TYPE_CHECKING:
    from bncheck.checkpoints.encodings.zip_archive import Entry, ZipArchive
    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.layer import Array


@dataclass(frozen=True, slots=True)
class Region:
    """Where a storage starts: at byte `start` of a file, or of an entry of a zip archive in it."""

    source: Source
    start: int
    archive: ZipArchive | None = None
    entry: Entry | None = None

    @property
    def container(self) -> tuple[int, str | None]:
        """Equal for regions whose bytes are counted from the same place."""
        return id(self.source), self.entry.name if self.entry else None


@dataclass(frozen=True, slots=True)
class View:
    """A strided view of a storage. Strides and offset count elements."""

    region: Region
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def first(self) -> int:
        """Its first byte, counted as the region counts."""
        return self.region.start + self.offset * DTYPES[self.dtype][0]

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.first + span(self.shape, self.strides) * DTYPES[self.dtype][0]

    @property
    def size(self) -> int:
        """The number of its elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for views of the same elements in the same order."""
        return self.region.container, self.first, self.dtype, self.shape, self.strides

    def positions(self) -> Array:
        """Every byte of it: shape (elements, bytes an element), elements in the order of C."""
        import numpy as np

        size = DTYPES[self.dtype][0]
        elements = np.zeros((), dtype=np.int64)
        for extent, stride in zip(self.shape, self.strides, strict=True):
            elements = elements[..., None] + np.arange(extent, dtype=np.int64) * stride
        positions: Array = self.first + elements.reshape(-1, 1) * size + np.arange(size)
        return positions


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor(Tensor):
    """A tensor whose numbers lie in a file as they are, neither packed nor computed."""

    view: View
    big_endian: bool


def stored(
    tensor: Tensor,
    region: Region,
    strides: tuple[int, ...],
    offset: int,
    *,
    big_endian: bool = False,
) -> StoredTensor:
    """The tensor with its place. Its view was checked when the tensor was made."""
    return StoredTensor(
        tensor.dtype,
        tensor.shape,
        tensor.read,
        tensor.part,
        view=View(region, tensor.dtype, tensor.shape, strides, offset),
        big_endian=big_endian,
    )
