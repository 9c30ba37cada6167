"""Compares the outputs of two models on the same samples, batch by batch: sums are kept, outputs are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bncheck.evaluation.models.calls import outputs_of, predictions_of
from bncheck.subjects.evaluation import Agreement

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True)
class Comparison:
    """Sums over the batches so far. Labels count where every prediction could be one of them."""

    samples: int = 0
    classified: int = 0
    changed: int = 0
    labelled: int = 0
    right_before: int = 0
    right_after: int = 0
    squares: float = 0.0
    squared_difference: float = 0.0

    def add(self, before: Any, after: Any, size: int, labels: torch.Tensor | None = None) -> None:
        """Adds what two models gave for one batch of `size` samples."""
        self.samples += size
        squares, difference = squared(outputs_of(before), outputs_of(after))
        self.squares += squares
        self.squared_difference += difference
        first, second = predictions_of(before), predictions_of(after)
        if first is None or second is None or first.shape != second.shape:
            return
        first, second = first.cpu(), second.cpu()
        self.classified += len(first)
        self.changed += int((first != second).sum())
        if labels is not None and labels.shape == first.shape:
            self.labelled += len(first)
            self.right_before += int((first == labels.cpu()).sum())
            self.right_after += int((second == labels.cpu()).sum())

    def agreement(self) -> Agreement:
        """What the sums say so far."""
        labelled = self.labelled and self.labelled == self.samples
        return Agreement(
            samples=self.samples,
            predictions_changed=self.changed / self.classified if self.classified else None,
            output_change=self.output_change(),
            accuracy_before=self.right_before / self.labelled if labelled else None,
            accuracy_after=self.right_after / self.labelled if labelled else None,
        )

    def output_change(self) -> float:
        """The norm of the difference over that of the outputs before; infinite where these were all zero."""
        if self.squares:
            return float((self.squared_difference / self.squares) ** 0.5)
        return math.inf if self.squared_difference else 0.0


def squared(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Sums of squares of the first outputs and of the differences, in float64. NaN beside NaN is no difference."""
    squares = difference = 0.0
    for first, second in zip(before, after, strict=False):
        if first.shape != second.shape:
            continue
        one, other = first.double(), second.double()
        squares += float(one.square().nansum())
        apart = torch.where(one.isnan() & other.isnan(), torch.zeros_like(one), one - other)
        difference += float(apart.square().sum())
    return squares, difference


def largest_difference(before: Any, after: Any) -> float:
    """The largest difference of two outputs relative to the largest absolute value of both; inf where only one is NaN.

    Shapes that differ are infinitely far apart.
    """
    largest = apart = 0.0
    pairs = list(zip(outputs_of(before), outputs_of(after), strict=False))
    if all(torch.equal(first, second) for first, second in pairs):  # the usual case, without copies in float64
        return 0.0
    for first, second in pairs:
        if first.shape != second.shape:
            return float("inf")
        if not first.numel():
            continue
        one, other = first.double(), second.double()
        same = (one == other) | (one.isnan() & other.isnan())
        difference = torch.where(same, torch.zeros_like(one), (one - other).abs())
        apart = max(apart, float(torch.nan_to_num(difference, nan=float("inf"), posinf=float("inf")).max()))
        finite = torch.where(one.isfinite(), one.abs(), torch.zeros_like(one))
        largest = max(largest, float(finite.max()))
    if not apart:
        return 0.0
    return apart / largest if largest else float("inf")
