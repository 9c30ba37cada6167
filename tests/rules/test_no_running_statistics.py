"""Layers without running statistics."""

import pytest

from bncheck.findings.rule import CannotTell
from bncheck.rules.no_running_statistics import RULE
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse, inferred, stored
from tests.rules.layers import answers, layer, said

NONE = {"running_mean": None, "running_var": None, "num_batches_tracked": None, "dtype": None}

QUIET: dict[str, BatchNormLayer] = {
    "statistics": layer(),
    "tracking turned off afterwards, buffers kept": layer(track_running_stats=stored(False)),
    "a lazy layer that never ran": layer(**NONE, without_data=("running_mean", "running_var")),
    "a frozen layer": layer(**NONE, use=StatisticsUse.FROZEN),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("training", [True, False])
def test_fires_in_either_mode(training: bool) -> None:
    examined = layer(**NONE, track_running_stats=stored(False), training=stored(training))
    assert said(RULE, examined) == [("warning", "bn")]


def test_it_is_undecided_where_the_file_cannot_tell_instance_norm() -> None:
    """CycleGAN's InstanceNorm2d, with the defaults of torch, leaves the same trace in `_metadata`."""
    [answer] = answers(RULE, layer(**NONE, kind=inferred("BatchNorm or InstanceNorm")))
    assert isinstance(answer, CannotTell)
