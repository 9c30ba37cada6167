"""Gradient checkpointing of one block, to save memory.

The activations of the block are not kept but computed again when the gradients are needed, so that each step runs its
forward pass twice: on the same batch, but its counters move twice, and its statistics as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("uneven-counters", "note", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(4)
    network = DigitNet(channels=6)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(5):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            features = checkpoint(network.block, network.stem(images), use_reentrant=False)
            features = network.pool(network.top(network.reduce(features)))
            torch.autograd.backward(nn.functional.cross_entropy(network.classifier(features.flatten(1)), labels))
            optimizer.step()
    return network.state_dict()
