"""An average of the weights by AveragedModel, without update_bn afterwards.

By default it averages the parameters and copies the buffers of the last weights, in which the learning rate was still
high. The statistics of the average are those of a network that nobody will use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("stale-averaged-statistics", "warning", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(6)
    network = DigitNet(channels=6)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    for _ in range(10):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
            averaged.update_parameters(network)
    return {"model": network.state_dict(), "ema": averaged.state_dict()}
