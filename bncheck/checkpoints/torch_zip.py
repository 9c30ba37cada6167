"""`torch.save` files since torch 1.6: a zip file with a pickle and one entry for each storage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents import groups_of
from bncheck.checkpoints.pickles import MAX_BYTES, read_pickle
from bncheck.checkpoints.tensors import strided_tensor
from bncheck.checkpoints.torch_objects import CONSTRUCTORS, StorageRecord, TensorRecord, storage_of
from bncheck.checkpoints.training_facts import facts_of
from bncheck.checkpoints.zip_archive import LOCAL_MAGIC, STORED, ZipArchive
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects import Checkpoint, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from bncheck.checkpoints.source import Source

FORMAT = "torch.save"
SAVED_AGAIN = "Load it where it was made and torch.save the state_dict."
# The largest storage that is unpacked from a compressed archive, which allows no access by offset.
MAX_UNPACKED = 64 * 2**20


def recognises(source: Source) -> bool:
    """A zip file; one that breaks off before its table of contents counts, so that it is not passed over."""
    if source.size < 4 or source.read(0, 4) != LOCAL_MAGIC:
        return False
    # torch writes data.pkl first
    head = source.read(0, min(source.size, 256))
    if b"data.pkl" in head:
        return True
    try:
        names = ZipArchive(source).entries
    except UnreadableError:
        return False
    return any(name.endswith(("/data.pkl", "/model.json")) for name in names)


def read(source: Source) -> Checkpoint:
    """The checkpoint in a `torch.save` zip file.

    Raises:
        UnreadableError: the file is damaged.
        UnsupportedError: it is a zip file of another kind.
    """
    archive = ZipArchive(source)
    root = root_of(archive)
    archive_of = Storages(archive, root)
    pickle = read_pickle(archive.read(f"{root}data.pkl", MAX_BYTES), source.name, CONSTRUCTORS, storage_of)
    groups = groups_of(pickle.value, source.name, archive_of.tensor)
    facts = facts_of(pickle.value, archive_of.tensor)
    return Checkpoint(source.name, FORMAT, groups, tuple(sorted(pickle.globals)), facts)


def root_of(archive: ZipArchive) -> str:
    """The folder in the archive that holds data.pkl, with a slash at its end."""
    name = archive.source.name
    roots = [entry.removesuffix("data.pkl") for entry in archive.entries if entry.endswith("/data.pkl")]
    inner = [root for root in roots if root.count("/") == 1]
    if len(inner) != 1:
        if any(entry.endswith("models/model.json") for entry in archive.entries):
            raise UnsupportedError(f"{name} is a torch.export archive (.pt2), which is not read yet", SAVED_AGAIN)
        what = "holds several pickles" if inner else "is a zip file without a pickle of torch in it"
        raise UnsupportedError(f"{name} {what}", "Give a file that torch.save wrote; unpack other archives first.")
    if f"{inner[0]}constants.pkl" in archive.entries:
        raise UnsupportedError(f"{name} is a TorchScript archive, which is not read yet", SAVED_AGAIN)
    return inner[0]


class Storages:
    """The storages of the archive, found when they are asked for."""

    def __init__(self, archive: ZipArchive, root: str) -> None:
        self.archive = archive
        self.root = root
        order = f"{root}byteorder"
        self.big_endian = order in archive.entries and archive.read(order, 16).strip() == b"big"

    def tensor(self, label: str, record: TensorRecord) -> Tensor:
        """The tensor of a record, whose numbers are read later; its place is checked now."""
        if record.storage is None:
            return Tensor(record.dtype, record.shape, None)
        source = self.archive.source.name
        entry = self.archive.entries.get(f"{self.root}data/{record.storage.key}")
        if entry is None:
            raise UnreadableError(
                f"{source} misses the numbers of {quoted(label)}",
                "The file is truncated or damaged: copy, download or save it again.",
            )
        return strided_tensor(
            f"{quoted(label)} in {source}",
            record.dtype,
            record.shape,
            record.strides,
            record.offset,
            entry.size,
            partial(self.read_storage, record.storage),
            big_endian=self.big_endian,
        )

    def read_storage(self, storage: StorageRecord, offset: int, length: int) -> bytes:
        name = f"{self.root}data/{storage.key}"
        entry = self.archive.entries[name]
        if entry.method == STORED:
            return self.archive.source.read(self.archive.start(entry) + offset, length)
        return self.archive.read(name, MAX_UNPACKED)[offset : offset + length]
