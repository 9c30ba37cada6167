"""A training in pure bfloat16.

model.bfloat16() casts the buffers as well, and most updates of the statistics are lost in rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import LAYERS, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("low-precision-statistics", "warning", layer) for layer in LAYERS]
EPOCHS = 4


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(9)
    network = DigitNet().bfloat16()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.005)
    for _ in range(EPOCHS):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images.bfloat16()).float(), labels))
            optimizer.step()
    return {"epoch": EPOCHS, "state_dict": network.state_dict(), "optimizer": optimizer.state_dict()}
