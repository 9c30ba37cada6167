"""What exact statistics cost: an eval forward that measures every BatchNorm input, beside a train-mode forward.

The budget: no more than the train-mode forward over the same data (what fvcore's update_bn_stats costs), with five per
cent of tolerance. Ratios to the bare eval forward, medians over interleaved rounds. Run by `make bench`; nothing here
is asserted: machines differ. `python tools/benchmarks/statistics_pass.py --threads 1 --batch-size 4 --channels-last`
measures other cases; fvcore's column is left out where fvcore is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bncheck.evaluation.observing.moments import watching
from bncheck.evaluation.restoring import restored
from bncheck.evaluation.statistics import batchnorm_layers

SIZE = 224


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); without the relu for MobileNetV2."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, *, relu: bool) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut
        self.last = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.last(self.branch(images) + self.shortcut(images))
        return result


def unit(
    inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1, last: type | None = nn.ReLU
) -> list:
    """Convolution, BatchNorm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return layers + ([last(inplace=True)] if last else [])


def resnet(depths: list[int], *, bottleneck: bool) -> nn.Module:
    """ResNet-18 is [2, 2, 2, 2] of basic blocks, ResNet-50 [3, 4, 6, 3] of bottlenecks."""
    layers: list[nn.Module] = [*unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            stride = 2 if stage and not block else 1
            if bottleneck:
                branch = [*unit(inputs, width), *unit(width, width, 3, stride), *unit(width, outputs, last=None)]
            else:
                branch = [*unit(inputs, width, 3, stride), *unit(width, outputs, 3, last=None)]
            changes = stride > 1 or inputs != outputs
            shortcut = nn.Sequential(*unit(inputs, outputs, 1, stride, last=None)) if changes else nn.Identity()
            layers.append(Residual(nn.Sequential(*branch), shortcut, relu=True))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def mobilenet_v2() -> nn.Module:
    """As published: expansion, width, repetitions and stride of each stage."""
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers: list[nn.Module] = unit(3, 32, 3, 2, last=nn.ReLU6)
    inputs = 32
    for expansion, outputs, repetitions, first_stride in stages:
        for repetition in range(repetitions):
            stride = 1 if repetition else first_stride
            width = inputs * expansion
            branch = unit(inputs, width, last=nn.ReLU6) if expansion > 1 else []
            branch += [*unit(width, width, 3, stride, width, nn.ReLU6), *unit(width, outputs, last=None)]
            block = nn.Sequential(*branch)
            same = stride == 1 and inputs == outputs
            layers.append(Residual(block, nn.Identity(), relu=False) if same else block)
            inputs = outputs
    layers += unit(inputs, 1280, last=nn.ReLU6)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: resnet([2, 2, 2, 2], bottleneck=False),
    "ResNet-50": lambda: resnet([3, 4, 6, 3], bottleneck=True),
    "MobileNetV2": mobilenet_v2,
}


def ways_to_run(network: nn.Module, images: Tensor) -> dict[str, Callable[[], object]]:
    """One pass over the images, in each of the ways that are compared."""
    layers = batchnorm_layers(network)

    def bare() -> object:
        network.eval()
        with torch.inference_mode():
            return network(images)

    def train_mode() -> object:
        network.train()
        with torch.inference_mode():
            return network(images)

    def measured() -> object:
        network.eval()
        with torch.inference_mode(), watching(layers) as moments:
            network(images)
        return {name: (found.mean, found.variance) for name, found in moments.items()}

    def fvcore() -> object:
        from fvcore.nn.precise_bn import update_bn_stats

        network.train()
        return update_bn_stats(network, [images], 1)

    ways = {"eval forward": bare, "train-mode forward": train_mode, "bncheck": measured}
    return ways | ({"fvcore": fvcore} if importlib.util.find_spec("fvcore") else {})


def seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    images = torch.randn(options.batch_size, 3, SIZE, SIZE).contiguous(memory_format=layout)
    print(f"batches of {options.batch_size} images of {SIZE}x{SIZE}, {options.threads} threads, {layout}")
    for name in options.network or NETWORKS:
        network = NETWORKS[name]().to(memory_format=layout)  # type: ignore[call-overload]
        with restored(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways = ways_to_run(network, images)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for index in range(options.rounds + 1):
                for way, run in ways.items():
                    taken = seconds(run)
                    if index:  # the first round fills the caches
                        times[way].append(taken)
        print(f"\n{name:22}{'ms':>8}{'of eval':>10}{'of train':>10}{'least':>9}{'of eval':>10}{'of train':>10}")
        for way, measured in times.items():
            medians = [ratio(measured, times[other]) for other in ("eval forward", "train-mode forward")]
            least = [min(measured) / min(times[other]) for other in ("eval forward", "train-mode forward")]
            print(
                f"{way:22}{1000 * statistics.median(measured):8.1f}{medians[0]:10.3f}{medians[1]:10.3f}"
                f"{1000 * min(measured):9.1f}{least[0]:10.3f}{least[1]:10.3f}"
            )


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
