"""How much of one checkpoint is looked at, before it is refused as larger than any real one.

A few bytes can describe millions of layers that share one tensor, or names that grow with their depth. What such files
have in common is counted here, for the checkpoint that is being read.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from bncheck.errors import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A deep ResNet has a thousand BatchNorm layers with four tensors of at most some thousand numbers.
MAX_LAYERS = 10_000
MAX_NUMBERS = 8 * 2**20
# Containers and entries that are walked, some of them more than once.
MAX_STEPS = 1_000_000
# "backbone.layer4.2.bn3" and its like.
LONGEST_PATH = 4_096

# Elements of one tensor that is read: more than any per-channel tensor has.
LARGEST_TENSOR = 2**20

HINT = "No model is saved like this: check what the file holds."


class Limits:
    """What may still be read of the checkpoint `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.layers = MAX_LAYERS
        self.numbers = MAX_NUMBERS
        self.steps = MAX_STEPS

    def spend(self, *, layers: int = 0, numbers: int = 0, steps: int = 0) -> None:
        """Takes note of what is read; UnreadableError where it is too much."""
        self.layers -= layers
        self.numbers -= numbers
        self.steps -= steps
        if self.layers < 0:
            raise UnreadableError(f"{self.name} has more than {MAX_LAYERS:,} BatchNorm layers", HINT)
        if self.numbers < 0:
            raise UnreadableError(f"{self.name} has more than {MAX_NUMBERS:,} numbers in its BatchNorm layers", HINT)
        if self.steps < 0:
            raise UnreadableError(f"{self.name} has more than {MAX_STEPS:,} parts", HINT)

    def check_path(self, path: str) -> None:
        """Refuses names that no module has, before they multiply."""
        if len(path) > LONGEST_PATH:
            raise UnreadableError(f"{self.name} has names of more than {LONGEST_PATH:,} characters", HINT)


CURRENT: ContextVar[Limits | None] = ContextVar("limits", default=None)


def limits() -> Limits:
    """Those of the checkpoint that is being read; fresh ones outside of it."""
    return CURRENT.get() or Limits("the module")


@contextmanager
def limits_for(name: str) -> Iterator[None]:
    """Counts anew, for the checkpoint of this name."""
    token = CURRENT.set(Limits(name))
    try:
        yield
    finally:
        CURRENT.reset(token)


LARGEST: ContextVar[int] = ContextVar("largest tensor", default=LARGEST_TENSOR)


def largest_tensor() -> int:
    """How many elements a tensor may have to be read: a few bytes of a file can describe any shape."""
    return LARGEST.get()


@contextmanager
def tensors_up_to(elements: int) -> Iterator[None]:
    """Lets tensors of that size be read: a convolution of the model that is loaded, say."""
    token = LARGEST.set(max(LARGEST.get(), elements))
    try:
        yield
    finally:
        LARGEST.reset(token)
