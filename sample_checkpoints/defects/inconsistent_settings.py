"""A last stage from another code base in a network with settings of its own.

The network has eps 0.001 and momentum 0.03, as detectors often do. The convolution and the BatchNorm of its last
stage were taken over from elsewhere, with the defaults of PyTorch, and all of it was trained on.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("inconsistent-settings", "note", None)] * 2  # eps, momentum


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(7)
    network = copy.deepcopy(trained).train()
    for part in (network.stem, network.block, network.reduce):
        for module in part.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-3, 0.03
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005)
    for _ in range(3):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
    return network.eval()
