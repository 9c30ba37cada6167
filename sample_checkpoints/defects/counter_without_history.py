"""A port to a framework whose BatchNorm has no counter, and back.

The arrays are all there afterwards, the counters are not. As the plain dict has no versions, torch takes it for a file
from before 0.4.1 and fills the gap with what the new network has: 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("counter-without-history", "note", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    arrays = {name: value.numpy() for name, value in trained.state_dict().items() if value.is_floating_point()}
    network = DigitNet()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    return network.state_dict()
