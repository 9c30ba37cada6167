"""torch.distributed.checkpoint folders: `.metadata`, and the `.distcp` files of the ranks beside it.

`.metadata` is a pickle that says which tensors there are, into which chunks they are cut, and where each chunk lies.
A chunk is a whole file of torch.save, written one after another into a `.distcp` file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from bncheck.checkpoints.contents.groups import groups_of
from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, StorageRecord, TensorRecord, storage_of
from bncheck.checkpoints.encodings.limits import largest_tensor
from bncheck.checkpoints.encodings.pickles import (
    MAX_BYTES,
    MAX_OPCODES,
    Dictionary,
    Global,
    Object,
    Unhashable,
    read_pickle,
)
from bncheck.checkpoints.encodings.tensors import MAX_DIMENSIONS, is_count
from bncheck.checkpoints.encodings.zip_archive import LOCAL_MAGIC, ZipArchive
from bncheck.checkpoints.formats.torch_zip import Storages, root_of
from bncheck.checkpoints.sources.part import Part
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError, UsageError
from bncheck.subjects.checkpoint import Checkpoint, GlobalReference, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.layer import Array

    Shape = tuple[int, ...]

FORMAT = "torch.distributed.checkpoint"
MODULE = b"torch.distributed.checkpoint.metadata"
# The metadata are the first object of the pickle, so that their module is named at its start.
HEAD = 1024
# Real state dicts nest a handful of levels.
MAX_LEVELS = 64
# Equal objects are read once, so that the options of an optimizer, repeated for each parameter, cost little.
MAX_REMEMBERED = 64 * 2**10
# Where the nesting is not stored: keys that start so belong to one state dict, beside those of an optimizer.
CONTAINERS = ("model", "state_dict", "module", "net", "network")
OPTIMIZERS = ("optim", "optimizer", "optimizers", "optimizer_state", "optimizer_states")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item is written."""

    file: str
    offset: int
    length: int


def recognises(source: Source) -> bool:
    """A pickle that starts with the metadata of torch.distributed.checkpoint."""
    head = source.read(0, min(source.size, HEAD))
    return head.startswith(b"\x80") and MODULE in head


def read(source: Source) -> Checkpoint:
    """The state dicts of a checkpoint whose files lie beside its metadata.

    Raises:
        UnreadableError: a file is damaged, truncated or missing.
        UnsupportedError: another storage wrote it, or it is compressed.
    """
    folder = Folder(source)
    saved = nested(folder.paths(), source.name)
    groups = groups_of(saved, source.name, folder.tensor)
    return Checkpoint(source.name, FORMAT, groups, tuple(sorted(folder.globals | folder.globals_of_objects())))


def shard_names(source: Source) -> set[str]:
    """The files that belong to the checkpoint."""
    return {place.file for placed in Folder(source, check=False).places.values() for place in placed.values()}


class Folder:
    """What `.metadata` says, and the files beside it.

    Args:
        source: the metadata.
        check: whether all files must be there and as long as the metadata say.
    """

    def __init__(self, source: Source, *, check: bool = True) -> None:
        self.source = source
        if source.size > MAX_BYTES:
            raise UnreadableError(
                f"{source.name} has {source.size:,} bytes; at most {MAX_BYTES:,} are read", "Check what the file holds."
            )
        pickle = read_pickle(source.read(0, source.size), source.name, CONSTRUCTORS, storage_of)
        self.globals = pickle.globals
        metadata = state_of(pickle.value)
        described = metadata.get("state_dict_metadata") if metadata else None
        storage = metadata.get("storage_data") if metadata else None
        if metadata is None or not isinstance(described, Dictionary):
            raise self.damaged("does not hold the metadata of a checkpoint")
        if not isinstance(storage, Dictionary):
            raise UnsupportedError(
                f"{source.name} does not say in which files the tensors are",
                "Save the checkpoint with the FileSystemWriter of torch.distributed.checkpoint.",
            )
        self.described = described
        self.planned = metadata.get("planner_data")
        # by key, then by the offsets of the chunk; None for what is no tensor
        self.places: dict[str, dict[Shape | None, Place]] = {}
        for index, info in storage.items():
            self.add(index, info)
        self.chunks = 0
        self.tensors: dict[str, Tensor] = {}
        for name, entry in described.items():
            if isinstance(name, str) and (tensor := self.tensor_at(name, entry)):
                self.tensors[name] = tensor
        if check:
            self.check_files()

    def damaged(self, what: str) -> UnreadableError:
        return UnreadableError(f"{self.source.name} {what}", DAMAGED_HINT)

    def add(self, index: object, info: object) -> None:
        """Adds an entry of the storage: a MetadataIndex and its _StorageInfo."""
        key = state_of(index.value if isinstance(index, Unhashable) else index)
        place = state_of(info)
        if key is None or place is None or not {"relative_path", "offset", "length"} <= place.keys():
            raise UnsupportedError(
                f"{self.source.name} describes a storage that is not a file",
                "Save the checkpoint with the FileSystemWriter of torch.distributed.checkpoint.",
            )
        if place.get("transform_descriptors"):
            raise UnsupportedError(
                f"{self.source.name} describes a compressed checkpoint, which is not read",
                "Save it without the extensions that transform its bytes.",
            )
        name, offset = key.get("fqn"), key.get("offset")
        file, start, length = place["relative_path"], place["offset"], place["length"]
        if (
            not isinstance(name, str)
            or not isinstance(file, str)
            or not (isinstance(start, int) and is_count(start))
            or not (isinstance(length, int) and is_count(length))
            or not (offset is None or isinstance(offset, tuple))
        ):
            raise self.damaged("has an item without a name or a place")
        self.places.setdefault(name, {})[offset] = Place(file, start, length)

    def check_files(self) -> None:
        """UnreadableError where a file is missing or too short for what it should hold."""
        ends: dict[str, int] = {}
        for placed in self.places.values():
            for place in placed.values():
                ends[place.file] = max(ends.get(place.file, 0), place.offset + place.length)
        for file, end in sorted(ends.items()):
            size = self.open(file).size
            if size < end:
                raise UnreadableError(
                    f"{self.open(file).name} has {size:,} bytes, and {self.source.name} says it has {end:,}",
                    DAMAGED_HINT,
                )

    def open(self, file: str) -> Source:
        try:
            return self.source.sibling(file)
        except UsageError as error:
            raise UnreadableError(
                f"{self.source.name} needs a file that cannot be opened: {error.message}",
                "Copy all files of the checkpoint into one folder.",
            ) from None

    # -- tensors

    def tensor_at(self, key: str, entry: object) -> Tensor | None:
        """The tensor that an entry of the metadata describes, None for an object that is no tensor."""
        state = state_of(entry)
        if state is None or "size" not in state:
            return None
        label = f"{quoted(key)} in {self.source.name}"
        shape, chunks = shape_of(state["size"]), state.get("chunks")
        if shape is None or not isinstance(chunks, list):
            raise UnreadableError(f"{label} has an impossible shape", DAMAGED_HINT)
        self.chunks += len(chunks)
        if self.chunks > MAX_OPCODES:  # a few bytes can name one long list again and again
            raise self.damaged("has more chunks than a checkpoint has")
        dtype = dtype_of(state.get("properties"))
        return Tensor(dtype, shape, partial(self.read_tensor, key, label, dtype, shape, chunks))

    def read_tensor(self, key: str, label: str, dtype: str, shape: Shape, chunks: list[object]) -> Array:
        """The tensor, put together from its chunks."""
        import numpy as np

        if 0 in shape:
            return np.zeros(0, dtype=np.float32)
        if Tensor(dtype, shape, None).size > largest_tensor():
            raise UnreadableError(
                f"{label} has more elements than a per-channel tensor has", "Check what the file holds."
            )
        whole: Array | None = None
        covered = np.zeros(shape, dtype=bool)
        for chunk in chunks:
            offsets, sizes = chunk_of(chunk, shape, label)
            if 0 in sizes:
                continue  # a rank that has nothing of this tensor
            region = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            if covered[region].any():
                raise UnreadableError(f"{label} has chunks that overlap", DAMAGED_HINT)
            values = self.read_chunk(self.place(key, offsets, label), label, dtype, sizes)
            whole = np.zeros(shape, dtype=values.dtype) if whole is None else whole
            whole[region] = values
            covered[region] = True
        if not covered.all():
            raise UnreadableError(f"{label} misses chunks", "Copy all files of the checkpoint into one folder.")
        assert whole is not None  # there are elements, and all of them are covered
        return whole

    def place(self, key: str, offsets: Shape, label: str) -> Place:
        place = self.places.get(key, {}).get(offsets)
        if place is None:
            raise UnreadableError(f"{label} has a chunk whose place is not given", DAMAGED_HINT)
        return place

    def read_chunk(self, place: Place, label: str, dtype: str, sizes: Shape) -> Array:
        archive, root = self.archive(place, label)
        name = archive.source.name
        pickle = read_pickle(archive.read(f"{root}data.pkl", MAX_BYTES), name, CONSTRUCTORS, storage_of)
        record = pickle.value
        if not isinstance(record, TensorRecord) or record.shape != sizes or record.dtype != dtype:
            raise UnreadableError(f"{name} does not hold the chunk of {label} that it should hold", DAMAGED_HINT)
        tensor = Storages(archive, root).tensor(label, record)
        if tensor.read is None:
            raise UnreadableError(f"{name} holds a chunk of {label} without numbers", DAMAGED_HINT)
        return tensor.read()

    def archive(self, place: Place, label: str) -> tuple[ZipArchive, str]:
        """The file of torch.save that is written at a place, and its root folder."""
        part = Part(self.open(place.file), place.offset, place.length)
        is_zip = part.size >= len(LOCAL_MAGIC) and part.read(0, len(LOCAL_MAGIC)) == LOCAL_MAGIC
        archive = ZipArchive(part) if is_zip else None
        root = root_of(archive) if archive else None
        if archive is None or root is None:
            raise UnsupportedError(
                f"{part.name} holds {label} in another form than torch.save writes",
                "Save the checkpoint with the FileSystemWriter of torch.distributed.checkpoint.",
            )
        return archive, root

    # -- what groups_of needs: values nested as they were saved

    def tensor(self, _: str, record: TensorRecord) -> Tensor:
        assert record.storage is not None
        return self.tensors[record.storage.key]

    def paths(self) -> list[tuple[tuple[str, ...], TensorRecord]]:
        """The place of each tensor in what was saved, in the order in which it was flattened."""
        planned = self.planned if isinstance(self.planned, Dictionary) else Dictionary()
        keys = [key for key in planned if isinstance(key, str) and key in self.tensors]
        keys += [key for key in self.tensors if key not in planned]
        container = container_of(self.tensors)
        placed = []
        for key in keys:
            tensor = self.tensors[key]
            record = TensorRecord(StorageRecord(tensor.dtype, key, tensor.size), tensor.dtype, tensor.shape, (), 0)
            path = planned.get(key)
            if isinstance(path, (tuple, list)) and path:
                if len(path) > MAX_LEVELS or not all(isinstance(part, (str, int)) for part in path):
                    raise self.damaged(f"has an impossible path for {quoted(key)}")
                placed.append((tuple(map(str, path)), record))
            else:
                first, _, rest = key.partition(".")
                placed.append(((first, rest) if rest and first == container else (key,), record))
        return placed

    def globals_of_objects(self) -> set[GlobalReference]:
        """What the objects that are no tensors refer to: loading unpickles them without asking."""
        references: set[GlobalReference] = set()
        seen: set[bytes] = set()
        for key, placed in self.places.items():
            place = placed.get(None)
            if place is None or key in self.tensors:
                continue
            if place.length <= MAX_REMEMBERED:
                data = self.open(place.file).read(place.offset, place.length)
                if data in seen:
                    continue
                seen.add(data)
            archive, root = self.archive(place, f"{quoted(key)} in {self.source.name}")
            pickle = archive.read(f"{root}data.pkl", MAX_BYTES)
            references |= read_pickle(pickle, archive.source.name, CONSTRUCTORS, storage_of).globals
        return references


def state_of(value: object) -> Dictionary | None:
    """The fields of a dataclass of the file."""
    return value.state if isinstance(value, Object) and isinstance(value.state, Dictionary) else None


def shape_of(value: object) -> Shape | None:
    fits = isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(is_count, value))
    return cast("Shape", value) if fits else None


def dtype_of(properties: object) -> str:
    """The dtype in TensorProperties, whose state is a tuple that starts with it."""
    state = properties.state if isinstance(properties, Object) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    return dtype.name if isinstance(dtype, Global) else "unknown"


def chunk_of(chunk: object, shape: Shape, label: str) -> tuple[Shape, Shape]:
    """Offsets and sizes of a chunk, which lies inside the tensor."""
    state = state_of(chunk) or Dictionary()
    offsets, sizes = shape_of(state.get("offsets")), shape_of(state.get("sizes"))
    if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
        raise UnreadableError(f"{label} has a chunk without place or size", DAMAGED_HINT)
    if any(start + size > extent for start, size, extent in zip(offsets, sizes, shape, strict=True)):
        raise UnreadableError(f"{label} has a chunk outside itself", DAMAGED_HINT)
    return offsets, sizes


def container_of(keys: Mapping[str, object]) -> str | None:
    """The first part of the keys that belong to the model, where they stand beside those of an optimizer."""
    first = {key.partition(".")[0] for key in keys}
    if not first & set(OPTIMIZERS):
        return None
    return next((name for name in CONTAINERS if name in first), None)


def nested(paths: list[tuple[tuple[str, ...], TensorRecord]], name: str) -> Dictionary:
    """The dicts in which the tensors stood before they were flattened."""
    root = Dictionary()
    for path, record in paths:
        holder = root
        for part in path[:-1]:
            inner = holder.setdefault(part, Dictionary())
            if not isinstance(inner, Dictionary):
                raise UnreadableError(f"{name} places a tensor inside another one", DAMAGED_HINT)
            holder = inner
        holder[path[-1]] = record
    return root
