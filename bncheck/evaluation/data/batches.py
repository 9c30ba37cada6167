"""What a source of data is: batches to iterate over, facts to report."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

# Keys that hold labels, not inputs: Hugging Face's `labels`, scikit-learn's `y`, and their usual variants.
LABEL_KEYS = ("labels", "label", "targets", "target", "y")

Inputs = torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model gets in one call.

    Attributes:
        inputs: `model(inputs)`, `model(*inputs)` for a tuple, `model(**inputs)` for a dict.
        labels: one for each sample along the first dimension, or None.
        size: samples in it, the first dimension of the first input.
        given: what a callable yielded, untouched, for an evaluation of the user's that expects it; None otherwise.
    """

    inputs: Inputs
    labels: torch.Tensor | None
    size: int
    given: Any = None

    @property
    def item(self) -> Any:
        """What the user's own evaluation gets: what their callable yielded, else (inputs, labels), else inputs."""
        if self.given is not None:
            return self.given
        return self.inputs if self.labels is None else (self.inputs, self.labels)


@dataclass(slots=True)
class Data:
    """Samples in a fixed order, batch by batch; each `iter()` starts at the first one again.

    Attributes:
        start: a new pass.
        description: what was read and how, in plain values that JSON can hold.
        samples: how many there are, None while that is not known; exact after one whole pass.
        classes: what the labels mean: `classes[label]` is the name of a sub-folder.
        skipped: what could not be read and was left out, in the order it was met.
        non_finite: samples seen with NaN or an infinity in their inputs, in the worst pass so far.
    """

    start: Callable[[], Generator[Batch, None, None]]
    description: dict[str, Any]
    samples: int | None = None
    classes: tuple[str, ...] | None = None
    skipped: list[str] = field(default_factory=list)
    non_finite: int = 0

    def __iter__(self) -> Iterator[Batch]:
        read = non_finite = 0
        # Closed at once when the consumer stops early: no thread outlives its pass.
        with contextlib.closing(self.start()) as batches:
            for batch in batches:
                read += batch.size
                non_finite += non_finite_samples(batch)
                self.non_finite = max(self.non_finite, non_finite)
                yield batch
        self.samples = read


def named_tensors(inputs: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the inputs with its key or place, in a fixed order; those of tuples and dicts in it, too."""
    if isinstance(inputs, torch.Tensor):
        yield "", inputs
    parts: Iterable[tuple[Any, object]] = ()
    if isinstance(inputs, Mapping):
        parts = sorted(inputs.items(), key=lambda item: str(item[0]))
    elif isinstance(inputs, (tuple, list)):
        parts = enumerate(inputs)
    for place, part in parts:
        for name, tensor in named_tensors(part):
            yield f"{place}.{name}" if name else str(place), tensor


def input_hash(inputs: object) -> str:
    """Equal for inputs that are equal bit for bit, with dtypes and shapes: those of a batch, or what a model got.

    Labels do not count, nor does what is no tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in named_tensors(inputs.inputs if isinstance(inputs, Batch) else inputs):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # Flat and as bytes: numpy has no bfloat16.
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def non_finite_samples(batch: Batch) -> int:
    """Samples with NaN or an infinity in one of the floating inputs."""
    bad: torch.Tensor | None = None
    for _, tensor in named_tensors(batch.inputs):
        # The sum tells the usual case cheaply. It may overflow although all are finite, so it only acquits.
        if not tensor.is_floating_point() or not tensor.numel() or tensor.sum().isfinite():
            continue
        rows = ~tensor.isfinite().reshape(len(tensor), -1).all(1).cpu()
        bad = rows if bad is None or len(bad) != len(rows) else bad | rows
    return 0 if bad is None else int(bad.sum())
