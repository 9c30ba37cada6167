"""A sparsity penalty that kills a branch.

To make the features inside the block sparse, their mean is added to the loss, with too large a factor. The biases of
block.bn1 fall until its ReLU never fires. From then on block.bn2 gets zeros: its variance shrinks by a tenth with each
batch, and it gives out its bias. The skip connection keeps the network going, and nothing in the loss tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("dead-channels", "error", "block.bn2")]
EPOCHS = 14
FACTOR = 100.0


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(6)
    features: list[torch.Tensor] = []
    hook = trained.block.conv2.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.02, momentum=0.9)
    trained.train()
    for _ in range(EPOCHS):
        for images, labels in digits.batches():
            features.clear()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(trained(images), labels)
            torch.autograd.backward(loss + FACTOR * features[0].mean())
            optimizer.step()
    hook.remove()
    return trained.state_dict()
