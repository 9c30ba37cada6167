"""Tracking switched off as a remedy for bad results in eval mode.

An old answer in a forum says that track_running_stats=False makes eval mode behave like train mode. It did so in
torch 1.5. Here it is set on the trained network, which is then saved as a whole, with its buffers.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from sample_checkpoints.network import LAYERS

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("tracking-switched-off", "warning", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> object:
    network = copy.deepcopy(trained)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    return network.eval()
