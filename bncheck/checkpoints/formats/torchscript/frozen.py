"""Layers that torch.jit.freeze left: calls of batch_norm on constants."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.kinds import UNTOLD
from bncheck.checkpoints.contents.state_dicts import STATISTICS, TENSORS, read_tensors
from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, TensorRecord, storage_of
from bncheck.checkpoints.encodings.pickles import MAX_BYTES, read_pickle
from bncheck.checkpoints.encodings.zip_archive import ZipArchive
from bncheck.checkpoints.formats.torch_zip import Storages
from bncheck.checkpoints.formats.torchscript.code import BatchNormCall, Literal, TensorConstant
from bncheck.checkpoints.formats.torchscript.settings import affine_flags, agreed, momenta, numbers, tracking_flags
from bncheck.errors import DAMAGED_HINT, UnreadableError
from bncheck.subjects.checkpoint import Group, Tensor
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, inferred, stored
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping


def with_frozen_layers(group: Group, frozen: Mapping[str, BatchNormCall], archive: ZipArchive, root: str) -> Group:
    """The group with a layer for each call of batch_norm on constants; freezing keeps no name of a module."""
    data = archive.read(f"{root}constants.pkl", MAX_BYTES)
    constants = read_pickle(data, archive.source.name, CONSTRUCTORS, storage_of).value
    storages = Storages(with_constants_as_data(archive, root), root)
    tensors = dict(group.tensors)
    layers = list(group.layers)
    for name, call in frozen.items():
        given = {part: getattr(call, part) for part in TENSORS}
        records = {
            part: constants[value.index]
            for part, value in given.items()
            if isinstance(value, TensorConstant) and isinstance(constants, tuple) and value.index < len(constants)
        }
        own = {
            part: storages.tensor(f"{name}.{part}", record)
            for part, record in records.items()
            if isinstance(record, TensorRecord)
        }
        if not all(statistic in own for statistic in STATISTICS):
            raise UnreadableError(f"{archive.source.name} misses the constants of {quoted(name)}", DAMAGED_HINT)
        tensors.update({f"{name}.{part}": tensor for part, tensor in own.items()})
        layers.append(frozen_layer(name, group.name, call, own))
    return replace(group, tensors=tensors, layers=tuple(layers))


def with_constants_as_data(archive: ZipArchive, root: str) -> ZipArchive:
    """The archive with the storages of constants.pkl in place of those of data.pkl."""
    constants = copy(archive)
    folder = f"{root}constants/"
    constants.entries = {name: entry for name, entry in archive.entries.items() if name == f"{root}byteorder"}
    for name, entry in archive.entries.items():
        if name.startswith(folder):
            constants.entries[f"{root}data/{name.removeprefix(folder)}"] = entry
    return constants


def frozen_layer(name: str, group: str, call: BatchNormCall, own: dict[str, Tensor]) -> BatchNormLayer:
    statistic = own["running_mean"]
    training = call.training.value if isinstance(call.training, Literal) else None
    known = isinstance(training, bool)
    return BatchNormLayer(
        name=name,
        group=group,
        stored_name=name,
        kind=inferred(UNTOLD),
        num_features=statistic.size,
        eps=agreed(UNKNOWN, set(numbers(call.eps))),
        momentum=agreed(UNKNOWN, set(momenta(call))),
        affine=agreed(UNKNOWN, set(affine_flags(call))),
        track_running_stats=agreed(inferred(True), set(tracking_flags(call))),
        training=stored(bool(training)) if known else UNKNOWN,
        baked=known,
        dtype=statistic.dtype,
        **read_tensors(own),
    )
