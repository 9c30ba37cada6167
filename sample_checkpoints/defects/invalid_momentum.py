"""A schedule that lowers momentum to 0 over ten epochs, and a training that takes twelve.

Nobody clamped it: in the last epoch momentum is negative, and each batch pushes the statistics away from its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import LAYERS, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("invalid-momentum", "error", layer) for layer in LAYERS]
FIRST_MOMENTUM = 0.1
EPOCHS_OF_SCHEDULE = 10
EPOCHS = 12


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(5)
    network = DigitNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for epoch in range(EPOCHS):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = FIRST_MOMENTUM * (1 - epoch / EPOCHS_OF_SCHEDULE)
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
    return network.eval()
