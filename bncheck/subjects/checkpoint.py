"""A file as it was read: its tensors, groups and layers, and what loading it would import."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bncheck.subjects.layer import Array, BatchNormLayer


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint whose values are read only when asked for.

    `read` returns a C-contiguous array of `shape`; 16- and 8-bit floats as float32, which holds them exactly.
    It is None where the file holds no numbers: lazy, on the meta device, quantised or sparse.
    """

    dtype: str  # PyTorch's name, "float32"
    shape: tuple[int, ...]
    read: Callable[[], Array] | None
    # Elements from the first number to the second, in the order of C, flat; None where only all can be read at once.
    part: Callable[[int, int], Array] | None = None

    @property
    def size(self) -> int:
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True, slots=True)
class Connection:
    """Two BatchNorm layers with one 1x1 convolution (or linear layer) between them, proven by a graph.

    The mean of the input of `after` is `weight @ E[activation(output of before)] + bias`, for any data.
    """

    before: str  # name of a layer of the group
    activation: str  # what stands between `before` and the convolution: "", "relu" or "relu6"
    weight: Array  # (channels of after, channels of before)
    bias: Array | None
    after: str


@dataclass(frozen=True, slots=True)
class Group:
    """One state dict or module of a file; `name` is its path in the file, "" for the whole file."""

    name: str
    contents: str  # "state_dict" or "module"
    tensors: Mapping[str, Tensor]  # by wrapper-free name
    layers: tuple[BatchNormLayer, ...]
    expected: Mapping[str, Tensor] | None = None  # what the architecture that the user named holds
    # Which layer feeds which, and through what; reads more of the file. None where the file has no graph.
    connections: Callable[[], tuple[Connection, ...]] | None = None


class Use(Enum):
    """What loading the file would do with a global that it refers to."""

    REFERENCED = "referenced"  # imported, not called
    INSTANTIATED = "instantiated"  # an object of the class is made without calling __init__, then given its state
    CALLED = "called"


@dataclass(frozen=True, slots=True, order=True)
class GlobalReference:
    """A function or class that unpickling the file would import."""

    module: str
    name: str
    use: str  # a value of Use; a plain string so that references sort

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that was read without running it."""

    source: str
    format: str
    groups: tuple[Group, ...]
    globals: tuple[GlobalReference, ...] = ()
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def optimizer_steps(self) -> int | None:
        """How many steps the optimizer in the file made; None where it does not say."""
        steps = self.facts.get("optimizer_steps")
        return steps if isinstance(steps, int) else None

    @property
    def layers(self) -> tuple[BatchNormLayer, ...]:
        return tuple(layer for group in self.groups for layer in group.layers)
