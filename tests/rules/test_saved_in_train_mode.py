"""Layers that were saved in train mode."""

import pytest

from bncheck.findings.rule import CannotTell, Evidence
from bncheck.rules.saved_in_train_mode import RULE
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import answers, fresh, layer, of_state_dict, said

TRAINING = {"training": stored(True)}

QUIET: dict[str, BatchNormLayer] = {
    "eval mode": layer(),
    "a graph in eval mode": layer(baked=True),
    "a layer that never ran": fresh(**TRAINING),
    "a frozen layer does not look at the mode": layer(**TRAINING, use=StatisticsUse.FROZEN),
}

FIRES: dict[str, tuple[BatchNormLayer, str, str]] = {
    "a pickled module": (layer(**TRAINING), "warning", "rewrites the statistics"),
    "tracking off: nothing is rewritten": (
        layer(**TRAINING, track_running_stats=stored(False)),
        "warning",
        "by the batch",
    ),
    "a layer that never ran, with its mode in a graph": (fresh(**TRAINING, baked=True), "error", "eval()"),
    "initial statistics that were counted": (fresh(**TRAINING, num_batches_tracked=3), "warning", "rewrites"),
    "a traced graph": (layer(**TRAINING, baked=True), "error", "eval() does not change it"),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    examined, severity, words = FIRES[name]
    assert said(RULE, examined) == [(severity, "bn")]
    [evidence] = answers(RULE, examined)
    assert isinstance(evidence, Evidence)
    assert words in evidence.message


def test_a_state_dict_leaves_it_undecided() -> None:
    [answer] = answers(RULE, of_state_dict())
    assert isinstance(answer, CannotTell)
