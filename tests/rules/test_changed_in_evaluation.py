"""Statistics that an evaluation rewrites."""

from __future__ import annotations

from typing import Any

import pytest

from bncheck.rules.changed_in_evaluation import RULE
from bncheck.subjects.evaluation import Evaluation
from bncheck.subjects.layer import StatisticsUse, stored
from tests.rules.evaluations import answers, evaluated, evaluation, left_open, message, said, shift
from tests.rules.layers import layer


def moved(name: str = "bn", **seen: Any) -> Any:
    return evaluated(name, **{"training": True, "moved": True, "updates": 12, "as_shipped": shift(0.5), **seen})


QUIET: dict[str, Evaluation] = {
    "nothing moved": evaluation(evaluated("a"), evaluated("b")),
    "a layer that was never called": evaluation(evaluated(called=0)),
    "train mode without statistics has nothing to move": evaluation(
        evaluated(examined=layer(running_mean=None, running_var=None), training=True, updates=None, untracked=True)
    ),
    "a frozen layer ignores its mode": evaluation(
        evaluated(examined=layer(use=StatisticsUse.FROZEN), training=True, updates=None)
    ),
    "no BatchNorm layer, no evaluation": evaluation(watched=None),
}

FIRES: dict[str, tuple[Evaluation, list[tuple[str, str]]]] = {
    "train mode": (evaluation(moved("a"), moved("b")), [("error", "a"), ("error", "b")]),
    "half of the layers": (evaluation(evaluated("a"), moved("b")), [("error", "b")]),
    "no counter, as in old files": (evaluation(moved(updates=None)), [("error", "bn")]),
    "the statistics were reset, and the counter with them": (evaluation(moved(updates=-1000)), [("error", "bn")]),
    "statistics set to None": (evaluation(moved(as_shipped=None, updates=None)), [("error", "bn")]),
    "the counter alone: momentum 0": (
        evaluation(evaluated(examined=layer(momentum=stored(0.0)), training=True, updates=12)),
        [("note", "bn")],
    ),
    "the counter alone, set back": (evaluation(evaluated(updates=-3)), [("note", "bn")]),
    "train mode with tracking switched off on the way": (
        evaluation(evaluated(training=True, untracked=True)),
        [("warning", "bn")],
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert answers(RULE, QUIET[name]) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    examined, expected = FIRES[name]
    assert expected == said(RULE, examined)


@pytest.mark.parametrize(
    ("examined", "expected"),
    [
        (evaluation(moved(updates=1)), "in 1 update during evaluation (as shipped): mean by up to 0.5 standard"),
        (evaluation(moved(), watched="the evaluator"), "in 12 updates during evaluation (the evaluator)"),
        (evaluation(moved(updates=-1000)), "the statistics moved during evaluation"),
        (evaluation(moved(updates=None)), "the statistics moved during evaluation"),
        (evaluation(moved(broken=2)), "2 channels became NaN or infinite"),
        (evaluation(moved(as_shipped=None)), "took the running statistics away"),
        (evaluation(evaluated(updates=1)), "counted 1 batch during"),
        (evaluation(evaluated(updates=4)), "counted 4 batches during"),
        (evaluation(evaluated(updates=-3)), "went back by 3 during"),
        (evaluation(evaluated(training=True, untracked=True)), "track_running_stats off"),
    ],
    ids=range(10),
)
def test_the_message_has_the_numbers(examined: Evaluation, expected: str) -> None:
    assert expected in message(RULE, examined)


def test_a_graph_with_its_mode_built_in_must_be_made_again() -> None:
    [plain] = answers(RULE, evaluation(moved()))
    [baked] = answers(RULE, evaluation(moved(examined=layer(baked=True))))
    assert "model.eval() before evaluating" in plain.fix  # type: ignore[union-attr]
    assert "export" in baked.fix  # type: ignore[union-attr]


def test_what_nobody_watched_is_left_open() -> None:
    unable = {"moved in evaluation": "no evaluation of yours was watched; give --evaluator"}
    examined = evaluation(evaluated(moved=None, updates=None), watched=None, unable=unable)
    assert list(unable.values()) == left_open(RULE, examined)
    assert said(RULE, examined) == []
