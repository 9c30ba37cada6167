"""Every tensor and bare storage in what a pickle holds, as the bytes that it lies on: two of them may share some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.torch_objects import StorageRecord, TensorRecord
from bncheck.checkpoints.encodings.limits import limits
from bncheck.checkpoints.encodings.pickles import Dictionary, Object
from bncheck.checkpoints.encodings.places import Region, View
from bncheck.checkpoints.encodings.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def views_in(value: object, region_of: Callable[[StorageRecord], Region | None]) -> Iterator[View]:
    """The views of a file.

    Args:
        value: what its pickle holds.
        region_of: gives the place of a storage; None where the file does not hold it.
    """
    for record in records_in(value):
        storage = record if isinstance(record, StorageRecord) else record.storage
        region = region_of(storage) if storage is not None else None
        if region is None or record.dtype not in DTYPES:
            continue
        if isinstance(record, StorageRecord):
            yield View(region, record.dtype, (record.numel,), (1,), 0)
        elif len(record.shape) == len(record.strides):
            yield View(region, record.dtype, record.shape, record.strides, record.offset)


def records_in(value: object) -> Iterator[TensorRecord | StorageRecord]:
    """The tensors and storages in what a pickle holds, each once."""
    seen: set[int] = set()
    waiting: list[object] = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (TensorRecord, StorageRecord)):
            yield part
        elif isinstance(part, (Dictionary, Object, list, tuple)):
            inner = parts_of(part)
            limits().spend(steps=1 + len(inner))
            waiting.extend(inner)


def parts_of(container: Dictionary | Object | list[object] | tuple[object, ...]) -> list[object]:
    """What a container holds, the keys of an object's entries among it."""
    if isinstance(container, Dictionary):
        return [*container.values(), container.attributes]
    if isinstance(container, Object):
        pairs = [part for pair in container.entries for part in pair]
        return [container.maker, container.args, container.state, container.elements, *pairs]
    return list(container)
