"""How rules are applied, and numbers summarised."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bncheck.findings.report import Verdict
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose
from bncheck.judgement.summaries import distribution
from bncheck.rules import RULES
from bncheck.rules.saved_in_train_mode import RULE as SAVED_IN_TRAIN_MODE
from bncheck.subjects.layer import stored
from tests.rules.layers import checkpoint, layer, of_state_dict


def test_one_cause_is_told_once() -> None:
    """Without statistics there is nothing to rewrite: that the layer is in train mode is no news."""
    untracked = layer(
        "a", running_mean=None, running_var=None, training=stored(True), track_running_stats=stored(False)
    )
    other = layer("b", training=stored(True))
    report = diagnose(checkpoint(untracked, other), Severity.WARNING, RULES)
    assert [(finding.rule, finding.layer) for finding in report.findings] == [
        ("no-running-statistics", "a"),
        ("saved-in-train-mode", "b"),
    ]
    assert report.verdict is Verdict.FAILED


def test_a_reason_that_holds_for_every_layer_is_told_once() -> None:
    everywhere = diagnose(
        checkpoint(of_state_dict("a"), of_state_dict("b")), Severity.ERROR, [SAVED_IN_TRAIN_MODE]
    ).undecided
    assert [(open_.rule, open_.layer) for open_ in everywhere] == [("saved-in-train-mode", None)]
    partly = diagnose(checkpoint(of_state_dict("a"), layer("b")), Severity.ERROR, [SAVED_IN_TRAIN_MODE]).undecided
    assert [(open_.rule, open_.layer) for open_ in partly] == [("saved-in-train-mode", "a")]


@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_the_spread_is_that_of_numpy(values: np.ndarray) -> None:  # type: ignore[type-arg]
    found = distribution(values)
    assert found is not None
    wide = values.astype(np.float64)
    assert (found.min, found.max, found.non_finite) == (wide.min(), wide.max(), 0)
    np.testing.assert_allclose(found.median, np.median(wide), rtol=1e-12, atol=1e-300)
    assert found.finite == (found.min, found.median, found.max)
    if found.histogram:
        expected, _ = np.histogram(wide, bins=len(found.histogram))
        assert sum(found.histogram) == sum(expected) == values.size
    assert bool(found.histogram) == (wide.max() > wide.min())


def test_not_a_number_is_shown_as_torch_has_it_and_what_is_finite_beside_it() -> None:
    values = torch.tensor([1.0, float("nan"), 3.0, float("inf")])
    found = distribution(values.numpy())
    assert found is not None
    assert np.isnan([found.min, found.median, found.max]).all()
    assert np.isnan([values.min().item(), values.max().item()]).all()
    assert (found.non_finite, found.finite) == (2, (1.0, 2.0, 3.0))


def test_nothing_has_no_spread() -> None:
    assert distribution(None) is None
    assert distribution(np.empty(0, np.float32)) is None


def test_a_signalling_nan_is_counted_without_a_warning() -> None:
    values = np.array([0x7F800001, 0x3F800000], np.uint32).view(np.float32)
    found = distribution(values)
    assert found is not None
    assert (found.non_finite, found.finite) == (1, (1.0, 1.0, 1.0))
