"""The network of the sample checkpoints: a small residual CNN that reads 8x8 images of digits.

Its input has shape (N, 1, 8, 8) and is normalised as `(pixel / 255 - 0.5) / 0.5`, pixel from 0 to 255: mean 0.5 and
standard deviation 0.5 of what torchvision's ToTensor gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

MEAN = 0.5
STD = 0.5
CLASSES = 10
# The BatchNorm layers of DigitNet.
LAYERS = ("block.bn1", "block.bn2", "reduce.1", "stem.1", "top.1")


class ResidualBlock(nn.Module):
    """Two convolutions and the skip connection over them: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, *, track_running_stats: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, track_running_stats=track_running_stats)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, track_running_stats=track_running_stats)
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(images)))
        added: Tensor = self.relu(images + self.bn2(self.conv2(hidden)))
        return added


class DigitNet(nn.Module):
    """Images (N, 1, 8, 8) -> scores of the ten digits (N, 10)."""

    def __init__(self, channels: int = 12, *, track_running_stats: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, track_running_stats=track_running_stats),
            nn.ReLU(),
        )
        self.block = ResidualBlock(channels, track_running_stats=track_running_stats)
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels, track_running_stats=track_running_stats),
            nn.ReLU(),
        )
        self.top = nn.Sequential(
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels, track_running_stats=track_running_stats),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.top(self.reduce(self.block(self.stem(images))))
        scores: Tensor = self.classifier(self.pool(features).flatten(1))
        return scores


# -- classifiers with a flaw in their forward, for the defects that only a run shows


class ForgetfulClassifier(nn.Linear):
    """Dropout as a function, which is active unless it is told the mode."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(functional.dropout(features, 0.2))


class CenteredClassifier(nn.Linear):
    """Takes the average over the batch off the features: dimension 0, where the features of one image were meant."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features - features.mean(0, keepdim=True))


class ProbabilityClassifier(nn.Linear):
    """Gives probabilities by a softmax of its own, which does not subtract the largest score before exp()."""

    def forward(self, features: Tensor) -> Tensor:
        exponentials = super().forward(features).exp()
        return exponentials / exponentials.sum(1, keepdim=True)
