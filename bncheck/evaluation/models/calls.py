"""Calls a model on a batch and reads what it returns, whatever their form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.models.foreign import foreign_code

if TYPE_CHECKING:
    from collections.abc import Iterator

# What classifiers of transformers and torchvision call the output that predictions are made from.
LOGITS = "logits"
MIN_CLASSES = 2
# Deeper outputs than any model has; a value may hold itself.
MAX_DEPTH = 20

Inputs = torch.Tensor | tuple[Any, ...] | Mapping[str, Any]


def call(module: torch.nn.Module, inputs: Inputs) -> Any:
    """What the model returns for a batch: a tensor is its argument, a tuple its arguments, a dict those by name.

    Raises:
        ModelError: the model raises.
    """
    failure = f"the model fails on a batch of {shapes_of(inputs)}"
    hint = "Check that the data are what its forward takes; if memory ran out, lower --batch-size."
    with foreign_code(failure, hint):
        if isinstance(inputs, Mapping):
            return module(**inputs)
        return module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs)


def placed(inputs: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The inputs on the device of the model, floating ones in its dtype."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device, dtype if inputs.is_floating_point() else None)
    if isinstance(inputs, Mapping):
        return {name: placed(value, device, dtype) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(placed(value, device, dtype) for value in inputs)
    return inputs


def outputs_of(value: Any) -> tuple[torch.Tensor, ...]:
    """The floating tensors of an output, in the order of its tuples, lists and fields; dicts in that of their names."""
    return tuple(tensor for _, tensor in named_outputs(value, "", 0))


def predictions_of(value: Any) -> torch.Tensor | None:
    """The class of each sample, shape `(samples,)`; None where the model does not classify."""
    scores = scores_of(value)
    return None if scores is None else scores.argmax(dim=1)


def scores_of(value: Any) -> torch.Tensor | None:
    """What predictions are made from, shape `(samples, classes)`; None where no output has this shape.

    The output called "logits" if there is one, else the first of that shape.
    """
    scores = [
        (name, tensor)
        for name, tensor in named_outputs(value, "", 0)
        if tensor.dim() == 2 and tensor.shape[1] >= MIN_CLASSES
    ]
    scores.sort(key=lambda named: named[0] != LOGITS)  # keeps the order of the others
    return scores[0][1] if scores else None


def named_outputs(value: Any, name: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating tensors of an output, each with the last of the names that lead to it."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield name, value
    elif depth < MAX_DEPTH:
        for inner, part in parts_of(value):
            yield from named_outputs(part, inner, depth + 1)


def parts_of(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):  # first: the outputs of transformers are dataclasses and dicts
        return sorted(((str(name), part) for name, part in value.items()), key=lambda named: named[0])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [("", part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return []


def shapes_of(inputs: Any) -> str:
    """`(8, 3, 224, 224)`, several joined by `and`."""
    if isinstance(inputs, torch.Tensor):
        return str(tuple(inputs.shape))
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else ()
    return " and ".join(shapes_of(value) for value in values) or type(inputs).__name__
