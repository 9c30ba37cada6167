"""Finds the state dicts and modules in what a pickle holds, however they are nested.

`{"epoch": 3, "state_dict": {...}, "ema": <Model>}` has two groups, named "state_dict" and "ema".
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, cast

from bncheck.checkpoints.contents.modules import module_group, module_state
from bncheck.checkpoints.contents.state_dicts import STATISTICS, state_dict_group
from bncheck.checkpoints.contents.torch_objects import TensorRecord
from bncheck.checkpoints.encodings.limits import limits
from bncheck.checkpoints.encodings.pickles import Dictionary, Object
from bncheck.errors import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bncheck.subjects.checkpoint import Group, Tensor

CONTAINERS = (Dictionary, Object, list, tuple)
# Real checkpoints nest a handful of levels; names of groups grow with them.
MAX_DEPTH = 1000
# The most places at which the groups of one file may stand.
MAX_GROUPS = 1000
# A place that has no name of its own: the state of an object belongs to the object.
UNNAMED = ""


class Place(NamedTuple):
    """Where a value stands: linked to the place that holds it, so that a deep one costs no more than a shallow one."""

    holder: Place | None
    name: str
    depth: int

    @property
    def path(self) -> tuple[str, ...]:
        names = []
        place: Place | None = self
        while place is not None:
            if place.name != UNNAMED:
                names.append(place.name)
            place = place.holder
        return tuple(reversed(names))

    @property
    def label(self) -> str:
        label = ".".join(self.path)
        limits().check_path(label)
        return label


def groups_of(value: object, source_name: str, tensor_of: Callable[[str, TensorRecord], Tensor]) -> tuple[Group, ...]:
    """Every group with the looks of a model, in the order of the file.

    Args:
        value: what the pickle holds.
        source_name: what an error calls the file.
        tensor_of: gives the tensor of a record; the first argument is what an error calls it.

    Raises:
        UnreadableError: the values are nested deeper, or hold more models, than any real checkpoint.
    """
    groups: list[Group] = []
    made_of: dict[int, Group | None] = {}  # by the identity of what was met before; all of it stays alive
    walking: list[tuple[Iterator[tuple[str, object]], Place]] = []  # depth first, a level each

    def visit(met: object, place: Place) -> None:
        limits().spend(steps=1)
        if id(met) in made_of:
            again = made_of[id(met)]
            if again:
                limits().spend(layers=len(again.layers))
                groups.append(renamed(again, place.label))
        else:
            group = made_of[id(met)] = group_at(met, place, tensor_of)
            if group:
                groups.append(group)
            if not (group and group.contents == "module"):
                walking.append((children(met), place))
        if len(groups) > MAX_GROUPS:
            raise UnreadableError(
                f"{source_name} holds more than {MAX_GROUPS:,} state dicts", "Save each in a file of its own."
            )

    if isinstance(value, CONTAINERS):
        visit(value, Place(None, UNNAMED, 0))
    while walking:
        level, place = walking[-1]
        name, child = next(level, (None, None))
        if name is None:
            walking.pop()
            continue
        if place.depth >= MAX_DEPTH:
            raise UnreadableError(
                f"{source_name} nests its values more than {MAX_DEPTH:,} levels deep",
                "No model is saved like this: check what the file holds.",
            )
        if id(child) not in made_of or made_of[id(child)]:
            visit(child, Place(place, name, place.depth + 1))
    return tuple(groups)


def group_at(value: object, place: Place, tensor_of: Callable[[str, TensorRecord], Tensor]) -> Group | None:
    if module_state(value) is not None:
        return module_group(place.label, cast("Object", value), tensor_of)
    if isinstance(value, Dictionary):
        return group_of_dictionary(value, place, tensor_of)
    return None


def renamed(group: Group, name: str) -> Group:
    """The same group at a second place of the file."""
    return replace(group, name=name, layers=tuple(replace(layer, group=name) for layer in group.layers))


def children(value: object) -> Iterator[tuple[str, object]]:
    """The containers that a value holds, and the names of their places.

    The state and the arguments of an object may be shared by many objects: they are values of their own.
    """
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(value, Dictionary):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    elif isinstance(value, Object):
        parts = [(UNNAMED, part) for part in (value.state, value.elements, value.args)]
        pairs = chain(parts, value.entries)
    for name, child in pairs:
        if isinstance(child, CONTAINERS) and (child or isinstance(child, Object) or has_attributes(child)):
            yield (str(name) if is_name(name) else "?"), child


def has_attributes(value: object) -> bool:
    """Whether an empty dict is worth a look: it may be the state_dict of a layer without tensors."""
    return isinstance(value, Dictionary) and value.attributes is not None


def is_name(name: object) -> bool:
    return isinstance(name, str) or (isinstance(name, int) and name.bit_length() <= 64)


def group_of_dictionary(
    state_dict: Dictionary, place: Place, tensor_of: Callable[[str, TensorRecord], Tensor]
) -> Group | None:
    """The group of a dict that looks like a state_dict, None for others (an optimizer's, say)."""
    limits().spend(steps=len(state_dict))
    records = {
        key: record for key, record in state_dict.items() if isinstance(key, str) and isinstance(record, TensorRecord)
    }
    versions = versions_of(state_dict)
    if not any(key.rpartition(".")[2] in ("weight", "bias", *STATISTICS) for key in records) and not versions:
        return None
    path = place.path
    label = place.label
    prefix = ""
    if path and any(statistic in records for statistic in STATISTICS):
        # A dict for each layer, as nested frameworks write it: the last part of the path names the layer.
        label, prefix = ".".join(path[:-1]), f"{path[-1]}."
        limits().spend(steps=len(records) * (1 + len(prefix) // 100))
    tensors = {f"{prefix}{key}": tensor_of(f"{prefix}{key}", record) for key, record in records.items()}
    return state_dict_group(label, tensors, {f"{prefix}{key}": version for key, version in versions.items()})


def versions_of(state_dict: Dictionary) -> dict[str, int]:
    """`version` by module name, from the `_metadata` that `nn.Module.state_dict` attaches; empty without it."""
    attributes = state_dict.attributes
    metadata = attributes.get("_metadata") if isinstance(attributes, Dictionary) else None
    if not isinstance(metadata, Dictionary):
        return {}
    limits().spend(steps=len(metadata))
    versions = {}
    for module, entry in metadata.items():
        version = entry.get("version") if isinstance(entry, Dictionary) else None
        if isinstance(module, str) and isinstance(version, int):
            versions[module] = version
    return versions
