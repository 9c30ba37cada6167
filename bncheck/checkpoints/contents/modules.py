"""Finds the BatchNorm layers of a pickled nn.Module, whose classes need not be installed.

A pickled module holds its `__dict__`: `_parameters`, `_buffers`, `_modules`, `training`, and for a BatchNorm eps,
momentum, affine and track_running_stats. So each of these is known as stored. A layer is recognised by what it
holds as well as by its class path: subclasses of other packages have the attributes of a BatchNorm, too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from bncheck.checkpoints.contents.state_dicts import (
    BATCH_OR_INSTANCE,
    COUNTER,
    STATISTICS,
    TENSORS,
    prefix_stripper,
    read_counter,
    read_tensors,
)
from bncheck.checkpoints.contents.torch_objects import TensorRecord
from bncheck.checkpoints.encodings.limits import LONGEST_PATH, limits
from bncheck.checkpoints.encodings.pickles import Dictionary, Object
from bncheck.subjects.checkpoint import Group, Tensor
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, Known, Setting, StatisticsUse, inferred, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TORCH_BATCHNORM = "torch.nn.modules.batchnorm."
# Their buffers are those of a BatchNorm, but they normalise each sample by itself.
INSTANCE_NORM = re.compile(r"instance_?norm", re.IGNORECASE)
BATCH_NORM = re.compile(r"batch_?norm|(^|_)bn|BN|abn", re.IGNORECASE)
FROZEN = re.compile(r"frozen", re.IGNORECASE)
MAX_BITS = 63
# A tensor takes about as much memory and time as this many other parts.
STEPS_OF_TENSOR = 6
STEP_OF_NAME = 64
GRAPH_MODULE = "torch.fx.graph_module.reduce_graph_module"


def module_state(value: object) -> Dictionary | None:
    """The `__dict__` of a pickled module, None for anything else."""
    if not isinstance(value, Object):
        return None
    state = value.state
    if value.class_path == GRAPH_MODULE and value.args:
        state = value.args[0]  # torch.fx pickles the __dict__ as an argument
    if isinstance(state, Dictionary) and isinstance(state.get("_modules"), Dictionary):
        return state
    return None


def module_group(name: str, root: Object, tensor_of: Callable[[str, TensorRecord], Tensor]) -> Group:
    """The group that a pickled module makes.

    Args:
        name: the path of the module in the file, "" for the whole file.
        root: a module, as `module_state` recognises it.
        tensor_of: gives the tensor of a record; the first argument is what an error calls it.
    """
    tensors: dict[str, Tensor] = {}
    batchnorms: list[tuple[str, Object, Dictionary, dict[str, Tensor]]] = []
    paths = []
    for path, module, state in walk(root):
        paths.append(path)
        own: dict[str, Tensor] = {}
        for table in (state.get("_parameters"), state.get("_buffers")):
            limits().spend(steps=STEPS_OF_TENSOR * len(table) if isinstance(table, Dictionary) else 0)
            for part, record in items(table):
                limits().check_path(f"{path}.{part}" if len(part) < LONGEST_PATH else part)
                if isinstance(record, TensorRecord):
                    own[part] = tensor_of(f"{path}.{part}" if path else part, record)
        tensors.update({f"{path}.{part}" if path else part: tensor for part, tensor in own.items()})
        if is_batchnorm(module, state):
            batchnorms.append((path, module, state, own))
    strip = prefix_stripper([path for path in paths if path and path != "module"])
    layers = tuple(
        layer_from_module(strip(path), path, name, module, state, own) for path, module, state, own in batchnorms
    )
    return Group(name, "module", {strip(key): tensor for key, tensor in tensors.items()}, layers)


def walk(root: Object) -> Iterator[tuple[str, Object, Dictionary]]:
    """Each module once, in the order and by the name of `nn.Module.named_modules`; cycles end the walk."""
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", root)]
    while waiting:
        path, module = waiting.pop()
        state = module_state(module)
        if state is None or id(module) in seen:
            continue
        seen.add(id(module))
        yield path, cast("Object", module), state
        children = state["_modules"]
        steps = 1 + len(path) // STEP_OF_NAME  # each child has the whole path in its name
        limits().spend(steps=steps * len(children) if isinstance(children, Dictionary) else 0)
        named = [(f"{path}.{name}" if path else name, child) for name, child in items(children)]
        for name, _ in named:
            limits().check_path(name)
        waiting.extend(reversed(named))


def items(table: object) -> Iterator[tuple[str, object]]:
    if isinstance(table, Dictionary):
        for name, value in table.items():
            if isinstance(name, str):
                yield name, value


def class_name(module: Object) -> str:
    return (module.class_path or "").rpartition(".")[2]


def is_batchnorm(module: Object, state: Dictionary) -> bool:
    path = module.class_path or ""
    if path.startswith(TORCH_BATCHNORM):
        return True
    if INSTANCE_NORM.search(path):
        return False
    buffers = dict(items(state.get("_buffers")))
    if all(statistic in buffers for statistic in STATISTICS):
        return "eps" in state or "momentum" in state or any(buffers[s] is not None for s in STATISTICS)
    return False


def layer_from_module(
    name: str, stored_name: str, group: str, module: Object, state: Dictionary, own: dict[str, Tensor]
) -> BatchNormLayer:
    """The layer that a pickled module is. What its class does not store stays unknown or is inferred."""
    path = module.class_path
    kind = class_name(module)
    frozen = bool(FROZEN.search(kind))
    statistic = own.get("running_mean") or own.get("running_var")
    untold = statistic is None and not (path or "").startswith(TORCH_BATCHNORM) and not BATCH_NORM.search(kind)
    features, training = state.get("num_features"), state.get("training")
    parts = {part: own[part] for part in TENSORS if part in own}
    channels = next((tensor.size for tensor in parts.values() if tensor.read is not None), None)
    return BatchNormLayer(
        name=name,
        group=group,
        stored_name=stored_name,
        kind=Setting(BATCH_OR_INSTANCE, Known.INFERRED) if untold else stored(kind),
        class_path=path,
        num_features=features if isinstance(features, int) and is_moderate(features) and features else channels,
        use=StatisticsUse.FROZEN if frozen else StatisticsUse.BATCHNORM,
        eps=number(state, "eps"),
        momentum=UNKNOWN if frozen else number(state, "momentum", optional=True),
        affine=flag(state, "affine", "weight" in own),
        track_running_stats=flag(state, "track_running_stats", statistic is not None),
        training=stored(training) if isinstance(training, bool) else UNKNOWN,
        num_batches_tracked=read_counter(own.get(COUNTER)),
        counter_dtype=own[COUNTER].dtype if COUNTER in own else None,
        dtype=statistic.dtype if statistic else None,
        **read_tensors(parts),
    )


def is_moderate(value: object) -> bool:
    """Whether a value is a number that a setting can have: an int of a file may have thousands of digits."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= MAX_BITS
    return isinstance(value, float)


def number(state: Dictionary, name: str, *, optional: bool = False) -> Setting[float]:
    value = state.get(name)
    if is_moderate(value):
        return stored(float(cast("float", value)))
    return stored(None) if optional and name in state and value is None else UNKNOWN


def flag(state: Dictionary, name: str, otherwise: bool) -> Setting[bool]:
    """A flag as stored, or what follows from the tensors: FrozenBatchNorm2d and ABN store no such flag."""
    value = state.get(name)
    return stored(value) if isinstance(value, bool) else inferred(otherwise)
