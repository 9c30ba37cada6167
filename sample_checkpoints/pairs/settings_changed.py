"""A network with the settings of TensorFlow, rebuilt for the release by a script that knows its layers only.

It was trained with eps 1e-3 and momentum 0.01. The state_dict holds neither; the new network has PyTorch's defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import LAYERS, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

# Of eps and of momentum.
FINDS = [("settings-changed", "warning", layer) for layer in LAYERS for _ in range(2)]


def make(trained: DigitNet, digits: Digits) -> tuple[object, object]:
    torch.manual_seed(9)
    for layer in trained.train().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps, layer.momentum = 1e-3, 0.01
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.001)
    for images, labels in digits.batches():
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(trained(images), labels))
        optimizer.step()
    rebuilt = DigitNet()
    rebuilt.load_state_dict(trained.state_dict())
    return trained.eval(), rebuilt.eval()
