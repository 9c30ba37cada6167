"""Statistics that were estimated anew, and for too short a time.

Somebody resets the statistics of a trained network and runs five batches through it in train mode. Momentum is still
0.1, so more than half of what is saved are the initial values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import LAYERS

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("under-converged-statistics", "error", layer) for layer in LAYERS]
BATCHES = 5


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(5)
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    trained.train()
    for _, (images, _) in zip(range(BATCHES), digits.batches(), strict=False):
        trained(images)
    return trained.state_dict()
