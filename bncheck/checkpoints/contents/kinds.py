"""Which kind of BatchNorm a state_dict holds, told by the weights around it.

BatchNorm1d, 2d and 3d have the same keys in a state_dict. What tells them apart is the layer that feeds them:
a weight with as many output channels, with four dimensions for a Conv2d, three for a Conv1d, two for a Linear.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

UNTOLD = "BatchNorm"
KIND_BY_DIMENSIONS = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}


class KindInference:
    """Infers the kinds of the BatchNorm layers of one state_dict.

    Args:
        shapes: by key, in the order of the file.
        ordered: whether that order is the order of registration (torch keeps it, safetensors sorts by name).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, ordered: bool) -> None:
        self.ordered = ordered
        self.position = {key: index for index, key in enumerate(shapes)}
        self.weights: defaultdict[Key, Weights] = defaultdict(Weights)
        for index, (key, shape) in enumerate(shapes.items()):
            module, _, part = key.rpartition(".")
            if len(shape) not in KIND_BY_DIMENSIONS or not part.startswith("weight"):
                continue
            feeds, is_fed = {shape[0]}, {shape[1]}
            if len(shape) > 2:
                # A transposed convolution has its outputs in the second dimension, where a convolution has
                # its inputs; which of the two it is does not matter here.
                feeds = is_fed = feeds | is_fed
            # A quantisation-aware ConvBn2d holds its BatchNorm below its own weight; others stand beside it.
            for scope in (None, module, module.rpartition(".")[0]):
                for channels in feeds:
                    self.weights[scope, channels, "feeds"].add(index, len(shape))
                for channels in is_fed:
                    self.weights[scope, channels, "is fed"].add(index, len(shape))

    def kind(self, prefix: str, channels: int) -> str:
        """The kind of the layer at `prefix`, "BatchNorm" where the weights around it do not tell."""
        here = self.position.get(f"{prefix}.running_mean", self.position.get(f"{prefix}.running_var", 0))
        parent = prefix.rpartition(".")[0]
        sibling = self.told(parent, channels, "feeds", here)
        if sibling:
            return sibling
        # No sibling feeds it: what feeds it from afar and what it feeds must agree.
        feeding = self.told(None, channels, "feeds", here)
        fed = self.told(parent, channels, "is fed", here) or self.told(None, channels, "is fed", here)
        if feeding and fed and feeding != fed:
            return UNTOLD
        return feeding or fed or UNTOLD

    def told(self, scope: str | None, channels: int, side: str, here: int) -> str | None:
        weights = self.weights.get((scope, channels, side))
        if weights is None:
            return None
        if self.ordered:
            dimensions = weights.last_before(here) if side == "feeds" else weights.first_after(here)
        else:
            dimensions = weights.common
        return KIND_BY_DIMENSIONS[dimensions] if dimensions else None


# the module that holds the weights (None: anywhere), their channels, and on which side these are
Key = tuple["str | None", int, str]


class Weights:
    """Weights in the order of the file: where each stands, and its number of dimensions."""

    __slots__ = ("dimensions", "kinds", "places")

    def __init__(self) -> None:
        self.places: list[int] = []
        self.dimensions: list[int] = []
        self.kinds: set[str] = set()

    def add(self, place: int, dimensions: int) -> None:
        self.places.append(place)
        self.dimensions.append(dimensions)
        self.kinds.add(KIND_BY_DIMENSIONS[dimensions])

    def last_before(self, place: int) -> int | None:
        index = bisect_left(self.places, place)
        return self.dimensions[index - 1] if index else None

    def first_after(self, place: int) -> int | None:
        index = bisect_left(self.places, place)
        return self.dimensions[index] if index < len(self.places) else None

    @property
    def common(self) -> int | None:
        return self.dimensions[0] if len(self.kinds) == 1 else None
