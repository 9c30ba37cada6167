"""A checkpoint in several files, with an index that says which tensor is in which: `*.index.json`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.state_dicts import state_dict_group
from bncheck.checkpoints.contents.torch_objects import TensorRecord
from bncheck.checkpoints.encodings.json import parse_json
from bncheck.checkpoints.encodings.limits import limits
from bncheck.checkpoints.encodings.pickles import Dictionary
from bncheck.checkpoints.formats import safetensors, torch_legacy, torch_zip
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError, UsageError
from bncheck.subjects.checkpoint import Checkpoint, GlobalReference, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from bncheck.checkpoints.encodings.places import View
    from bncheck.checkpoints.sources import Source

FORMAT = "sharded"
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
    keys_of: dict[str, set[str]] = {}
    for key, file in weight_map_of(source).items():
        keys_of.setdefault(file, set()).add(key)
    tensors: dict[str, Tensor] = {}
    references: set[GlobalReference] = set()
    for shard_name, expected in sorted(keys_of.items()):
        shard = open_shard(source, shard_name)
        stored, globals_ = read_shard(shard)
        absent = sorted(expected - stored.keys())
        if absent:
            said = f"which {source.name} says it holds"
            raise UnreadableError(f"{shard.name} misses {quoted(absent[0])}, {said}", DAMAGED_HINT)
        tensors.update((key, tensor) for key, tensor in stored.items() if key in expected)
        references |= globals_
    groups = (state_dict_group("", tensors, ordered=bool(references)),)  # safetensors, without globals, sorts by name
    return Checkpoint(source.name, FORMAT, groups, tuple(sorted(references)))


def read_shard(shard: Source) -> tuple[dict[str, Tensor], set[GlobalReference]]:
    """The tensors of a shard by key, and what unpickling it would import."""
    if safetensors.recognises(shard):
        return safetensors.read_tensors(shard)[0], set()
    for pickled in (torch_zip, torch_legacy):
        if pickled.recognises(shard):
            pickle, storages = pickled.unpickle(shard)
            if not isinstance(pickle.value, Dictionary):
                raise UnreadableError(f"{shard.name} does not hold a state_dict", DAMAGED_HINT)
            limits().spend(steps=len(pickle.value))
            tensors = {
                key: storages.tensor(key, record)
                for key, record in pickle.value.items()
                if isinstance(key, str) and isinstance(record, TensorRecord)
            }
            return tensors, pickle.globals
    raise UnsupportedError(f"{shard.name} is no checkpoint in one file", "Shards are safetensors or torch.save files.")


def shard_names(source: Source) -> set[str]:
    """The files that belong to the index."""
    return set(weight_map_of(source).values())


def views(_: Source) -> tuple[View, ...]:
    """None in the index; each shard is a file of its own."""
    return ()


def weight_map_of(source: Source) -> dict[str, str]:
    """The file that holds each tensor, by key."""
    if source.size > MAX_INDEX:
        raise UnreadableError(f"{source.name} is too large for an index of shards", "Check what the file holds.")
    weight_map = parse_json(source.read(0, source.size), source.name).get(MAP)
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UnreadableError(f"{source.name} has a {MAP} that does not map names to files", DAMAGED_HINT)
    # "./a" and "a" are one file; the empty name stays what it is, and is refused.
    return {key: str(PurePosixPath(file)) if file else file for key, file in weight_map.items()}


def open_shard(index: Source, name: str) -> Source:
    try:
        return index.sibling(name)
    except UsageError as error:
        raise UnreadableError(
            f"{index.name} needs a shard that cannot be opened: {error.message}", "Copy all shards beside the index."
        ) from None
