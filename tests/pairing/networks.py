"""Networks whose checkpoints are compared."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """A convolution and its BatchNorm, registered the other way round if asked."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.bn(self.conv(images))
        return normalised


class Network(nn.Module):
    """Two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block(3)
        self.second = Block(5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.second(self.first(images))
        return scores


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    made = Network()
    made(torch.randn(8, 3, 9, 9))
    return made
