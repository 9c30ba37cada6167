"""Statistics at their initial values, and why."""

import pytest

from bncheck.findings.rule import Evidence
from bncheck.rules.never_updated_statistics import RULE
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import answers, fresh, layer, of_state_dict, said

TRAINED_PARAMETERS = {"weight": [0.3, 1.2, 0.8, 1.1], "bias": [0.1, 0.2, -0.3, 0.0]}

QUIET: dict[str, tuple[BatchNormLayer, ...]] = {
    "trained layers": (layer("a"), layer("b")),
    "counters of 0 with trained statistics, as averaged weights have them": (layer(num_batches_tracked=0),),
    "a single channel at 0 and 1": (layer(running_mean=[0, 1, 1, 1], running_var=[1, 2, 2, 2]),),
    "no statistics": (layer(running_mean=None, running_var=None),),
}

FIRES: dict[str, tuple[tuple[BatchNormLayer, ...], list[tuple[str, str]], str]] = {
    "a part that was not loaded": ((layer("a"), fresh("b")), [("error", "b")], "was not loaded or never ran"),
    "a model that never ran": ((fresh("a"), fresh("b")), [("error", "a"), ("error", "b")], "the model never ran"),
    "a fresh model with zero_init_residual": ((fresh("a", weight=0),), [("error", "a")], "the model never ran"),
    "a fresh model without parameters": ((fresh("a", weight=None, bias=None),), [("error", "a")], "never ran"),
    "buffers that were not saved": (
        (fresh("a", **TRAINED_PARAMETERS), fresh("b", **TRAINED_PARAMETERS)),
        [("error", "a"), ("error", "b")],
        "the buffers were not saved or not loaded",
    ),
    "statistics that were reset after training": (
        (fresh("a", num_batches_tracked=500),),
        [("error", "a")],
        "counts 500 updates: they were reset",
    ),
    "momentum 0": ((fresh("a", num_batches_tracked=500, momentum=stored(0.0)),), [("note", "a")], "momentum is 0"),
    "statistics folded into the parameters": (
        (fresh("a", num_batches_tracked=None, **TRAINED_PARAMETERS),),
        [("note", "a")],
        "folded into weight and bias",
    ),
    "detectron2's FrozenBatchNorm2d starts at 1 - eps": (
        (fresh("a", num_batches_tracked=None, running_var=1 - 1e-5, use=StatisticsUse.FROZEN, **TRAINED_PARAMETERS),),
        [("note", "a")],
        "folded",
    ),
    "a state_dict": (
        (of_state_dict("a"), of_state_dict("b", running_mean=0, running_var=1)),
        [("error", "b")],
        "reset",
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, *QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    layers, expected, words = FIRES[name]
    assert said(RULE, *layers) == expected
    evidence = answers(RULE, *layers)[0]
    assert isinstance(evidence, Evidence)
    assert words in evidence.message
