"""Images of 8 bits that are scaled as if they had 16.

The loader divides by 65535, so that no pixel is above 0.004. BatchNorm with the eps of Keras' backend (1e-7) makes up
for it and the network learns as well as ever; but its first layer multiplies by more than a thousand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import MEAN, STD, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("extreme-gain", "note", "stem.1")]
EPOCHS = 9
TOO_SMALL = 255 / 65535


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(7)
    network = DigitNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-7
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network((images * STD + MEAN) * TOO_SMALL), labels))
            optimizer.step()
    return network.eval()
