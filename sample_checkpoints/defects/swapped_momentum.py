"""A configuration that was ported from TensorFlow: momentum 0.99 means 0.01 there.

The network trains as usual, since train mode does not read the statistics; in the file they are those of the last
batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import LAYERS, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("swapped-momentum", "warning", layer) for layer in LAYERS]
TENSORFLOW_MOMENTUM = 0.99


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(4)
    network = DigitNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = TENSORFLOW_MOMENTUM
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(5):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
    return network.eval()
