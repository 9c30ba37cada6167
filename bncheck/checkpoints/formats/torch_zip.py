"""`torch.save` files since torch 1.6: a zip file with a pickle and one entry for each storage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.groups import groups_of
from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, StorageRecord, TensorRecord, storage_of
from bncheck.checkpoints.contents.training_facts import facts_of
from bncheck.checkpoints.encodings.pickles import MAX_BYTES, Pickle, read_pickle
from bncheck.checkpoints.encodings.places import Region, stored
from bncheck.checkpoints.encodings.tensors import strided_tensor
from bncheck.checkpoints.encodings.zip_archive import LOCAL_MAGIC, ZipArchive, open_archive
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.checkpoints.encodings.places import View
    from bncheck.checkpoints.sources import Source

FORMAT = "torch.save"
HEAD = 256


def recognises(source: Source) -> bool:
    """A zip file with a pickle of torch.save; one that breaks off counts, so that it is not passed over."""
    if source.size < 4 or source.read(0, 4) != LOCAL_MAGIC:
        return False
    try:
        return root_of(open_archive(source)) is not None
    except UnreadableError:
        return b"data.pkl" in source.read(0, min(source.size, HEAD))  # torch writes it first


def read(source: Source) -> Checkpoint:
    """The checkpoint in a `torch.save` zip file.

    Raises:
        UnreadableError: the file is damaged.
        UnsupportedError: it is a zip file of another kind.
    """
    pickle, storages = unpickle(source)
    groups = groups_of(pickle.value, source.name, storages.tensor)
    facts = facts_of(pickle.value, storages.tensor)
    return Checkpoint(source.name, FORMAT, groups, tuple(sorted(pickle.globals)), facts)


def unpickle(source: Source) -> tuple[Pickle, Storages]:
    """The pickle of the file as inert records, and the storages that these refer to."""
    archive = open_archive(source)
    root = root_of(archive)
    if root is None:
        raise UnsupportedError(f"{source.name} is a zip file without a pickle of torch in it", "Unpack it first.")
    data = archive.read(f"{root}data.pkl", MAX_BYTES)
    return read_pickle(data, source.name, CONSTRUCTORS, storage_of), Storages(archive, root)


def views(source: Source) -> Iterator[View]:
    """Every tensor and every bare storage of the pickle: any of them may lie over others."""
    from bncheck.checkpoints.contents.views import views_in  # for rewriting alone

    pickle, storages = unpickle(source)
    return views_in(pickle.value, storages.region)


def root_of(archive: ZipArchive) -> str | None:
    """The folder in the archive that holds data.pkl, with a slash at its end; None for archives of another kind."""
    roots = [entry.removesuffix("data.pkl") for entry in archive.entries if entry.endswith("/data.pkl")]
    # constants.pkl is the mark of TorchScript
    roots = [root for root in roots if root.count("/") == 1 and f"{root}constants.pkl" not in archive.entries]
    return roots[0] if len(roots) == 1 else None


class Storages:
    """The storages of the archive, found when they are asked for."""

    def __init__(self, archive: ZipArchive, root: str) -> None:
        self.archive = archive
        self.root = root
        self.big_endian = archive.is_big_endian(root)

    def tensor(self, label: str, record: TensorRecord) -> Tensor:
        """The tensor of a record, whose numbers are read later; its place is checked now."""
        if record.storage is None:
            return Tensor(record.dtype, record.shape, None)
        source = self.archive.source.name
        region = self.region(record.storage)
        if region is None or region.entry is None:
            raise UnreadableError(f"{source} misses the numbers of {quoted(label)}", DAMAGED_HINT)
        entry = region.entry
        tensor = strided_tensor(
            f"{quoted(label)} in {source}",
            record.dtype,
            record.shape,
            record.strides,
            record.offset,
            entry.size,
            partial(self.archive.read_range, entry),
            big_endian=self.big_endian,
        )
        return stored(tensor, region, record.strides, record.offset, big_endian=self.big_endian)

    def region(self, storage: StorageRecord) -> Region | None:
        """Where a storage lies; None where the archive does not hold it."""
        entry = self.archive.entries.get(f"{self.root}data/{storage.key}")
        return None if entry is None else Region(self.archive.source, 0, self.archive, entry)
