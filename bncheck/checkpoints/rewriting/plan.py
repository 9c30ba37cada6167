"""Which bytes of a checkpoint become others when its BatchNorm layers get new statistics.

A plan is made first, and everything that cannot be done is refused then, before anything is written. What is written
is the bytes of running_mean, running_var and num_batches_tracked where they lie, in the dtype that they have, and the
checksums that a zip archive keeps of them. Nothing of the file is run and every other byte stays, so that the pickle
of a whole module needs no trust.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from bncheck.checkpoints import format_of, read_checkpoint
from bncheck.checkpoints.contents.state_dicts import COUNTER, FLOATING, STATISTICS
from bncheck.checkpoints.contents.torch_objects import StorageRecord, TensorRecord
from bncheck.checkpoints.encodings.limits import limits, limits_for
from bncheck.checkpoints.encodings.pickles import Dictionary, Object
from bncheck.checkpoints.encodings.places import StoredTensor, View
from bncheck.checkpoints.encodings.tensors import DTYPES
from bncheck.checkpoints.encodings.zip_archive import LOCAL_HEADER, STORED
from bncheck.checkpoints.formats import safetensors, sharded, torch_legacy, torch_zip
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError, UsageError
from bncheck.wording import count, few, number, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from bncheck.checkpoints.encodings.zip_archive import Entry, ZipArchive
    from bncheck.checkpoints.sources.local import Source
    from bncheck.subjects.checkpoint import Checkpoint, Group, Tensor
    from bncheck.subjects.layer import Array, BatchNormLayer

WRITABLE = (torch_zip.FORMAT, torch_legacy.FORMAT, safetensors.FORMAT, sharded.FORMAT)
INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
COPY_HINT = "Load the model, clone this buffer, save the model again and repair that file."

# -- places of checksums in a zip archive
CRC = struct.Struct("<L")
CRC_IN_LOCAL_HEADER = 14
CRC_IN_RECORD = 16
# Sizes and checksum stand behind the bytes of an entry whose flags have this bit, with or without these four bytes.
HAS_DESCRIPTOR = 0x8
DESCRIPTOR_MAGIC = b"PK\x07\x08"
# How much of an entry is read at once for its checksum.
PIECE = 4 * 2**20


@dataclass(frozen=True, slots=True)
class NewStatistics:
    """What a layer gets. Arrays of shape (num_features,); None leaves a buffer as it is."""

    mean: Array | None
    variance: Array | None
    counter: int | None


class Patch(NamedTuple):
    """Bytes to put at byte `start` of a file."""

    start: int
    data: bytes


@dataclass(slots=True)
class Plan:
    """The files that make up a checkpoint, by their names beside the one that was opened, and what changes in each."""

    source: Source
    files: dict[str, Source]
    patches: dict[int, list[Patch]] = field(default_factory=dict)  # by the id of a source; in order, none overlap
    without_counter: tuple[str, ...] = ()  # layers that got statistics and have no num_batches_tracked

    @property
    def in_several_files(self) -> bool:
        return len(self.files) > 1

    def of(self, source: Source) -> list[Patch]:
        return self.patches.get(id(source), [])


@dataclass(slots=True)
class Write:
    """A tensor and the bytes that it gets, in the order of its elements."""

    label: str
    view: View
    data: bytes


def plan_rewrite(source: Source, group_name: str, statistics: Mapping[str, NewStatistics]) -> Plan:
    """What must be written to give layers new statistics.

    Args:
        source: the checkpoint; of one in several files, the index.
        group_name: which state dict or module of the file.
        statistics: by the names that the readers give the layers.

    Raises:
        UnsupportedError: the file or a buffer is of a kind that cannot be overwritten.
        UsageError: the file has no such layer, or the numbers do not fit what it stores.
        UnreadableError: the file is damaged.
    """
    checkpoint = read_writable(source)
    group = next((group for group in checkpoint.groups if group.name == group_name), None)
    if group is None:
        raise UsageError(f"{source.name} has no group {quoted(group_name)}", "Name a group that it holds.")
    plan = Plan(source, files_of(source, checkpoint))
    layers = {layer.name: layer for layer in group.layers}
    absent = [name for name in statistics if name not in layers]
    if absent:
        raise UsageError(f"{source.name} has no statistics for {few(absent)}", "Name the model that it was saved from.")
    writes: list[Write] = []
    without_counter = []
    for name, new in statistics.items():
        writes += writes_of(layers[name], group, new, source.name)
        if new.counter is not None and key_of(layers[name], COUNTER) not in group.tensors:
            without_counter.append(name)
    plan.without_counter = tuple(without_counter)
    check_sharing(writes, checkpoint, source, plan)
    add_patches(plan, writes)
    return plan


def read_writable(source: Source) -> Checkpoint:
    """The checkpoint in a file whose buffers can be overwritten."""
    format_ = format_of(source)
    if format_ is not None and format_.FORMAT not in WRITABLE:
        raise UnsupportedError(
            f"{source.name} is a {format_.FORMAT} file, and statistics are not written into one",
            "Recalibrate the checkpoint that it was made from, and make it again.",
        )
    return read_checkpoint(source)


def choose_group(checkpoint: Checkpoint, wanted: str | None) -> Group:
    """The group that a name or glob names, or else the only one with BatchNorm layers.

    Raises:
        UsageError: there is none, or more than one.
    """
    groups = tuple(group for group in checkpoint.groups if group.layers)
    if wanted is not None:
        exact = [group for group in groups if group.name == wanted]
        groups = tuple(exact or [group for group in groups if fnmatchcase(group.name, wanted)])
    if len(groups) == 1:
        return groups[0]
    named = few([quoted(group.name) for group in checkpoint.groups if group.layers], 9)
    if not groups:
        what = (
            f"--group {wanted} names no model in" if wanted is not None and named else "there is no BatchNorm layer in"
        )
        raise UsageError(f"{what} {checkpoint.source}", f"It holds {named}." if named else "Check what the file holds.")
    raise UsageError(f"{checkpoint.source} holds more than one model: {named}", "Choose one with --group NAME.")


def files_of(source: Source, checkpoint: Checkpoint) -> dict[str, Source]:
    if checkpoint.format != sharded.FORMAT:
        return {"": source}
    shards = {name: sharded.open_shard(source, name) for name in sorted(sharded.shard_names(source))}
    index = source.name.replace("\\", "/").rpartition("/")[2]
    return {index: source, **shards}


# -- what the buffers become


def writes_of(layer: BatchNormLayer, group: Group, new: NewStatistics, name: str) -> Iterator[Write]:
    """The writes of one layer; none for a counter that the file does not keep."""
    values = (*zip(STATISTICS, (new.mean, new.variance), strict=True), (COUNTER, new.counter))
    for part, value in values:
        if value is None:
            continue
        key = key_of(layer, part)
        tensor = group.tensors.get(key)
        if tensor is None:
            if part == COUNTER:
                continue
            raise UnsupportedError(
                f"{name} has no {key}, and nothing is added to a file",
                "Save the model with track_running_stats=True first.",
            )
        label = f"{key} in {name}"
        yield Write(label, overwritable(tensor, label).view, encoded(value, tensor, label))


def key_of(layer: BatchNormLayer, part: str) -> str:
    """What a group calls a tensor of the layer."""
    return f"{layer.name}.{part}" if layer.name else part


def overwritable(tensor: Tensor, label: str) -> StoredTensor:
    """The tensor, if the file holds its numbers as they are, each at a place of its own."""
    if not isinstance(tensor, StoredTensor):
        raise UnsupportedError(
            f"{label} holds no numbers that could be overwritten", "Save the model with its numbers."
        )
    entry = tensor.view.region.entry
    if entry is not None and entry.method != STORED:
        raise UnsupportedError(
            f"{label} lies in a compressed entry of the archive, whose length would change",
            "Load the checkpoint and save it again with torch.save, which compresses nothing.",
        )
    if any(stride == 0 and extent > 1 for extent, stride in zip(tensor.shape, tensor.view.strides, strict=True)):
        raise UnsupportedError(f"{label} is one number for several channels (expanded)", COPY_HINT)
    return tensor


def encoded(value: Array | int, tensor: Tensor, label: str) -> bytes:
    """The bytes of new values in the dtype of the tensor.

    Raises:
        UsageError: they are too many or too few, or the dtype does not hold them.
    """
    import numpy as np

    order = ">" if isinstance(tensor, StoredTensor) and tensor.big_endian else "<"
    given = np.asarray(value)
    if given.size != tensor.size:
        raise UsageError(
            f"{label} has {count(tensor.size, 'number')} and should get {given.size:,}",
            "The file and what it is repaired with must be of the same network.",
        )
    bytes_each, code = DTYPES.get(tensor.dtype, (0, ""))
    if tensor.dtype in INTEGERS:
        limits_ = np.iinfo(code)
        if (
            not np.isfinite(given).all()
            or (given != np.round(given)).any()
            or not fits(given, limits_.min, limits_.max)
        ):
            raise UsageError(f"{label} is of dtype {tensor.dtype}, which cannot hold its new value", COPY_HINT)
        return given.astype(f"{order}{code}").tobytes()
    if tensor.dtype not in FLOATING:
        raise UnsupportedError(f"{label} is of dtype {tensor.dtype}, in which statistics are not written", COPY_HINT)
    if not np.isfinite(given).all():
        raise UsageError(f"{label} would become NaN or infinite", "Check the data, and the weights of the model.")
    with np.errstate(over="ignore"):
        if code == "ml_dtypes":
            import ml_dtypes

            rounded = given.astype(np.float64).astype(getattr(ml_dtypes, tensor.dtype))
            as_stored = rounded.view(f"u{bytes_each}").astype(f"{order}u{bytes_each}")
        else:
            rounded = given.astype(code)
            as_stored = rounded.astype(f"{order}{code}")
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise UsageError(
            f"{label} would become {number(float(np.abs(given).max()))}, more than {tensor.dtype} can hold",
            "Save the BatchNorm layers in float32 first.",
        )
    return as_stored.tobytes()


def fits(values: Array, low: int, high: int) -> bool:
    return all(low <= int(value) <= high for value in values.reshape(-1).tolist())


# -- what else lies where they lie


def check_sharing(writes: list[Write], checkpoint: Checkpoint, source: Source, plan: Plan) -> None:
    """Raises UnsupportedError where a byte to be written belongs to a tensor that is not to be written.

    Looked at are the tensors of all groups, and every other tensor and storage in the pickles. The same tensor under
    two names is fine where both get the same numbers.
    """
    import numpy as np

    by_container: dict[tuple[int, str | None], list[Write]] = {}
    for write in writes:
        by_container.setdefault(write.view.region.container, []).append(write)
    written = {
        container: np.sort(np.concatenate([write.view.positions().reshape(-1) for write in held]))
        for container, held in by_container.items()
    }
    planned = Counter(write.view.key for write in writes)
    labels = {write.view.key: write.label for write in writes}

    def refuse(view: View) -> None:
        own = [write.label for write in by_container[view.region.container] if overlap(write.view, view)]
        label = own[0] if own else labels.get(view.key, source.name)
        raise UnsupportedError(f"{label} shares its bytes with another tensor of the file", COPY_HINT)

    named = Counter(
        tensor.view.key
        for group in checkpoint.groups
        for tensor in group.tensors.values()
        if isinstance(tensor, StoredTensor) and tensor.view.region.container in written
    )
    for group in checkpoint.groups:
        for tensor in group.tensors.values():
            if isinstance(tensor, StoredTensor) and tensor.view.region.container in written:
                surplus = named[tensor.view.key] > planned[tensor.view.key]
                if surplus and touches(tensor.view, written[tensor.view.region.container]):
                    refuse(tensor.view)
    met: Counter[tuple[object, ...]] = Counter()
    for file in plan.files.values():
        for view in pickled_views(file):
            if view.region.container not in written:
                continue
            met[view.key] += 1
            if met[view.key] > planned[view.key] and touches(view, written[view.region.container]):
                refuse(view)


def overlap(first: View, second: View) -> bool:
    return first.first < second.end and second.first < first.end


# A view of more elements, whose numbers do not lie together, is taken for one that fills what it spans.
LARGEST_EXACT = 2**20


def touches(view: View, written: Array) -> bool:
    """Whether a view has one of the bytes, which are sorted."""
    import numpy as np

    low, high = np.searchsorted(written, (view.first, view.end))
    if low == high or not view.size:
        return False
    if view.size > LARGEST_EXACT or (view.end - view.first) == view.size * DTYPES[view.dtype][0]:
        return True
    return bool(np.isin(written[low:high], view.positions()).any())


def pickled_views(source: Source) -> Iterator[View]:
    """Every tensor and every bare storage in a pickled file; nothing for safetensors, where no two may overlap."""
    pickled = next((format_ for format_ in (torch_zip, torch_legacy) if format_.recognises(source)), None)
    if pickled is None:
        return
    with limits_for(source.name):
        pickle, storages = pickled.unpickle(source)
        for record in records_in(pickle.value):
            storage = record if isinstance(record, StorageRecord) else record.storage
            region = storages.region(storage) if storage is not None else None
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
        met = waiting.pop()
        if id(met) in seen:
            continue
        if isinstance(met, (TensorRecord, StorageRecord)):
            seen.add(id(met))
            yield met
            continue
        parts: Iterable[object] = ()
        if isinstance(met, Dictionary):
            parts = [*met.values(), met.attributes]
        elif isinstance(met, Object):
            parts = [met.maker, met.args, met.state, met.elements, *(part for pair in met.entries for part in pair)]
        elif isinstance(met, (list, tuple)):
            parts = met
        else:
            continue
        seen.add(id(met))
        held = list(parts)
        limits().spend(steps=1 + len(held))
        waiting.extend(held)


# -- from tensors to bytes of files


def add_patches(plan: Plan, writes: list[Write]) -> None:
    """Turns the writes into patches of files, and adds those of the checksums."""
    import numpy as np

    by_container: dict[tuple[int, str | None], list[Write]] = {}
    for write in writes:
        by_container.setdefault(write.view.region.container, []).append(write)
    for held in by_container.values():
        region = held[0].view.region
        positions = np.concatenate([write.view.positions().reshape(-1) for write in held])
        values = np.concatenate([np.frombuffer(write.data, dtype=np.uint8) for write in held])
        order = np.argsort(positions, kind="stable")
        positions, values = positions[order], values[order]
        again = positions[1:] == positions[:-1]
        if (again & (values[1:] != values[:-1])).any():
            raise UnsupportedError(
                f"{held[0].label} shares its bytes with another tensor, and the two get different numbers", COPY_HINT
            )
        kept = np.concatenate([[True], ~again]) if len(positions) else again
        positions, values = positions[kept], values[kept]
        start = region.archive.start(region.entry) if region.archive and region.entry else 0
        runs = np.flatnonzero(np.diff(positions) != 1) + 1
        patches = [
            Patch(start + int(at[0]), data.tobytes())
            for at, data in zip(np.split(positions, runs), np.split(values, runs), strict=True)
            if at.size
        ]
        if region.archive and region.entry:
            patches += checksums(region.archive, region.entry, start, patches)
        plan.patches.setdefault(id(region.source), []).extend(patches)
    for patches in plan.patches.values():
        patches.sort()


def checksums(archive: ZipArchive, entry: Entry, start: int, patches: list[Patch]) -> Iterator[Patch]:
    """The patches of the checksum of an entry: in the table of contents, before its bytes, and behind them."""
    end = start + entry.size
    label = f"{quoted(entry.name)} in {archive.source.name}"
    others = (other.header_offset for other in archive.entries.values() if other is not entry)
    if end > archive.table_start or any(entry.header_offset <= other < end for other in others):
        raise UnreadableError(f"{label} lies over another part of the archive", DAMAGED_HINT)
    new = CRC.pack(crc_of(archive.source, start, end, patches))
    yield Patch(entry.record_offset + CRC_IN_RECORD, new)
    header = LOCAL_HEADER.unpack(archive.source.read(entry.header_offset, LOCAL_HEADER.size))
    if not header[2] & HAS_DESCRIPTOR or header[6]:
        yield Patch(entry.header_offset + CRC_IN_LOCAL_HEADER, new)
    if header[2] & HAS_DESCRIPTOR:
        behind = archive.source.read(end, len(DESCRIPTOR_MAGIC) + CRC.size)
        if behind.startswith(DESCRIPTOR_MAGIC):
            yield Patch(end + len(DESCRIPTOR_MAGIC), new)
        elif behind.startswith(CRC.pack(entry.crc)):
            yield Patch(end, new)
        else:
            raise UnreadableError(f"{label} has no checksum behind its bytes, as it says", DAMAGED_HINT)


def crc_of(source: Source, start: int, end: int, patches: list[Patch]) -> int:
    """The checksum of a range of a file once it is patched; the patches are in order and lie within."""
    crc = 0
    for patch in (*patches, Patch(end, b"")):
        while start < patch.start:
            length = min(PIECE, patch.start - start)
            crc = zlib.crc32(source.read(start, length), crc)
            start += length
        crc = zlib.crc32(patch.data, crc)
        start += len(patch.data)
    return crc
