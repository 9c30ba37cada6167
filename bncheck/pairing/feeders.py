"""What feeds a BatchNorm layer: the convolution or linear layer whose outputs it normalises, by order and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.pairing.equality import equal_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.pairing.names import Naming
    from bncheck.subjects.checkpoint import Group


class Feeders:
    """The convolutions and linear layers in front of the BatchNorm layers of two groups.

    In the order of registration it is the last weight before the layer that has as many outputs, beside the layer if
    there is one. safetensors sorts by dtype and name: then the order of the other file is used, and where both are
    sorted, all such weights beside the layer.
    """

    def __init__(self, first: Group, second: Group, naming: Naming) -> None:
        self.first, self.second, self.naming = first, second, naming
        self.order = list(first.tensors)
        self.ordered = is_ordered(self.order)
        if not self.ordered and is_ordered(list(second.tensors)):
            position = {name: place for place, name in enumerate(second.tensors)}
            self.order.sort(key=lambda name: position.get(naming.name(name) or "", len(position)))
            self.ordered = True
        self.position = {name: place for place, name in enumerate(self.order)}
        self.weights = [
            (place, name, first.tensors[name].shape)
            for place, name in enumerate(self.order)
            if name.rpartition(".")[2].startswith("weight") and len(first.tensors[name].shape) > 1
        ]

    def compare(self, layer: str) -> tuple[tuple[str, ...], bool | None]:
        """The tensors that feed a layer, and whether they are equal in both files; None where that cannot be told."""
        names = self.before(layer)
        answers = [self.equal(name) for name in names]
        if not answers or None in answers or len(set(answers)) > 1:
            return names, None
        return names, answers[0]

    def before(self, layer: str) -> tuple[str, ...]:
        held = self.first.tensors.get(f"{layer}.running_mean") or self.first.tensors.get(f"{layer}.running_var")
        if held is None:
            return ()
        here = self.position.get(f"{layer}.running_mean", self.position.get(f"{layer}.running_var", 0))
        fitting = [(place, name) for place, name, shape in self.weights if held.size in outputs(shape)]
        scope = layer.rpartition(".")[0]
        beside = [(place, name) for place, name in fitting if scope in scopes(name)]
        if not self.ordered:
            return tuple(name for _, name in beside)
        for candidates in (beside, fitting):
            earlier = [name for place, name in candidates if place < here]
            if earlier:
                return (earlier[-1],)
        return ()

    def equal(self, name: str) -> bool | None:
        other_name = self.naming.name(name)
        other = self.second.tensors.get(other_name) if other_name is not None else None
        return None if other is None else equal_tensors(self.first.tensors[name], other)


def is_ordered(names: Sequence[str]) -> bool:
    """Whether tensors stand in the order of registration, in which torch's modules have a weight before its bias."""
    position = {name: place for place, name in enumerate(names)}
    both = [
        position[name] < position[bias]
        for name in names
        if name.endswith("weight") and (bias := f"{name.removesuffix('weight')}bias") in position
    ]
    return both.count(True) > both.count(False) if both else list(names) != sorted(names)


def outputs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The number of outputs; a transposed convolution has it in the second dimension."""
    return (shape[0],) if len(shape) == 2 else shape[:2]


def scopes(weight: str) -> tuple[str, str]:
    """The modules in which a BatchNorm would stand beside a weight: that of the weight, and the one that holds it."""
    module = weight.rpartition(".")[0]
    return module, module.rpartition(".")[0]
