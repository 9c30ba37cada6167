"""A residual block that was left out of the optimizer.

Its last BatchNorm starts with a weight of 0, as zero_init_residual has it. The list of parameters to train was
written by hand and lacks the block, so the branch never contributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("zero-scale", "warning", "block.bn2")]
EPOCHS = 6


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(8)
    network = DigitNet()
    nn.init.zeros_(network.block.bn2.weight)
    parts = (network.stem, network.reduce, network.top, network.classifier)
    optimizer = torch.optim.AdamW([parameter for part in parts for parameter in part.parameters()], lr=0.01)
    for _ in range(EPOCHS):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
    return network.state_dict()
