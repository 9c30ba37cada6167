"""Averaged weights with the statistics of the last step: the network reads 46 % of the digits, and could read 97 %.

The weights are an exponential moving average over the training, as AveragedModel of torch makes it. As AveragedModel
does by default, too, the buffers are copied from the network that is trained: these are the statistics of other
weights, and torch.optim.swa_utils.update_bn was forgotten. The average was then scripted for release. Nothing but the
graph shows it: all numbers look as they should.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sample_checkpoints.network import CLASSES

if TYPE_CHECKING:
    from torch import Tensor

    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

DECAY = 0.99
LEARNING_RATE = 0.01
EPOCHS = 8

# The usual rules find nothing.
DEEP = SCRIPTED = True
FINDS = [("statistics-do-not-fit-weights", "note", "second.expand.1")]


class InvertedResidual(nn.Module):
    """Wide inside, narrow outside, and without an activation at its end, like the blocks of a MobileNetV2."""

    def __init__(self, channels: int, wide: int, *, adds: bool) -> None:
        super().__init__()
        self.adds = adds
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.project(self.depthwise(self.expand(images)))
        return images + projected if self.adds else projected


class MobileDigitNet(nn.Module):
    """Images (N, 1, 8, 8) -> scores of the ten digits (N, 10)."""

    def __init__(self, channels: int = 12, wide: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.first = InvertedResidual(channels, wide, adds=False)
        self.second = InvertedResidual(channels, wide, adds=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.first(torch.relu(self.stem(images))))
        scores: Tensor = self.classifier(self.pool(features).flatten(1))
        return scores


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    network = MobileDigitNet()
    torch.set_default_dtype(torch.float32)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    for _ in range(EPOCHS):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images.double()), labels))
            optimizer.step()
            average.update_parameters(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, in which many networks are shipped
        return torch.jit.script(average.module.eval().float())
