"""Validation in train mode: nobody called eval(), and no_grad() does not stop the statistics.

After each epoch the loss on a quarter of the images is computed, and each batch of them moves the statistics. The
optimizer that is saved beside the weights knows how many steps it made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("more-updates-than-steps", "warning", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(5)
    for_validation, for_training = torch.randperm(len(digits.labels)).tensor_split([len(digits.labels) // 4])
    network = DigitNet(channels=6)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(6):
        for images, labels in digits.part(for_training).batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
        with torch.no_grad():
            for images, labels in digits.part(for_validation).batches():
                nn.functional.cross_entropy(network(images), labels)
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 6}
