"""Small networks of many families, each with what makes its BatchNorm layers different from those of the others.

No library of networks can be a dependency of the tests, so these are definitions of their own, as small as they can be
with the traits kept: settings, initial values, what feeds a BatchNorm, how often a step calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

Norm = Callable[[int], nn.Module]

USUAL: Norm = nn.BatchNorm2d
TENSORFLOW: Norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
CLASSES = 10


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: Norm = USUAL,
    act: Callable[[], nn.Module] | None = nn.ReLU,
    bias: bool = False,
) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=bias),
        norm(outputs),
        *([act()] if act else []),
    ]
    return nn.Sequential(*layers)


class Head(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Residual(nn.Module):
    """x + body(x), with a projection where the shapes differ, and an activation behind it."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.shortcut(x) + self.body(x))
        return result


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, gate: Callable[[], nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.gate(x)
        return result


class Concatenated(nn.ModuleList):
    """What several branches give, one behind the other in the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class Sum(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = sum(branch(x) for branch in self)  # type: ignore[assignment]
        return result


# -- image classifiers


def basic_block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    body = nn.Sequential(conv(inputs, outputs, stride=stride), conv(outputs, outputs, act=None))
    shortcut = conv(inputs, outputs, 1, stride=stride, act=None) if stride > 1 or inputs != outputs else None
    return Residual(body, shortcut, nn.ReLU())


def resnet() -> nn.Module:
    return nn.Sequential(
        conv(3, 16), basic_block(16, 16), basic_block(16, 32, 2), basic_block(32, 32), basic_block(32, 64, 2), Head(64)
    )


def resnet_with_zero_init() -> nn.Module:
    """zero_init_residual: the last weight of each branch starts at 0."""
    network = resnet()
    for block in network.modules():
        if isinstance(block, Residual):
            nn.init.zeros_(block.body[-1][1].weight)  # type: ignore[index, arg-type]
    return network


class PreActivation(nn.Module):
    """BatchNorm, ReLU, convolution; dropout between the two convolutions where it is wide."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(x))
        result: Tensor = self.shortcut(x) + self.conv2(self.dropout(F.relu(self.bn2(self.conv1(x)))))
        return result


def preactivation_resnet() -> nn.Module:
    blocks = [PreActivation(16, 16), PreActivation(16, 32, 2), PreActivation(32, 64, 2)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(64), nn.ReLU(), Head(64))


def wide_resnet() -> nn.Module:
    blocks = [PreActivation(16, 48, 1, 0.3), PreActivation(48, 48, 2, 0.3), PreActivation(48, 64, 2, 0.3)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(64), nn.ReLU(), Head(64))


def vgg() -> nn.Module:
    """Convolutions with a bias before each BatchNorm, and the initial values of torchvision."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 64)):
        layers += [conv(inputs, outputs, bias=True), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, Head(64))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return network


def plain() -> nn.Module:
    """One width throughout and Kaiming's initial weights: all variances are nearly alike, and near 1."""
    network = nn.Sequential(conv(3, 8), *(conv(8, 8) for _ in range(4)), Head(8))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet() -> nn.Module:
    """Each BatchNorm sees all that came before, so that the same channel passes through many of them."""
    return nn.Sequential(
        conv(3, 16), *(DenseLayer(16 + 8 * index, 8) for index in range(4)),
        nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 1, bias=False), nn.AvgPool2d(2),
        *(DenseLayer(24 + 8 * index, 8) for index in range(3)), nn.BatchNorm2d(48), Head(48),
    )  # fmt: skip


def resnext() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        body = nn.Sequential(conv(inputs, 32, 1), conv(32, 32, stride=stride, groups=8), conv(32, outputs, 1, act=None))
        return Residual(body, conv(inputs, outputs, 1, stride=stride, act=None), nn.ReLU())

    return nn.Sequential(conv(3, 16), block(16, 64, 1), block(64, 128, 2), Head(128))


def regnet() -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Module:
        body = nn.Sequential(
            conv(inputs, outputs, 1), conv(outputs, outputs, stride=2, groups=outputs // 8),
            SqueezeExcitation(outputs), conv(outputs, outputs, 1, act=None),
        )  # fmt: skip
        return Residual(body, conv(inputs, outputs, 1, stride=2, act=None), nn.ReLU())

    return nn.Sequential(conv(3, 16, stride=2), block(16, 24), block(24, 48), Head(48))


def repvgg() -> nn.Module:
    """Three branches, one of them nothing but a BatchNorm."""

    def block(channels: int) -> nn.Module:
        branches = Sum([conv(channels, channels, act=None), conv(channels, channels, 1, act=None)])
        branches.append(nn.BatchNorm2d(channels))
        return nn.Sequential(branches, nn.ReLU())

    return nn.Sequential(conv(3, 24, stride=2), block(24), block(24), conv(24, 48, stride=2), block(48), Head(48))


def squeezenet() -> nn.Module:
    def fire(inputs: int, squeezed: int, expanded: int) -> nn.Module:
        expand = Concatenated([conv(squeezed, expanded, 1), conv(squeezed, expanded)])
        return nn.Sequential(conv(inputs, squeezed, 1), expand)

    return nn.Sequential(conv(3, 32, stride=2), fire(32, 8, 16), fire(32, 8, 32), nn.MaxPool2d(2), Head(64))


def inception() -> nn.Module:
    """eps 1e-3 with the momentum of PyTorch, convolutions of 1x7 and 7x1."""
    norm = partial(nn.BatchNorm2d, eps=1e-3)

    def factored(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            conv(inputs, 16, 1, norm=norm),
            nn.Conv2d(16, 16, (1, 7), padding=(0, 3), bias=False), norm(16), nn.ReLU(),
            nn.Conv2d(16, outputs, (7, 1), padding=(3, 0), bias=False), norm(outputs), nn.ReLU(),
        )  # fmt: skip

    def pooled(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, outputs, 1, norm=norm))

    def block(inputs: int) -> nn.Module:
        return Concatenated([conv(inputs, 16, 1, norm=norm), factored(inputs, 24), pooled(inputs, 24)])

    return nn.Sequential(conv(3, 32, stride=2, norm=norm), block(32), nn.MaxPool2d(2), block(64), Head(64))


class GoogLeNet(nn.Module):
    """Auxiliary heads that run in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        self.stem = conv(3, 32, stride=2, norm=norm)
        self.first = Concatenated([conv(32, 16, 1, norm=norm), conv(32, 32, norm=norm)])
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(4), conv(48, 16, 1, norm=norm), Head(16))
        self.second = Concatenated([conv(48, 32, 1, norm=norm), conv(48, 32, norm=norm)])
        self.head = Head(64)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.first(self.stem(x))
        result: Tensor = self.head(self.second(x))
        return (result, self.aux(x)) if self.training else result


def xception() -> nn.Module:
    """Depthwise and pointwise convolution with nothing between them."""

    def separable(inputs: int, outputs: int) -> nn.Module:
        depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        return nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def block(inputs: int, outputs: int) -> nn.Module:
        body = nn.Sequential(separable(inputs, outputs), separable(outputs, outputs), nn.MaxPool2d(3, 2, 1))
        return Residual(body, conv(inputs, outputs, 1, stride=2, act=None))

    return nn.Sequential(conv(3, 16, stride=2), block(16, 32), block(32, 64), nn.ReLU(), Head(64))


# -- mobile networks


def inverted(
    inputs: int,
    outputs: int,
    *,
    stride: int = 1,
    norm: Norm = USUAL,
    act: Callable[[], nn.Module] = nn.ReLU6,
    gate: Callable[[], nn.Module] | None = None,
) -> nn.Module:
    """Wide inside, narrow and linear at its end."""
    wide = 4 * inputs
    body = nn.Sequential(
        conv(inputs, wide, 1, norm=norm, act=act),
        conv(wide, wide, stride=stride, groups=wide, norm=norm, act=act),
        *([SqueezeExcitation(wide, gate)] if gate else []),
        conv(wide, outputs, 1, norm=norm, act=None),
    )
    return Residual(body) if stride == 1 and inputs == outputs else body


def mobilenet_v1() -> nn.Module:
    def separable(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(inputs, inputs, stride=stride, groups=inputs), conv(inputs, outputs, 1))

    return nn.Sequential(conv(3, 16, stride=2), separable(16, 32, 1), separable(32, 64, 2), Head(64))


def mobilenet_v2() -> nn.Module:
    blocks = [inverted(16, 16), inverted(16, 24, stride=2), inverted(24, 24), inverted(24, 32, stride=2)]
    return nn.Sequential(conv(3, 16, stride=2, act=nn.ReLU6), *blocks, conv(32, 128, 1, act=nn.ReLU6), Head(128))


def mobilenet_v3() -> nn.Module:
    """eps 1e-3 and momentum 0.01, hardswish, and gates that are half open at the start."""
    block = partial(inverted, norm=TENSORFLOW, act=nn.Hardswish, gate=nn.Hardsigmoid)
    stem = conv(3, 16, stride=2, norm=TENSORFLOW, act=nn.Hardswish)
    blocks = [block(16, 16), block(16, 24, stride=2), block(24, 24), block(24, 40, stride=2)]
    return nn.Sequential(stem, *blocks, conv(40, 128, 1, norm=TENSORFLOW, act=nn.Hardswish), Head(128))


def efficientnet() -> nn.Module:
    block = partial(inverted, norm=TENSORFLOW, act=nn.SiLU, gate=nn.Sigmoid)
    stem = conv(3, 16, stride=2, norm=TENSORFLOW, act=nn.SiLU)
    blocks = [block(16, 16), block(16, 24, stride=2), block(24, 24), block(24, 24), block(24, 40, stride=2)]
    return nn.Sequential(stem, *blocks, conv(40, 128, 1, norm=TENSORFLOW, act=nn.SiLU), Head(128))


def mnasnet() -> nn.Module:
    """A momentum of 3e-4, as 1 - 0.9997 gives it."""
    norm = partial(nn.BatchNorm2d, momentum=1 - 0.9997)
    blocks = [inverted(16, 16, norm=norm, act=nn.ReLU), inverted(16, 24, stride=2, norm=norm, act=nn.ReLU)]
    return nn.Sequential(conv(3, 16, stride=2, norm=norm), *blocks, Head(24))


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, groups=half, act=None), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        joined = torch.stack([kept, self.branch(changed)], 2)
        return joined.flatten(1, 2)


def shufflenet() -> nn.Module:
    return nn.Sequential(conv(3, 24, stride=2), *(ShuffleUnit(24) for _ in range(4)), conv(24, 64, 1), Head(64))


class Ghost(nn.Module):
    """Half of the channels are cheap copies of the others."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.primary = conv(inputs, outputs // 2, 1)
        self.cheap = conv(outputs // 2, outputs // 2, groups=outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)


def ghostnet() -> nn.Module:
    return nn.Sequential(conv(3, 16, stride=2), Ghost(16, 32), nn.MaxPool2d(2), Ghost(32, 64), Ghost(64, 64), Head(64))


# -- detection, segmentation, generation


def darknet() -> nn.Module:
    """The settings of YOLO: eps 1e-3, momentum 0.03, one part of the channels past the blocks."""
    block = partial(conv, norm=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03), act=nn.SiLU)

    def partial_stage(channels: int) -> nn.Module:
        deep = nn.Sequential(block(channels, channels // 2, 1), Residual(block(channels // 2, channels // 2)))
        return nn.Sequential(Concatenated([deep, block(channels, channels // 2, 1)]), block(channels, channels, 1))

    return nn.Sequential(
        block(3, 16, stride=2), block(16, 32, stride=2), partial_stage(32), block(32, 64, stride=2), partial_stage(64),
        nn.Conv2d(64, 18, 1),
    )  # fmt: skip


class FeaturePyramid(nn.Module):
    """One head for three levels: its BatchNorm counts three updates a step, of inputs of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.stages = nn.ModuleList([basic_block(16, 32, 2), basic_block(32, 64, 2), basic_block(64, 64, 2)])
        self.lateral = nn.ModuleList([nn.Conv2d(size, 32, 1) for size in (32, 64, 64)])
        self.head = nn.Sequential(conv(32, 32), conv(32, 32), nn.Conv2d(32, 12, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        return [self.head(level) for level in levels]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv(3, 16, bias=True), conv(16, 16, bias=True))
        self.down2 = nn.Sequential(conv(16, 32, bias=True), conv(32, 32, bias=True))
        self.bottom = nn.Sequential(conv(32, 64, bias=True), conv(64, 64, bias=True))
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1 = conv(64, 32, bias=True), conv(32, 16, bias=True)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.join2(torch.cat([second, self.up2(x)], 1))
        result: Tensor = self.last(self.join1(torch.cat([first, self.up1(x)], 1)))
        return result


class Pooled(nn.Module):
    """A branch of one pixel: its BatchNorm sees as many values as there are images."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.layers(x), size=x.shape[-2:], mode="bilinear")


def deeplab() -> nn.Module:
    """Dilated branches, and a head whose momentum is not that of the backbone."""
    norm = partial(nn.BatchNorm2d, momentum=0.01)
    dilated = [
        nn.Sequential(nn.Conv2d(32, 16, 3, padding=rate, dilation=rate, bias=False), norm(16), nn.ReLU())
        for rate in (2, 4)
    ]
    pyramid = Concatenated([conv(32, 16, 1, norm=norm), *dilated, Pooled(32, 16)])
    return nn.Sequential(conv(3, 16, stride=2), basic_block(16, 32, 2), pyramid, conv(64, 32), nn.Conv2d(32, 2, 1))


class Hourglass(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.skip, self.down = PreActivation(24, 24), PreActivation(24, 24)
        self.inner = Hourglass(depth - 1) if depth > 1 else PreActivation(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(self.down(F.max_pool2d(x, 2)))
        result: Tensor = self.skip(x) + F.interpolate(inner, scale_factor=2)
        return result


def hourglass() -> nn.Module:
    return nn.Sequential(conv(3, 24, stride=2), Hourglass(3), conv(24, 24, 1), nn.Conv2d(24, 5, 1))


def dcgan_initial(network: nn.Module) -> nn.Module:
    """Weights of convolutions from N(0, 0.02), of BatchNorm from N(1, 0.02)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
    return network


def dcgan_discriminator() -> nn.Module:
    act = partial(nn.LeakyReLU, 0.2)
    layers = [
        nn.Conv2d(3, 16, 4, 2, 1),
        act(),
        *conv(16, 32, 4, stride=2, act=act),
        *conv(32, 64, 4, stride=2, act=act),
    ]
    return dcgan_initial(nn.Sequential(*layers, nn.Conv2d(64, 1, 3)))


def dcgan_generator() -> nn.Module:
    def up(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    first = [nn.ConvTranspose2d(64, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    last = [nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()]
    return dcgan_initial(nn.Sequential(*first, *up(64, 32), *up(32, 16), *last))


def autoencoder() -> nn.Module:
    """A bottleneck with BatchNorm1d."""
    return nn.Sequential(
        conv(3, 16, stride=2), conv(16, 32, stride=2), nn.Flatten(), nn.Linear(32 * 64, 24), nn.BatchNorm1d(24),
        nn.Linear(24, 32 * 64), nn.BatchNorm1d(32 * 64), nn.ReLU(), nn.Unflatten(1, (32, 8, 8)),
        nn.ConvTranspose2d(32, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 3, 2, 2), nn.Sigmoid(),
    )  # fmt: skip


# -- points, videos, sequences, tables


def pointwise(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU())


class PointNet(nn.Module):
    """The same layers for every point, the largest value over them, then BatchNorm over a handful of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(pointwise(3, 32), pointwise(32, 64), pointwise(64, 128))
        self.cloud = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.cloud(self.points(x).amax(2))
        return result


def video() -> nn.Module:
    """3-D convolutions, split into space and time."""

    def split(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv3d(inputs, 24, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False), nn.BatchNorm3d(24), nn.ReLU(),
            nn.Conv3d(24, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False), nn.BatchNorm3d(outputs),
            nn.ReLU(),
        ]  # fmt: skip

    return nn.Sequential(*split(3, 16, 2), *split(16, 32, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 10))


class ConvNeXt(nn.Module):
    """No BatchNorm at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.depthwise = nn.Conv2d(24, 24, 7, padding=3, groups=24)
        self.mlp = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24))
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mlp(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        result: Tensor = self.head(x)
        return result


class LinearNorm(nn.Module):
    """A linear layer whose outputs are normalised over images and tokens; `start` is the initial weight."""

    def __init__(self, inputs: int, outputs: int, start: float = 1.0) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)
        nn.init.constant_(self.bn.weight, start)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key_value, self.project = LinearNorm(width, 3 * width), LinearNorm(width, width, start=0.0)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query_key_value(x).chunk(3, 2)
        attended: Tensor = self.project(F.hardswish(F.scaled_dot_product_attention(query, key, value)))
        return attended


class Levit(nn.Module):
    """Attention between linear layers with BatchNorm1d, the last of each branch starting at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2, act=nn.Hardswish), conv(16, 32, stride=2, act=None))
        expand = nn.Sequential(LinearNorm(32, 64), nn.Hardswish(), LinearNorm(64, 32, start=0.0))
        self.blocks = nn.Sequential(Residual(Attention(32)), Residual(expand), Residual(Attention(32)))
        self.head = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        result: Tensor = self.head(x.mean(1))
        return result


def temporal() -> nn.Module:
    def block(inputs: int, outputs: int, dilation: int) -> nn.Module:
        body = nn.Sequential(
            nn.Conv1d(inputs, outputs, 3, padding=dilation, dilation=dilation), nn.BatchNorm1d(outputs), nn.ReLU(),
            nn.Conv1d(outputs, outputs, 3, padding=dilation, dilation=dilation), nn.BatchNorm1d(outputs), nn.ReLU(),
        )  # fmt: skip
        return Residual(body, nn.Conv1d(inputs, outputs, 1), nn.ReLU())

    return nn.Sequential(block(8, 24, 1), block(24, 24, 2), block(24, 24, 4), nn.Conv1d(24, 8, 1))


def speaker() -> nn.Module:
    """BatchNorm behind the ReLU, as speech networks have it."""

    def frame(inputs: int, outputs: int, dilation: int) -> list[nn.Module]:
        return [nn.Conv1d(inputs, outputs, 3, dilation=dilation), nn.ReLU(), nn.BatchNorm1d(outputs)]

    pooled = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.BatchNorm1d(24)]
    return nn.Sequential(*frame(8, 32, 1), *frame(32, 32, 2), *frame(32, 32, 3), *pooled, nn.Linear(24, 5))


class Recurrent(nn.Module):
    """Convolutions over a line of text, then an LSTM with BatchNorm1d between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d((16, 1)))
        self.first = nn.LSTM(32, 24, batch_first=True, bidirectional=True)
        self.bn = nn.BatchNorm1d(48)
        self.second = nn.LSTM(48, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.first(self.features(x).squeeze(2).transpose(1, 2))
        normalised = self.bn(hidden.transpose(1, 2)).transpose(1, 2)
        result: Tensor = self.second(normalised)[0]
        return result


class Siamese(nn.Module):
    """Both views of a batch go through one encoder: two updates a step, and a projection without weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv(3, 16, stride=2), basic_block(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.projector = nn.Sequential(
            nn.Linear(32, 48, bias=False), nn.BatchNorm1d(48), nn.ReLU(),
            nn.Linear(48, 48, bias=False), nn.BatchNorm1d(48, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 48))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (self.predictor(self.projector(self.encoder(view))) for view in (x, x.flip(3)))
        return first, second


def perceptron() -> nn.Module:
    """A table of numbers of any scale: BatchNorm is the first layer."""
    return nn.Sequential(
        nn.BatchNorm1d(8), nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1),
    )  # fmt: skip


class CrystalGraph(nn.Module):
    """Gated messages between neighbours, as in networks for molecules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.message = nn.ModuleList([nn.Linear(16, 32) for _ in range(3)])
        self.bn1 = nn.ModuleList([nn.BatchNorm1d(32) for _ in range(3)])
        self.bn2 = nn.ModuleList([nn.BatchNorm1d(16) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for message, bn1, bn2 in zip(self.message, self.bn1, self.bn2, strict=True):
            gate, core = bn1(message(x + x.roll(1, 0))).chunk(2, 1)
            x = F.softplus(x + bn2(torch.sigmoid(gate) * F.softplus(core)))
        return x


IMAGES = (3, 32, 32)


@dataclass(frozen=True, slots=True)
class Family:
    """How to make a network, and the shape of one sample; `scale` is the standard deviation of its numbers."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGES
    scale: float = 1.0


FAMILIES = {
    "resnet": Family(resnet),
    "resnet-zero-init": Family(resnet_with_zero_init),
    "preactivation-resnet": Family(preactivation_resnet),
    "wide-resnet": Family(wide_resnet),
    "vgg": Family(vgg),
    "plain": Family(plain),
    "densenet": Family(densenet),
    "resnext": Family(resnext),
    "regnet": Family(regnet),
    "repvgg": Family(repvgg),
    "squeezenet": Family(squeezenet),
    "inception": Family(inception),
    "googlenet": Family(GoogLeNet),
    "xception": Family(xception),
    "mobilenet-v1": Family(mobilenet_v1),
    "mobilenet-v2": Family(mobilenet_v2),
    "mobilenet-v3": Family(mobilenet_v3),
    "efficientnet": Family(efficientnet),
    "mnasnet": Family(mnasnet),
    "shufflenet": Family(shufflenet),
    "ghostnet": Family(ghostnet),
    "darknet": Family(darknet),
    "feature-pyramid": Family(FeaturePyramid),
    "unet": Family(UNet),
    "deeplab": Family(deeplab),
    "hourglass": Family(hourglass),
    "dcgan-discriminator": Family(dcgan_discriminator),
    "dcgan-generator": Family(dcgan_generator, (64, 1, 1)),
    "autoencoder": Family(autoencoder),
    "pointnet": Family(PointNet, (3, 64)),
    "video": Family(video, (3, 4, 16, 16)),
    "convnext": Family(ConvNeXt),
    "levit": Family(Levit),
    "temporal": Family(temporal, (8, 40)),
    "speaker": Family(speaker, (8, 40)),
    "recurrent": Family(Recurrent, (3, 32, 48)),
    "siamese": Family(Siamese),
    "perceptron": Family(perceptron, (8,), 30.0),
    "crystal-graph": Family(CrystalGraph, (8,)),
}
WITHOUT_BATCHNORM = {"convnext"}
SAMPLES = 8


def fresh(name: str, seed: int = 0) -> nn.Module:
    """The network as it is built, in eval mode."""
    torch.manual_seed(seed)
    return FAMILIES[name].build().eval()


def estimated(name: str, batches: int = 4, seed: int = 0) -> nn.Module:
    """A random network with the statistics that update_bn estimates: cumulative means, momentum restored, eval mode."""
    network = fresh(name, seed)
    update_bn(list(inputs(name, batches)), network)
    return network


def inputs(name: str, batches: int) -> Iterator[Tensor]:
    """Smooth random fields rather than white noise, so that neighbours are alike, as in images."""
    family = FAMILIES[name]
    for _ in range(batches):
        noise = torch.randn(SAMPLES, *family.shape) + torch.randn(SAMPLES, *(1,) * len(family.shape))
        yield family.scale * noise


def batchnorms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
