"""A setting of zero is a setting: none of them is taken for the default."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.evaluation.probes.fit import ASSUMED_TRAINING_BATCH, InputMoments, fit_of, momentum_noise


def test_an_eps_of_zero_is_taken_as_it_is() -> None:
    module = nn.BatchNorm1d(2, eps=0.0, momentum=0.0)
    assert module.running_var is not None
    module.running_var.fill_(1e-6)
    [layer] = live_group(module).layers
    ones = np.ones(2)
    fit = fit_of(InputMoments(ones, ones, ones, ones, 4), layer)
    assert fit is not None
    assert fit.mean_noise == pytest.approx(np.sqrt(1 / 4) / 1e-3, rel=1e-6)


@pytest.mark.parametrize(("momentum", "noise"), [(0.0, 0.0), (None, 1 / ASSUMED_TRAINING_BATCH)])
def test_a_momentum_or_a_counter_of_zero_is_taken_as_it_is(momentum: float | None, noise: float) -> None:
    [layer] = live_group(nn.BatchNorm1d(2, momentum=momentum)).layers
    assert momentum_noise(layer) == noise
