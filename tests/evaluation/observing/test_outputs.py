"""Two models on the same samples: how many predictions change, and how far the outputs move."""

import math

import pytest
import torch

from bncheck.evaluation.observing.outputs import Comparison, largest_difference


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        pytest.param([3.0, 4.0], [3.0, 4.0], 0.0, id="the same"),
        pytest.param([3.0, 4.0], [0.0, 0.0], 1.0, id="all of it"),
        pytest.param([0.0, 0.0], [0.0, 0.0], 0.0, id="zero and zero"),
        pytest.param([0.0, 0.0], [0.0, 1e-3], math.inf, id="from zero"),
    ],
)
def test_an_output_of_zeros_may_change_too(before: list[float], after: list[float], change: float) -> None:
    comparison = Comparison()
    comparison.add(torch.tensor([before]), torch.tensor([after]), 1)
    assert comparison.agreement().output_change == change


def test_no_samples_have_no_share() -> None:
    agreement = Comparison().agreement()
    assert (agreement.samples, agreement.predictions_changed, agreement.output_change) == (0, None, 0.0)


def test_labels_of_class_zero_count() -> None:
    comparison = Comparison()
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    comparison.add(scores, scores.flip(1), 2, torch.tensor([0, 0]))
    agreement = comparison.agreement()
    assert (agreement.accuracy_before, agreement.accuracy_after) == (1.0, 0.0)


def test_a_difference_from_zero_is_infinite() -> None:
    assert largest_difference(torch.zeros(2), torch.zeros(2)) == 0.0
    assert largest_difference(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.5])) == 0.5
