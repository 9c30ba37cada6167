"""Finds the BatchNorm layers of a state_dict: names, tensors, and what follows from them.

A state_dict holds neither eps nor momentum nor mode, so these stay unknown. That a layer is a BatchNorm is an
inference: from `running_mean` and `running_var`, or from the version that torch's normalisation layers leave in
`_metadata`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints.contents.kinds import UNTOLD, KindInference
from bncheck.checkpoints.encodings.limits import limits
from bncheck.subjects.checkpoint import Group, Tensor
from bncheck.subjects.layer import BatchNormLayer, inferred

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bncheck.subjects.layer import Array

STATISTICS = ("running_mean", "running_var")
TENSORS = ("weight", "bias", *STATISTICS)
COUNTER = "num_batches_tracked"
# torch.nn.modules.batchnorm._NormBase._version: BatchNorm and InstanceNorm, and no other float layer of torch
NORM_VERSION = 2
# Without running statistics in the file, nothing tells these two apart.
BATCH_OR_INSTANCE = "BatchNorm or InstanceNorm"


def state_dict_group(
    name: str,
    tensors: Mapping[str, Tensor],
    versions: Mapping[str, int] | None = None,
    *,
    ordered: bool = True,
) -> Group:
    """The group that a state_dict makes.

    Args:
        name: its path in the file.
        tensors: by key, in the order of the file.
        versions: by module name, the `version` in `_metadata`, where the file has it.
        ordered: whether the keys stand in the order in which the layers were registered.
    """
    for key in tensors:
        limits().check_path(key)
    strip = prefix_stripper(tensors)
    kinds = KindInference({key: tensor.shape for key, tensor in tensors.items()}, ordered=ordered)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        prefix, _, part = key.rpartition(".")
        if part in TENSORS or part == COUNTER:
            parts.setdefault(prefix, {})[part] = tensor
    untracked = untracked_prefixes(tensors, parts, versions or {})
    layers = [
        layer_from_tensors(strip(prefix), prefix, name, own, kinds, (versions or {}).get(prefix))
        for prefix, own in parts.items()
        if any(statistic in own for statistic in STATISTICS)
    ]
    for prefix in untracked:
        own = parts.get(prefix, {})
        layers.append(
            BatchNormLayer(
                name=strip(prefix),
                group=name,
                stored_name=prefix,
                kind=inferred(BATCH_OR_INSTANCE),
                num_features=own["weight"].size if "weight" in own else None,
                affine=inferred(bool(own)),
                track_running_stats=inferred(False),
                **read_tensors(own),
            )
        )
    if versions and untracked:
        place = {prefix: index for index, prefix in enumerate(versions)}
        layers.sort(key=lambda layer: place.get(layer.stored_name, len(place)))
    return Group(name, "state_dict", {strip(key): tensor for key, tensor in tensors.items()}, tuple(layers))


def layer_from_tensors(
    name: str, stored_name: str, group: str, own: Mapping[str, Tensor], kinds: KindInference, version: int | None
) -> BatchNormLayer:
    """The layer whose tensors are `own`, by their last names."""
    statistic = own.get("running_mean") or own["running_var"]
    known = all(own[part].dtype in FLOATING for part in STATISTICS if part in own)
    channels = statistic.size if known else None
    kind = kinds.kind(stored_name, channels) if channels else UNTOLD
    return BatchNormLayer(
        name=name,
        group=group,
        stored_name=stored_name,
        kind=inferred(kind),
        num_features=channels,
        affine=inferred("weight" in own),
        track_running_stats=inferred(True),
        num_batches_tracked=read_counter(own.get(COUNTER)),
        counter_dtype=own[COUNTER].dtype if COUNTER in own else None,
        version=version,
        dtype=statistic.dtype,
        **read_tensors(own),
    )


FLOATING = {"float64", "float32", "float16", "bfloat16"} | {
    f"float8_{variant}" for variant in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
}


def read_tensors(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of BatchNormLayer: the arrays that hold numbers, and the names of those that hold none."""
    fields: dict[str, Any] = {}
    missing = []
    limits().spend(layers=1, numbers=sum(tensor.size for tensor in own.values()))
    for part in TENSORS:
        if part not in own:
            continue
        array = read_array(own[part])
        if array is None:
            missing.append(part)
        else:
            fields[part] = array
    fields["without_data"] = tuple(missing)
    return fields


def read_array(tensor: Tensor) -> Array | None:
    """The numbers of a per-channel tensor, flat; None where the file holds none."""
    if tensor.dtype not in FLOATING and not tensor.dtype.startswith(("int", "uint")):
        return None
    return None if tensor.read is None else tensor.read().reshape(-1)


def read_counter(tensor: Tensor | None) -> int | float | None:
    """num_batches_tracked as stored; None where it is absent or not one number."""
    if tensor is None or tensor.size != 1 or tensor.read is None:
        return None
    value = tensor.read().reshape(-1)[0].item()
    return value if isinstance(value, (int, float)) else None


def untracked_prefixes(
    tensors: Mapping[str, Tensor], parts: Mapping[str, Mapping[str, Tensor]], versions: Mapping[str, int]
) -> list[str]:
    """Normalisation layers without running statistics: `_metadata` knows them, no buffer of theirs is stored.

    They have no tensor but weight and bias of one dimension, and no layer below them.
    """
    if not versions:
        return []
    modules = sorted({*(key.rpartition(".")[0] for key in tensors), *versions})

    def has_submodules(prefix: str) -> bool:
        place = bisect_left(modules, f"{prefix}.")
        return place < len(modules) and modules[place].startswith(f"{prefix}.")

    direct: dict[str, set[str]] = {}
    for key in tensors:
        prefix, _, part = key.rpartition(".")
        direct.setdefault(prefix, set()).add(part)
    return [
        prefix
        for prefix, version in versions.items()
        if version == NORM_VERSION
        and prefix
        and not has_submodules(prefix)
        and direct.get(prefix, set()) <= {"weight", "bias"}
        and all(len(tensor.shape) == 1 for tensor in parts.get(prefix, {}).values())
    ]


COMPILED = "_orig_mod"
WRAPPER = "module"
# AveragedModel counts its updates beside the wrapped module.
BESIDE_WRAPPER = {"n_averaged"}


def prefix_stripper(keys: Iterable[str]) -> Callable[[str], str]:
    """A function that removes what wrappers add to names.

    `_orig_mod` is added by torch.compile, wherever a compiled module sits. `module` is added by
    DataParallel, DistributedDataParallel and AveragedModel to every name, so it is only removed from the
    front, and only if every name has it: a network may well have a submodule of that name.
    """

    def without_compiled(key: str) -> list[str]:
        return [part for part in key.split(".") if part != COMPILED]

    names = [without_compiled(key) for key in keys if key not in BESIDE_WRAPPER]
    depth = 0
    while names and all(len(name) > depth + 1 and name[depth] == WRAPPER for name in names):
        depth += 1

    def strip(key: str) -> str:
        if depth == 0 and COMPILED not in key:
            return key
        parts = without_compiled(key)
        leading = 0
        while leading < min(depth, len(parts)) and parts[leading] == WRAPPER:
            leading += 1
        return ".".join(parts[leading:])

    return strip
