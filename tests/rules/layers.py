"""Layers and checkpoints for the tables of the rules, from plain numbers."""

from typing import Any

import numpy as np

from bncheck.subjects.checkpoint import Checkpoint, GlobalReference, Group
from bncheck.subjects.layer import BatchNormLayer, inferred, stored

CHANNELS = 4


def array(values: Any) -> Any:
    return None if values is None else np.broadcast_to(np.asarray(values, np.float32), (CHANNELS,)).copy()


def layer(name: str = "bn", **fields: Any) -> BatchNormLayer:
    """A trained layer of a pickled module in eval mode, but for what is given."""
    settings = {
        "kind": "BatchNorm2d",
        "eps": 1e-5,
        "momentum": 0.1,
        "affine": True,
        "track_running_stats": True,
        "training": False,
    }
    made: dict[str, Any] = {key: stored(value) for key, value in settings.items()}
    made.update(
        running_mean=array([0.1, -0.2, 0.3, 0.0]),
        running_var=array([0.5, 1.5, 2.0, 1.0]),
        weight=array([1.0, 0.9, 1.1, 0.7]),
        bias=array([0.0, 0.1, -0.1, 0.2]),
        num_batches_tracked=1000,
        dtype="float32",
    )
    for key, value in fields.items():
        if key in ("running_mean", "running_var", "weight", "bias"):
            made[key] = array(value)
        else:
            made[key] = value
    return BatchNormLayer(name=name, group="", num_features=CHANNELS, stored_name=name, **made)


def of_state_dict(name: str = "bn", **fields: Any) -> BatchNormLayer:
    """A trained layer of a state_dict, which holds no eps, momentum or mode."""
    from bncheck.subjects.layer import UNKNOWN

    unknown = {"eps": UNKNOWN, "momentum": UNKNOWN, "training": UNKNOWN}
    known = {"kind": inferred("BatchNorm2d"), "affine": inferred(True), "track_running_stats": inferred(True)}
    return layer(name, **{**unknown, **known, **fields})


def fresh(name: str = "bn", **fields: Any) -> BatchNormLayer:
    """A layer that was made and never ran."""
    return layer(
        name, **{"running_mean": 0, "running_var": 1, "weight": 1, "bias": 0, "num_batches_tracked": 0, **fields}
    )


def checkpoint(*layers: BatchNormLayer, references: tuple[GlobalReference, ...] = ()) -> Checkpoint:
    return Checkpoint("model.pt", "torch.save", (Group("", "module", {}, layers),), references)
