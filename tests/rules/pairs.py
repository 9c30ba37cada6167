"""Two checkpoints for the tables of the rules about pairs, from plain layers, matched as `bncheck diff` does it."""

from typing import Any

import numpy as np

from bncheck.pairing.groups import pair_of
from bncheck.subjects.checkpoint import Checkpoint, Group, Tensor
from bncheck.subjects.layer import BatchNormLayer
from bncheck.subjects.pair import CheckpointPair

MOVED = {"running_mean": [0.6, 0.3, 0.9, 0.4], "running_var": [0.9, 2.5, 3.0, 2.0]}
NEARLY = {"running_mean": [0.11, -0.2, 0.31, 0.01], "running_var": [0.5, 1.5, 2.0, 1.0]}
TRAINED = {"weight": [1.1, 0.8, 1.2, 0.7], "bias": [0.1, 0.1, -0.1, 0.3]}


def tensor(values: Any, dtype: str = "float32") -> Tensor:
    held = np.asarray(values, np.float32)
    return Tensor(dtype, held.shape, lambda: held, lambda start, stop: held.reshape(-1)[start:stop])


def file(*layers: BatchNormLayer, source: str = "model.pt", **tensors: Any) -> Checkpoint:
    """A file of one group; each layer's tensors stand in the order of registration, after `tensors`.

    `__` in their names stands for a dot.
    """
    held = {name.replace("__", "."): tensor(values) for name, values in tensors.items()}
    for layer in layers:
        for part in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, part) is not None:
                held[f"{layer.name}.{part}"] = tensor(getattr(layer, part), layer.dtype or "float32")
    return Checkpoint(source, "torch.save", (Group("", "state_dict", held, layers),))


def paired(before: Checkpoint, after: Checkpoint, *, several: bool = False) -> CheckpointPair:
    return pair_of(before, after, several=several)
