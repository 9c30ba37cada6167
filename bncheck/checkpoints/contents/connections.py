"""Which BatchNorm layer feeds which through nothing but an activation and a 1x1 convolution, as a graph proves it.

A reader of graphs follows each value from the BatchNorm that made it: the operators that are known here carry the
trail on, all others end it. Where two layers are joined in this way, the mean of the second one's input follows from
the first one's weight and bias, whatever the data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.limits import HINT, largest_tensor
from bncheck.errors import UnreadableError
from bncheck.subjects.checkpoint import Connection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.subjects.checkpoint import Tensor
    from bncheck.subjects.layer import Array

# Weights that are read in all: 256 MiB of float32. The 1x1 convolutions of a ResNet-152 have 40 million.
MAX_WEIGHTS = 2**26
FLOATING = ("float32", "float64", "float16", "bfloat16")

RELU, RELU6 = "relu", "relu6"
# By the names that operators have in PyTorch, without the underscore of those that change their argument.
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution", "_convolution"}
ACTIVATIONS = {"relu", "relu6", "hardtanh"}
BATCH_NORMS = {"batch_norm", "native_batch_norm", "_batch_norm_impl_index", "_native_batch_norm_legit_no_training"}
# These neither change an argument nor return a view of one, so that what they are given stays what it was.
HARMLESS = {
    *CONVOLUTIONS, *ACTIVATIONS, *BATCH_NORMS, "linear", "addmm", "matmul", "mm", "bmm",
    "add", "sub", "mul", "div", "cat", "concat", "stack", "mean", "sum", "amax",
    "sigmoid", "tanh", "silu", "gelu", "elu", "leaky_relu", "prelu", "hardswish", "hardsigmoid", "mish", "softplus",
    "softmax", "log_softmax", "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "size", "sym_size",
    "dim", "len", "eq", "ne", "__is__", "__isnot__", "__not__",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trail:
    """What a value is: the output of a BatchNorm, after an activation, after a 1x1 convolution."""

    before: str  # name of the layer
    activation: str = ""
    weight: Tensor | None = None
    bias: Tensor | None = None

    def activated(self, activation: str | None) -> Trail | None:
        """Through an activation; None where it is not one that is known, or not the only one."""
        if not activation or self.activation or self.weight:
            return None
        return replace(self, activation=activation)

    def mixed(self, weight: Tensor | None, bias: Tensor | None) -> Trail | None:
        """Through a convolution or linear layer; None where it is not the first."""
        if weight is None or self.weight:
            return None
        return replace(self, weight=weight, bias=bias)


class Joined:
    """The pairs of layers that were found, and how often each layer is called."""

    def __init__(self, source_name: str) -> None:
        self.source_name = source_name
        self.pairs: list[tuple[Trail, str]] = []
        self.calls: Counter[str] = Counter()

    def normalised(self, trail: Trail | None, layer: str | None) -> Trail | None:
        """Takes note of a call of a layer on what a trail leads to; the trail of its output."""
        if layer is None:
            return None
        self.calls[layer] += 1
        if trail and trail.weight:
            self.pairs.append((trail, layer))
        return Trail(layer)

    def connections(self) -> tuple[Connection, ...]:
        """The pairs with the numbers of what stands between them.

        Left out is a layer that is called more than once, since its statistics mix what it is given, and weights
        with more elements than are read of any tensor.

        Raises:
            UnreadableError: a weight is damaged, or all of them together are more than any model has.
        """
        left = MAX_WEIGHTS
        made = []
        for trail, after in self.pairs:
            if self.calls[after] != 1 or trail.weight is None or trail.weight.size > largest_tensor():
                continue
            left -= trail.weight.size
            if left < 0:
                raise UnreadableError(
                    f"{self.source_name} has more than {MAX_WEIGHTS:,} numbers between its BatchNorm layers", HINT
                )
            weight = numbers(trail.weight)
            bias = numbers(trail.bias) if trail.bias else None
            if weight is None or (trail.bias and bias is None):
                continue
            bias = None if bias is None else bias.reshape(-1)
            made.append(Connection(trail.before, trail.activation, weight.reshape(len(weight), -1), bias, after))
        return tuple(made)


def numbers(tensor: Tensor) -> Array | None:
    """The numbers of a weight; None where the file holds none that can be calculated with."""
    if tensor.read is None or tensor.dtype not in FLOATING or not tensor.size or not tensor.shape:
        return None
    return tensor.read()


def activation_of(operator: str, arguments: Mapping[str, object]) -> str | None:
    """The activation that an operator of PyTorch is; None where it is none that is known."""
    if operator == "hardtanh":
        return RELU6 if (arguments.get("min_val"), arguments.get("max_val")) == (0, 6) else None
    return {"relu": RELU, "relu6": RELU6}.get(operator)


def is_pointwise(weight: Tensor | None, arguments: Mapping[str, object]) -> bool:
    """Whether a convolution of PyTorch mixes the channels of each place by itself, and sees every place once.

    Padding would add places without data, and a stride would leave places out, whose mean may be another.
    """
    return (
        weight is not None
        and len(weight.shape) > 2
        and all(extent == 1 for extent in weight.shape[2:])
        and all_are(arguments.get("stride"), 1)
        and all_are(arguments.get("padding"), 0)
        and arguments.get("groups", 1) == 1
        and not arguments.get("transposed", False)
    )


def all_are(given: object, expected: int) -> bool:
    """Whether an argument is the expected number for each dimension; what is left out is the default, which is that."""
    return given is None or (isinstance(given, (list, tuple)) and all(number == expected for number in given))


def is_linear(weight: Tensor | None, *, two_dimensional: bool) -> bool:
    """Whether a linear layer mixes the channels that a BatchNorm before it normalised.

    It mixes the last dimension, a BatchNorm normalises the second. Where it is not known that these are one, a
    square weight could be either; with any other, the next BatchNorm has as many channels as outputs only if they are.
    """
    return weight is not None and len(weight.shape) == 2 and (two_dimensional or weight.shape[0] != weight.shape[1])
