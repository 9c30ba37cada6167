"""Small networks of three kinds with two places where something can be put, and things that make results differ."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bncheck.evaluation.data.batches import Batch, Data

FEATURES, CLASSES, SAMPLES, BATCH = 8, 5, 40, 8


class Plain(nn.Module):
    """Convolutions one after the other, max pooling between them."""

    def __init__(self, first: nn.Module | None = None, second: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, FEATURES, 3, padding=1, bias=False), nn.BatchNorm2d(FEATURES)
        self.first = first or nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1, bias=False), nn.BatchNorm2d(FEATURES)
        self.second = second or nn.Identity()
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(F.relu(self.bn1(self.conv1(x)))), 2)
        x = self.second(F.relu(self.bn2(self.conv2(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Residual(nn.Module):
    """A block with a skip connection, and a depthwise convolution in it."""

    def __init__(self, first: nn.Module | None = None, second: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, FEATURES, 3, padding=1), nn.BatchNorm2d(FEATURES), nn.ReLU6())
        self.first = first or nn.Identity()
        self.block = nn.Sequential(
            nn.Conv2d(FEATURES, FEATURES, 3, padding=1, groups=FEATURES, bias=False),
            nn.BatchNorm2d(FEATURES),
            nn.Hardswish(),
            nn.Conv2d(FEATURES, FEATURES, 1, bias=False),
            nn.BatchNorm2d(FEATURES),
        )
        self.second = second or nn.Identity()
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(self.stem(x))
        x = self.second(x + self.block(x))
        return {"features": x, "logits": self.head(x.mean((2, 3)))}


class Perceptron(nn.Module):
    """Linear layers with BatchNorm1d."""

    def __init__(self, first: nn.Module | None = None, second: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(36, 2 * FEATURES), nn.BatchNorm1d(2 * FEATURES)
        self.first = first or nn.Identity()
        self.fc2, self.bn2 = nn.Linear(2 * FEATURES, FEATURES), nn.BatchNorm1d(FEATURES)
        self.second = second or nn.Identity()
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(F.gelu(self.bn1(self.fc1(x.flatten(1)))))
        x = self.second(torch.tanh(self.bn2(self.fc2(x))))
        return self.head(x), x


NETWORKS: dict[str, Any] = {"plain": Plain, "residual": Residual, "perceptron": Perceptron}
# A BatchNorm of each in its middle.
MIDDLE = {"plain": "bn2", "residual": "block.1", "perceptron": "bn2"}


def images(seed: int = 0, samples: int = SAMPLES) -> Tensor:
    return torch.randn(samples, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def trained(kind: str, first: nn.Module | None = None, second: nn.Module | None = None) -> nn.Module:
    """A network whose statistics are those of the images, in eval mode."""
    torch.manual_seed(0)
    network: nn.Module = NETWORKS[kind](first, second)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)
        for number in range(60):
            network(images(number, 64))
    return network.eval()


def data(tensor: Tensor | None = None, batch: int = BATCH, labels: Tensor | None = None) -> Data:
    """The images in batches, the same in each pass."""
    held = images() if tensor is None else tensor

    def start() -> Iterator[Batch]:
        for begin in range(0, len(held), batch):
            part = held[begin : begin + batch]
            yield Batch(part, None if labels is None else labels[begin : begin + batch], len(part))

    return Data(start, {"kind": "test"})  # type: ignore[arg-type]


def shuffled() -> Data:
    def start() -> Iterator[Batch]:
        held = images()[torch.randperm(SAMPLES)]
        for begin in range(0, SAMPLES, BATCH):
            yield Batch(held[begin : begin + BATCH], None, BATCH)

    return Data(start, {"kind": "shuffled"})  # type: ignore[arg-type]


def augmented() -> Data:
    def start() -> Iterator[Batch]:
        for begin in range(0, SAMPLES, BATCH):
            held = images()[begin : begin + BATCH]
            yield Batch(held + 0.1 * torch.randn_like(held), None, BATCH)

    return Data(start, {"kind": "augmented"})  # type: ignore[arg-type]


# -- modules that make results differ


class FunctionalDropout(nn.Module):
    """Calls dropout without saying in which mode: it is active in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3)


class GaussianNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class SharedNoise(nn.Module):
    """The same noise for every sample of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape[1:])


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(0.5)


class OwnGenerator(nn.Module):
    """Noise from a generator that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()
        self.generator.seed()

    def __deepcopy__(self, memo: object) -> OwnGenerator:
        return OwnGenerator()  # generators cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.uniform(0.5, 1.5))


class HiddenChance(nn.Module):
    """What a kernel that adds in any order looks like from outside: no generator moves, and results differ.

    Never the same in neighbouring calls, so that no test passes or fails by luck.
    """

    calls = count()

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 1e-6 * (next(self.calls) % 23))


class Stateful(nn.Module):
    """Each forward leaves something for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[operator]
        return x * (1 + 0.05 * self.calls)  # type: ignore[operator]


class Centered(nn.Module):
    """Subtracts the mean of the batch: samples see each other, and no BatchNorm has to do with it."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0, keepdim=True)


class NotFinite(nn.Module):
    """Takes the logarithm of what may be negative."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.log(x - 0.5)
