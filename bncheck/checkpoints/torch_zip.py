"""`torch.save` files since torch 1.6: a zip file with a pickle and one entry for each storage."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents import groups_of
from bncheck.checkpoints.pickles import MAX_BYTES, Pickle, read_pickle
from bncheck.checkpoints.tensors import strided_tensor
from bncheck.checkpoints.torch_objects import CONSTRUCTORS, StorageRecord, TensorRecord, storage_of
from bncheck.checkpoints.training_facts import facts_of
from bncheck.checkpoints.zip_archive import LOCAL_MAGIC, STORED, ZipArchive, open_archive
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects import Checkpoint, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from bncheck.checkpoints.source import Source

FORMAT = "torch.save"
HEAD = 256
# The largest storage that is unpacked from a compressed archive, which allows no access by offset.
MAX_UNPACKED = 64 * 2**20


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
        self.unpacked: tuple[str, bytes] = ("", b"")  # the storage that was unpacked last
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
        if self.unpacked[0] != name:
            self.unpacked = (name, self.archive.read(name, MAX_UNPACKED))
        return self.unpacked[1][offset : offset + length]
