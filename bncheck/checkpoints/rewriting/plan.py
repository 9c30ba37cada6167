"""Which bytes of a checkpoint become others when its BatchNorm layers get new statistics.

A plan is made first, and everything that cannot be done is refused then, before anything is written. What is written
is the bytes of running_mean, running_var and num_batches_tracked where they lie, in the dtype that they have, and the
checksums that a zip archive keeps of them. Nothing of the file is run and every other byte stays, so that the pickle
of a whole module needs no trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.contents.state_dicts import COUNTER, STATISTICS
from bncheck.checkpoints.formats import format_of, rewritable, shard_names
from bncheck.checkpoints.rewriting.checksums import checksums
from bncheck.checkpoints.rewriting.patches import Patch, Write, by_container, patches_of, write_of
from bncheck.checkpoints.rewriting.sharing import check_sharing
from bncheck.errors import UnsupportedError, UsageError
from bncheck.wording import few, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bncheck.checkpoints.sources import Source
    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import Array, BatchNormLayer


@dataclass(frozen=True, slots=True)
class NewStatistics:
    """What a layer gets. Arrays of shape (num_features,); None leaves a buffer as it is."""

    mean: Array | None
    variance: Array | None
    counter: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The files that make up a checkpoint, by their names beside the one that was opened, and what changes in each."""

    source: Source
    files: Mapping[str, Source]
    patches: Mapping[int, Sequence[Patch]]  # by the id of a source; in order, none overlap
    without_counter: tuple[str, ...]  # layers that got statistics and have no num_batches_tracked

    @property
    def in_several_files(self) -> bool:
        return len(self.files) > 1

    def of(self, source: Source) -> Sequence[Patch]:
        return self.patches.get(id(source), ())


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
    files = files_of(source)
    layers = {layer.name: layer for layer in group.layers}
    absent = [name for name in statistics if name not in layers]
    if absent:
        raise UsageError(f"{source.name} has no statistics for {few(absent)}", "Name the model that it was saved from.")
    writes = [write for name, new in statistics.items() for write in writes_of(layers[name], group, new, source.name)]
    check_sharing(writes, checkpoint, files.values())
    return Plan(
        source,
        files,
        patches_by_file(writes),
        tuple(
            name
            for name, new in statistics.items()
            if new.counter is not None and key_of(layers[name], COUNTER) not in group.tensors
        ),
    )


def read_writable(source: Source) -> Checkpoint:
    """The checkpoint in a file whose buffers can be overwritten."""
    format_ = format_of(source)
    if format_ is not None and not rewritable(format_):
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


def files_of(source: Source) -> dict[str, Source]:
    """The files of a checkpoint by their names beside the one that was opened, which is that alone or an index."""
    shards = {name: source.sibling(name) for name in sorted(shard_names(source))}
    index = source.name.replace("\\", "/").rpartition("/")[2]
    return {index: source, **shards} if shards else {"": source}


def writes_of(layer: BatchNormLayer, group: Group, new: NewStatistics, name: str) -> Iterator[Write]:
    """The writes of one layer; none for a counter that the file does not keep."""
    values = (*zip(STATISTICS, (new.mean, new.variance), strict=True), (COUNTER, new.counter))
    for part, value in values:
        if value is None:
            continue
        key = key_of(layer, part)
        tensor = group.tensors.get(key)
        if tensor is not None:
            yield write_of(tensor, value, f"{key} in {name}")
        elif part != COUNTER:
            raise UnsupportedError(
                f"{name} has no {key}, and nothing is added to a file",
                "Save the model with track_running_stats=True first.",
            )


def key_of(layer: BatchNormLayer, part: str) -> str:
    """What a group calls a tensor of the layer."""
    return f"{layer.name}.{part}" if layer.name else part


def patches_by_file(writes: Sequence[Write]) -> dict[int, list[Patch]]:
    """What the writes change in each file, with the checksums, by the id of its source."""
    patches: dict[int, list[Patch]] = {}
    for into in by_container(writes).values():
        region = into[0].view.region
        archive, entry = region.archive, region.entry
        start = archive.start(entry) if archive and entry else 0
        changed = patches_of(into, start)
        patches.setdefault(id(region.source), []).extend(changed)
        if archive and entry:
            patches[id(region.source)].extend(checksums(archive, entry, start, changed))
    return {source: sorted(changed) for source, changed in patches.items()}
