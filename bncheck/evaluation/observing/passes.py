"""A pass over the data with a model: the batches that it is given, their labels, and what is worth knowing of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bncheck.evaluation.models.calls import scores_of
from bncheck.wording import count, few

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from bncheck.evaluation.data.batches import Batch, Data
    from bncheck.evaluation.models.runnable import Runnable


def placed_batches(runnable: Runnable, data: Data) -> Iterator[Batch]:
    """The batches on the device of the model and in its dtype. What a callable of the user's yields stays as it is.

    A graph with one batch size gets no others: the last batch may be smaller, and is left out.
    """
    for batch in data:
        if runnable.fixed_batch_size not in (None, batch.size):
            continue
        yield replace(batch, inputs=runnable.place(batch.inputs))  # type: ignore[arg-type]


def fitting_labels(data: Data, batch: Batch, outputs: Any) -> torch.Tensor | None:
    """The labels of a batch, where the model has as many classes as the data, or enough for every label."""
    scores = scores_of(outputs)
    if batch.labels is None or scores is None or batch.labels.shape != scores.shape[:1]:
        return None
    classes = int(scores.shape[1])
    fits = classes == len(data.classes) if data.classes else int(batch.labels.max()) < classes
    return batch.labels if fits else None


def description_of(data: Data) -> dict[str, object]:
    """What was read and how, with what was left out; complete after a pass."""
    left_out = {"skipped": list(data.skipped)} if data.skipped else {}
    broken = {"non_finite": data.non_finite} if data.non_finite else {}
    return {**data.description, **left_out, **broken}


def data_notes(runnable: Runnable, data: Data, samples: int) -> list[str]:
    """What is worth knowing of the data that were run."""
    notes = []
    if data.skipped:
        notes.append(f"left out as unreadable: {count(len(data.skipped), 'image')} ({few(data.skipped)})")
    if data.non_finite:
        notes.append(f"NaN or infinity in the inputs of {count(data.non_finite, 'sample')}")
    if runnable.fixed_batch_size and data.samples and data.samples > samples:
        left_out = count(data.samples - samples, "sample")
        notes.append(
            f"left out at the end: {left_out}, since the graph takes batches of {runnable.fixed_batch_size} only"
        )
    return notes
