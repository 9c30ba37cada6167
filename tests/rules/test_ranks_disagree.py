"""Equal weights with the statistics of different data."""

from __future__ import annotations

import numpy as np
import pytest

from bncheck.rules.ranks_disagree import RULE
from bncheck.subjects.pair import CheckpointPair
from tests.rules.layers import layer
from tests.rules.pairs import MOVED, NEARLY, TRAINED, file, messages, paired, said

APART = {"running_mean": [0.2, -0.3, 0.4, 0.1], "running_var": [0.55, 1.5, 2.0, 1.0]}

QUIET: dict[str, CheckpointPair] = {
    "the same statistics": paired(file(layer()), file(layer())),
    "as DistributedDataParallel leaves them: the last batch differs": paired(file(layer()), file(layer(**NEARLY))),
    "other weights": paired(file(layer()), file(layer(**MOVED, **TRAINED))),
    "a later checkpoint": paired(file(layer()), file(layer(**MOVED, num_batches_tracked=1024))),
    "two files without counters may be one network and its drift": paired(
        file(layer(num_batches_tracked=None)), file(layer(**MOVED, num_batches_tracked=None))
    ),
    "counters that averages carry": paired(
        file(layer(num_batches_tracked=1)), file(layer(**MOVED, num_batches_tracked=1))
    ),
    "statistics that are not finite": paired(file(layer()), file(layer(running_var=np.nan, running_mean=np.nan))),
    "no statistics": paired(file(layer()), file(layer(running_mean=None, running_var=None))),
}

FIRES: dict[str, tuple[CheckpointPair, list[tuple[str, str]]]] = {
    "a little": (paired(file(layer()), file(layer(**APART))), [("warning", "bn")]),
    "far": (paired(file(layer()), file(layer(**MOVED))), [("error", "bn")]),
    "three files without counters": (
        paired(file(layer(num_batches_tracked=None)), file(layer(**MOVED, num_batches_tracked=None)), several=True),
        [("error", "bn")],
    ),
    "three files with counters of 0": (
        paired(file(layer(num_batches_tracked=0)), file(layer(**MOVED, num_batches_tracked=0)), several=True),
        [("error", "bn")],
    ),
    "the variances alone": (
        paired(file(layer()), file(layer(running_var=[1.0, 3.0, 4.0, 2.0]))),
        [("error", "bn")],
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert said(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    pair, expected = FIRES[name]
    assert expected == said(RULE, pair)


def test_the_message_says_how_far() -> None:
    pair = paired(file(layer()), file(layer(**APART)))
    assert messages(RULE, pair) == [
        "the weights are equal in every bit and both count 1,000 batches, but the statistics are 0.09082 standard "
        "deviations apart (median of the channels): they come from different data"
    ]
