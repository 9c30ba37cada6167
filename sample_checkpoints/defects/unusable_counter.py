"""Counters taken out of the state_dict to please an old version of torch.

torch 0.4.0 did not know num_batches_tracked and called it an unexpected key. A line that removes the keys outlived it:
since then, `_metadata` says that they are there, and strict loading misses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import LAYERS

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("unusable-counter", "warning", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> object:
    state = trained.state_dict()
    for key in list(state):
        if "num_batches_tracked" in key:
            del state[key]
    return state
