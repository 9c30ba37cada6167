"""What became of the statistics of a model's BatchNorm layers between two moments, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from bncheck.checkpoints.contents.state_dicts import COUNTER, STATISTICS
from bncheck.evaluation.statistics import Statistics, batchnorm_layers, is_batchnorm, snapshot, statistics_of
from bncheck.evaluation.tensors import same_bits, untouched
from bncheck.subjects.layer import DEFAULT_EPS
from bncheck.subjects.shift import distances
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from bncheck.subjects.layer import Array

MODES = {True: "train mode", False: "eval mode"}
PARTS = (*STATISTICS, COUNTER)


@dataclass(frozen=True, slots=True)
class Picture:
    """The statistics of every layer at one moment, copied on their device, and the modes.

    `waiting` names the lazy layers, which have no statistics before their first forward.
    """

    statistics: dict[str, Statistics]
    training: dict[str, bool]
    waiting: frozenset[str]
    unregistered: frozenset[str]


@dataclass(frozen=True, slots=True)
class Change:
    """A layer whose statistics are not what they were; `training` before and after, None where there was no layer."""

    name: str
    what: str
    training: tuple[bool | None, bool | None]
    registered: bool

    def __str__(self) -> str:
        before, after = self.training
        modes = [f"{MODES[before]} before"] if before is not None else []
        modes += [f"{MODES[after]} after"] if after is not None else []
        shown = MODES[after] if before is after and after is not None else ", ".join(modes)
        return f"{self.name or '(the module itself)'} ({shown}): {self.what}"


def picture(model: nn.Module) -> Picture:
    """Costs one copy of the statistics, on their device."""
    layers = batchnorm_layers(model)
    beside = unregistered(model)
    every = layers | {name: layer for name, layer in beside.items() if name not in layers}
    waiting = frozenset(name for name, layer in every.items() if is_waiting(layer))
    with untouched():
        statistics = snapshot({name: layer for name, layer in every.items() if name not in waiting})
    training = {name: bool(getattr(layer, "training", False)) for name, layer in every.items()}
    return Picture(statistics, training, waiting, frozenset(every.keys() - layers.keys()))


def changes(model: nn.Module, before: Picture) -> list[Change]:
    """The layers whose statistics differ from the picture by value: NaN that stays NaN is no difference."""
    layers = batchnorm_layers(model) | unregistered(model)
    changed = []
    with untouched():
        for name in before.training | dict.fromkeys(layers, False):
            layer = layers.get(name)
            what = "; ".join(differences(name, layer, before))
            if what:
                after = None if layer is None else bool(getattr(layer, "training", False))
                registered = name not in before.unregistered
                changed.append(Change(name, what, (before.training.get(name), after), registered))
    return changed


def differences(name: str, layer: nn.Module | None, before: Picture) -> Iterator[str]:
    if layer is None:
        yield "the layer was removed"
    elif name not in before.training:
        yield "the layer was added"
    elif name in before.waiting:
        updates = None if is_waiting(layer) else as_int(statistics_of(layer).counter)
        if updates:
            yield f"its statistics were made, in {count(updates, 'update')}"
    else:
        yield from moved(before.statistics[name], statistics_of(layer), eps_of(layer))


def moved(before: Statistics, now: Statistics, eps: float) -> Iterator[str]:
    pairs = list(zip(PARTS, tensors(before), tensors(now), strict=True))
    for part, one, other in pairs:
        if one is None and other is not None:
            yield f"{part} was added"
        elif one is not None and other is None:
            yield f"{part} was removed"
        elif one is not None and other is not None and one.shape != other.shape:
            yield f"{part} has another shape"
    there = [
        (part, one, other)
        for part, one, other in pairs
        if one is not None and other is not None and one.shape == other.shape
    ]
    changed = [part for part, one, other in there if not same(one, other)]
    values = [part for part in changed if part != COUNTER]
    if values:
        updates = counted_between(before, now) if COUNTER in changed else 0
        counted = f" in {count(updates, 'update')}" if updates > 0 else ""
        yield f"{' and '.join(values)} moved{counted}{distance(before, now, eps)}"
    elif changed:
        yield f"{COUNTER} alone went from {as_int(before.counter)} to {as_int(now.counter)}"


def counted_between(before: Statistics, now: Statistics) -> int:
    """By how much the counter grew; 0 where one of the two holds no number."""
    start, end = as_int(before.counter), as_int(now.counter)
    return 0 if start is None or end is None else end - start


def distance(before: Statistics, now: Statistics, eps: float) -> str:
    """How far the statistics went, in standard deviations of the layer as it was."""
    if any(tensor is None or tensor.is_meta for tensor in (before.mean, before.var, now.mean, now.var)):
        return ""
    assert before.mean is not None
    assert before.var is not None
    assert now.mean is not None
    assert now.var is not None
    mean, var, new_mean, new_var = map(numbers, (before.mean, before.var, now.mean, now.var))
    if not mean.shape == var.shape == new_mean.shape == new_var.shape:
        return ""
    shift, ratio = map(largest, distances(mean, var, new_mean, new_var, eps))
    broken = int((np.isfinite(mean) & np.isfinite(var) & ~(np.isfinite(new_mean) & np.isfinite(new_var))).sum())
    text = ""
    if shift and shift >= ratio:
        text = f", the mean by up to {number(shift)} standard deviations"
    elif ratio:
        text = f", the standard deviation by up to a factor of {number(float(np.exp(ratio)))}"
    return text + (f", and {count(broken, 'channel')} became NaN or infinite" if broken else "")


def largest(values: Array) -> float:
    """Of the finite ones."""
    return float(values[np.isfinite(values)].max(initial=0.0))


def tensors(statistics: Statistics) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (statistics.mean, statistics.var, statistics.counter)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether the numbers are equal, on whatever device and in whatever dtype they now are."""
    if one.is_meta or other.is_meta:  # nothing is known of what has no numbers
        return one.is_meta and other.is_meta
    if (one.dtype, one.device) == (other.dtype, other.device) and same_bits(one, other):
        return True
    return bool(np.array_equal(numbers(one), numbers(other), equal_nan=True))


def numbers(tensor: Tensor) -> Array:
    # First to the CPU: not every device has float64.
    values: Array = tensor.detach().cpu().double().numpy()
    return values


def as_int(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.is_meta or tensor.numel() != 1 else int(tensor.item())


def eps_of(layer: nn.Module) -> float:
    eps = getattr(layer, "eps", DEFAULT_EPS)
    return float(eps) if isinstance(eps, (int, float)) else DEFAULT_EPS


def is_waiting(layer: nn.Module) -> bool:
    """Whether a lazy layer has not run yet."""
    return any(nn.parameter.is_lazy(tensor) for _, tensor in layer.named_buffers(recurse=False))


def unregistered(model: nn.Module) -> dict[str, nn.Module]:
    """BatchNorm layers that the model holds in plain lists, tuples and dictionaries: `blocks[0].bn`.

    eval() does not reach them, so theirs are the first statistics to move.
    """
    named = dict(model.named_modules())
    seen = {id(module) for module in named.values()}
    layers: dict[str, nn.Module] = {}
    waiting = list(named.items())
    while waiting:
        path, module = waiting.pop(0)
        for name, child in plainly_held(module):
            start = f"{path}.{name}" if path else name
            for below, part in child.named_modules(prefix=start):
                if id(part) in seen:
                    continue
                seen.add(id(part))
                waiting.append((below, part))
                if is_batchnorm(part):
                    layers[below] = part
    return layers


def plainly_held(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, attribute in vars(module).items():
        items: Any = ()
        if isinstance(attribute, (list, tuple)):
            items = enumerate(attribute)
        elif isinstance(attribute, dict) and name != "_modules":
            items = attribute.items()
        for key, value in items:
            if isinstance(value, nn.Module):
                yield f"{name}[{key!r}]", value
