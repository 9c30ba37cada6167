"""A checkpoint in several files, with an index that says which tensor is in which: `*.index.json`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bncheck.checkpoints import safetensors
from bncheck.checkpoints.state_dicts import state_dict_group
from bncheck.checkpoints.tensors import DAMAGED_HINT
from bncheck.errors import UnreadableError, UnsupportedError, UsageError
from bncheck.subjects import Checkpoint, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from bncheck.checkpoints.source import Source

FORMAT = "safetensors, sharded"
# An index has about a hundred bytes for each tensor.
MAX_INDEX = 16 * 2**20
# The index starts with a small table of metadata, then the map.
HEAD = 4096
MAP = "weight_map"


def recognises(source: Source) -> bool:
    """A JSON object that maps weights to files."""
    head = source.read(0, min(source.size, HEAD)).lstrip()
    return head.startswith(b"{") and f'"{MAP}"'.encode() in head


def read(source: Source) -> Checkpoint:
    """The state_dict whose shards lie beside the index.

    Raises:
        UnreadableError: the index is damaged, a shard is missing, or it does not hold what the index says.
        UnsupportedError: the shards are of a format that is not read.
    """
    weight_map = weight_map_of(source)
    tensors: dict[str, Tensor] = {}
    keys_of: dict[str, set[str]] = {}
    for key, file in weight_map.items():
        keys_of.setdefault(file, set()).add(key)
    for shard_name, expected in sorted(keys_of.items()):
        shard = open_shard(source, shard_name)
        held, _ = safetensors.read_tensors(shard)
        absent = sorted(expected - held.keys())
        if absent:
            raise UnreadableError(
                f"{shard.name} misses {quoted(absent[0])}, which {source.name} says it holds", DAMAGED_HINT
            )
        tensors.update((key, tensor) for key, tensor in held.items() if key in expected)
    return Checkpoint(source.name, FORMAT, (state_dict_group("", tensors, ordered=False),))


def shard_names(source: Source) -> set[str]:
    """The files that belong to the index."""
    return set(weight_map_of(source).values())


def weight_map_of(source: Source) -> dict[str, str]:
    """The file that holds each tensor, by key."""
    if source.size > MAX_INDEX:
        raise UnreadableError(f"{source.name} is too large for an index of shards", "Check what the file holds.")
    weight_map = safetensors.parse_json(source.read(0, source.size), source.name).get(MAP)
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UnreadableError(f"{source.name} has a {MAP} that does not map names to files", DAMAGED_HINT)
    # "./a" and "a" are one file; the empty name stays what it is, and is refused.
    return {key: str(PurePosixPath(file)) if file else file for key, file in weight_map.items()}


def open_shard(index: Source, name: str) -> Source:
    try:
        shard = index.sibling(name)
    except UsageError as error:
        raise UnreadableError(
            f"{index.name} needs a shard that cannot be opened: {error.message}", "Copy all shards beside the index."
        ) from None
    if not safetensors.recognises(shard):
        raise UnsupportedError(f"{shard.name} is not a safetensors file", "Only safetensors shards are read yet.")
    return shard
