"""How many predictions change with the size of the batch, where samples of a batch depend on each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bncheck.errors import BncheckError
from bncheck.evaluation.data.samples import joined, single
from bncheck.evaluation.models.calls import call, predictions_of
from bncheck.evaluation.observing.passes import fitting_labels, placed_batches
from bncheck.evaluation.probes.experiments import kept
from bncheck.evaluation.process import seed_everything

if TYPE_CHECKING:
    from bncheck.evaluation.data.batches import Data
    from bncheck.evaluation.models.runnable import Runnable
    from bncheck.evaluation.probes.experiments import Subject

# Predictions by batch size are counted on at most this many samples.
COUNTED_SAMPLES = 256
# The largest batch that is run for it, if the user's is not larger: a ResNet-50 takes 20 MiB for an image of 224x224.
LARGEST_BATCH = 64
BATCH_SIZES = (1, 2, 8)


@dataclass(frozen=True, slots=True)
class Counts:
    """By the size of the batch: the share of predictions that differ from those of the largest, and the accuracy."""

    changed: dict[int, float] = field(default_factory=dict)
    accuracy: dict[int, float] = field(default_factory=dict)


def count_by_size(runnable: Runnable, data: Data, subject: Subject, batch_size: int) -> Counts:
    """Predicts the same samples in batches of several sizes, that of the user among them.

    Args:
        runnable: the model, in the modes of the evaluation.
        data: what it is run on.
        subject: the same model, whose state is put back.
        batch_size: that of the user.
    """
    counts = Counts()
    samples, truth = counted(runnable, data, subject)
    largest_size = min(len(samples), max(LARGEST_BATCH, batch_size))
    samples = samples[: len(samples) // largest_size * largest_size]  # no smaller batch among the largest
    largest = predictions(subject, samples, largest_size)
    if largest is None:
        return counts
    for size in sorted({*BATCH_SIZES, batch_size}):
        predicted = predictions(subject, samples, size) if size < largest_size else None
        if predicted is not None:
            counts.changed[size] = share(predicted != largest)
            if truth is not None:
                counts.accuracy[size] = share(predicted == truth[: len(samples)])
    if truth is not None:
        counts.accuracy[largest_size] = share(largest == truth[: len(samples)])
    return counts


def share(of: torch.Tensor) -> float:
    return float(of.double().mean())


def counted(runnable: Runnable, data: Data, subject: Subject) -> tuple[list[Any], torch.Tensor | None]:
    """The samples that are counted, and their labels where the model knows all of them."""
    samples: list[Any] = []
    labels: list[torch.Tensor | None] = []
    for batch in placed_batches(runnable, data):
        samples += single(batch.inputs, batch.size)
        with torch.no_grad(), kept(subject):
            labels.append(fitting_labels(data, batch, call(subject.module, batch.inputs)))
        if len(samples) >= COUNTED_SAMPLES:
            break
    known = [label for label in labels if label is not None]
    samples = samples[:COUNTED_SAMPLES]
    return samples, torch.cat(known).cpu()[: len(samples)] if len(known) == len(labels) else None


def predictions(subject: Subject, samples: list[Any], size: int) -> torch.Tensor | None:
    """The predictions in batches of one size; None where the model does not classify, or refuses that size."""
    predicted = []
    with torch.no_grad(), kept(subject):
        for start in range(0, len(samples), size):
            seed_everything()
            try:
                classes = predictions_of(call(subject.module, joined(samples[start : start + size])))
            except BncheckError:
                return None
            if classes is None:
                return None
            predicted.append(classes.cpu())
    return torch.cat(predicted)
