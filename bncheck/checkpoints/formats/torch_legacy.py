"""`torch.save` files before torch 1.6: five pickles in a row, then the storages.

The pickles are a magic number, the version of the format, facts about the machine, the object, and the keys of its
storages. For each key, in that order, follow the number of elements in eight bytes and the elements themselves.
torch writes and reads both as little-endian whatever the machine, and heeds the facts about it as little as is done
here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.groups import groups_of
from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, StorageRecord, TensorRecord, storage_of
from bncheck.checkpoints.contents.training_facts import facts_of
from bncheck.checkpoints.encodings.pickles import (
    MAX_BYTES,
    Damaged,
    Global,
    Interpreter,
    Pickle,
    damaged_pickle,
    read_pickle,
)
from bncheck.checkpoints.encodings.places import Region, stored
from bncheck.checkpoints.encodings.tar import tar_members
from bncheck.checkpoints.encodings.tensors import DTYPES, is_count, read_from, strided_tensor
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint, GlobalReference, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bncheck.checkpoints.encodings.places import View
    from bncheck.checkpoints.sources import Source

FORMAT = "torch.save, legacy"
# torch.serialization.MAGIC_NUMBER as pickles hold it: LONG1 of ten bytes, little-endian, and the LONG of protocol 1
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
MAGICS = (bytes([0x8A, 10]) + MAGIC_NUMBER.to_bytes(10, "little"), f"L{MAGIC_NUMBER}L\n".encode())
# An opcode for the protocol (2 bytes) and one for a frame (9 bytes) may stand before it.
MAGIC_WITHIN = 11 + max(map(len, MAGICS))
PROTOCOL_VERSION = 1001
# The pickles before the object have some dozen bytes.
SMALL_WINDOW = 1024
# The length of a pickle is not known beforehand: it is read in windows that start with this many bytes.
FIRST_WINDOW = 2**18
# A window that is too small is read again this many times larger. The steps are few, since each starts from anew.
WINDOW_GROWTH = 32
COUNT = struct.Struct("<q")

TAR_MEMBERS = {"sys_info", "pickle", "storages", "tensors"}


@dataclass(frozen=True, slots=True)
class StorageView(StorageRecord):
    """A part of the storage `key`: `numel` elements from element `start` on."""

    start: int


def parameter(data: object = None, *_: object) -> object:
    """`Parameter(data, requires_grad)` and `Variable(data)`, which torch before 1.0 wrote for parameters."""
    return data


LEGACY_CONSTRUCTORS = {
    **CONSTRUCTORS,
    ("torch.nn.parameter", "Parameter"): parameter,
    ("torch.autograd.variable", "Variable"): parameter,
}


def recognises(source: Source) -> bool:
    """A pickle of torch's magic number, or the tar archive that torch 0.1 wrote."""
    head = source.read(0, min(source.size, MAGIC_WITHIN))
    return any(magic in head for magic in MAGICS) or is_tar(source)


def is_tar(source: Source) -> bool:
    """Whether the first four members of a tar archive are those of torch 0.1, in any order."""
    return set(islice(tar_members(source), len(TAR_MEMBERS))) == TAR_MEMBERS


def read(source: Source) -> Checkpoint:
    """The checkpoint in a legacy file of `torch.save`.

    Raises:
        UnreadableError: the file is damaged.
        UnsupportedError: torch 0.1 wrote it.
    """
    pickle, storages = unpickle(source)
    groups = groups_of(pickle.value, source.name, storages.tensor)
    facts = facts_of(pickle.value, storages.tensor)
    return Checkpoint(source.name, FORMAT, groups, tuple(sorted(pickle.globals)), facts)


def unpickle(source: Source) -> tuple[Pickle, Storages]:
    """The object in the file as inert records with the globals of all its pickles, and its storages."""
    if is_tar(source):
        raise UnsupportedError(
            f"{source.name} is in the tar format of torch 0.1, which is not read",
            "Load it with a later torch (weights_only=False, if you trust it), and torch.save the state_dict.",
        )
    storages = Storages(source)
    place = 0
    values = []
    globals_: set[GlobalReference] = set()
    for _ in ("magic number", "version", "facts about the machine"):
        small = read_pickle_at(source, place, {}, no_storage, SMALL_WINDOW)
        values.append(small.value)
        globals_ |= small.globals  # torch unpickles these, too
        place = small.end
    if values[0] != MAGIC_NUMBER:
        raise UnreadableError(f"{source.name} does not start with the number of the legacy format", DAMAGED_HINT)
    if values[1] != PROTOCOL_VERSION:
        raise UnsupportedError(
            f"{source.name} is in an unknown version of the legacy format", "Load it where it was made and save again."
        )
    pickle = read_pickle_at(source, place, LEGACY_CONSTRUCTORS, storages.persistent)
    keys = read_pickle_at(source, pickle.end, {}, no_storage)
    globals_ |= pickle.globals | keys.globals
    storages.locate(keys.value, keys.end)
    return Pickle(pickle.value, pickle.end, globals_), storages


def views(source: Source) -> Iterator[View]:
    """Every tensor and every bare storage of the pickle: any of them may lie over others."""
    from bncheck.checkpoints.contents.views import views_in  # for rewriting alone

    pickle, storages = unpickle(source)
    return views_in(pickle.value, storages.region)


def read_pickle_at(
    source: Source,
    offset: int,
    constructors: Mapping[tuple[str, str], Callable[..., object]],
    persistent: Callable[[object], object],
    window: int = FIRST_WINDOW,
) -> Pickle:
    """The pickle at `offset` of a source, of unknown length; its `end` is counted from the start of the source.

    Args:
        source, offset: where it stands.
        constructors, persistent: see Interpreter. They see the start of the pickle again if it is longer than
            the window.
        window: so many bytes are read at first.

    Raises:
        UnreadableError: the pickle is damaged, or larger or more involved than any real one.
    """
    available = min(max(source.size - offset, 0), MAX_BYTES)
    while window < available:
        try:
            pickle = Interpreter(constructors, persistent).run(source.read(offset, window))
        except (Damaged, OverflowError) as error:
            raise damaged_pickle(source.name, error) from None
        except ValueError:  # the tokeniser met the end of the window, or damage
            window *= WINDOW_GROWTH
        else:
            pickle.end += offset
            return pickle
    pickle = read_pickle(source.read(offset, min(window, available)), source.name, constructors, persistent)
    pickle.end += offset
    return pickle


def no_storage(_: object) -> object:
    raise Damaged("a storage stands where none can be")


class Storages:
    """The storages of the file, which lie one after the other behind the pickles."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.records: dict[str, StorageRecord] = {}
        self.places: dict[str, tuple[int, int]] = {}  # first byte, number of bytes

    def persistent(self, persistent_id: object) -> object:
        """What stands for a persistent id: a storage, a view of one, or the class of a module.

        Modules were saved with the source text of their classes, `("module", class, file, text)`.
        """
        if not isinstance(persistent_id, tuple) or len(persistent_id) < 2:
            raise Damaged("a persistent id is neither that of a storage nor that of a module")
        if persistent_id[0] == "module":
            if not isinstance(persistent_id[1], Global):
                raise Damaged("a module has no class")
            return persistent_id[1]
        record = storage_of(persistent_id)
        self.records.setdefault(record.key, record)
        view = persistent_id[5] if len(persistent_id) > 5 else None
        return record if view is None else view_of(record, view)

    def locate(self, keys: object, start: int) -> None:
        """Finds each storage by the counts from `start` on; all of them must lie in the file."""
        if not isinstance(keys, list):
            raise self.damaged("has no list of storages")
        place = start
        for key in keys:
            record = self.records.get(key) if isinstance(key, str) else None
            if record is None or record.key in self.places:
                raise self.damaged("lists a storage twice, or one that it does not use")
            (count,) = COUNT.unpack(self.source.read(place, COUNT.size))
            if count != record.numel:
                raise self.damaged(f"has a storage of {count:,} elements that should have {record.numel:,}")
            place += COUNT.size
            size = count * DTYPES[record.dtype][0]
            if place + size > self.source.size:
                raise self.damaged(f"ends at byte {self.source.size:,} inside a storage of {size:,} bytes")
            self.places[record.key] = place, size
            place += size

    def damaged(self, what: str) -> UnreadableError:
        return UnreadableError(f"{self.source.name} {what}", DAMAGED_HINT)

    def tensor(self, label: str, record: TensorRecord) -> Tensor:
        """The tensor of a record, whose numbers are read later; its place is checked now."""
        storage = record.storage
        if storage is None:
            return Tensor(record.dtype, record.shape, None)
        if storage.key not in self.places:
            raise self.damaged(f"misses the numbers of {quoted(label)}")
        start, size = self.places[storage.key]
        if isinstance(storage, StorageView):
            bytes_each = DTYPES[storage.dtype][0]
            skipped, viewed = storage.start * bytes_each, storage.numel * bytes_each
            if skipped + viewed > size:
                raise self.damaged(f"has {quoted(label)} in a view that reaches outside its storage")
            start, size = start + skipped, viewed
        tensor = strided_tensor(
            f"{quoted(label)} in {self.source.name}",
            record.dtype,
            record.shape,
            record.strides,
            record.offset,
            size,
            partial(read_from, self.source, start),
        )
        return stored(tensor, Region(self.source, start), record.strides, record.offset)

    def region(self, storage: StorageRecord) -> Region | None:
        """Where a storage or a view of one lies; None where the file does not hold it."""
        if storage.key not in self.places:
            return None
        start, _ = self.places[storage.key]
        skipped = storage.start * DTYPES[storage.dtype][0] if isinstance(storage, StorageView) else 0
        return Region(self.source, start + skipped)


def view_of(record: StorageRecord, view: object) -> StorageView:
    """The part of a storage that the metadata of a view, `(key of the view, offset, size)`, name."""
    match view:
        case (_, int(start), int(numel)) if is_count(start) and is_count(numel):
            return StorageView(record.dtype, record.key, numel, start)
        case _:
            raise Damaged("a view of a storage has no place in it")
