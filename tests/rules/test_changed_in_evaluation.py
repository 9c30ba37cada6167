"""Statistics that an evaluation rewrites."""

from __future__ import annotations

from typing import Any

from bncheck.rules.changed_in_evaluation import RULE
from bncheck.subjects.layer import StatisticsUse, stored
from tests.rules.evaluations import evaluated, evaluation, shift
from tests.rules.layers import layer
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, note, quiet, undecided, warning


def moved(name: str = "bn", **seen: Any) -> Any:
    return evaluated(name, **{"training": True, "moved": True, "updates": 12, "as_shipped": shift(0.5), **seen})


QUIET: Quiet = {
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

FIRES: Fires = {
    "train mode": (
        evaluation(moved("a"), moved("b")),
        [error(layer="a", fix="model.eval() before evaluating"), error(layer="b")],
    ),
    "one update": (
        evaluation(moved(updates=1)),
        error("in 1 update during evaluation (as shipped): mean by up to 0.5 standard"),
    ),
    "an evaluation of the user's own": (
        evaluation(moved(), watched="the evaluator"),
        error("in 12 updates during evaluation (the evaluator)"),
    ),
    "the spread alone": (
        evaluation(moved(as_shipped=shift(0.0, 0.25))),
        error(measured={"mean_shift": 0.0, "variance_shift": 0.25}),
    ),
    "the buffers were written in eval mode": (
        evaluation(moved(training=False, updates=0)),
        error("the statistics moved during evaluation"),
    ),
    "channels that broke": (evaluation(moved(broken=2)), error("2 channels became NaN or infinite")),
    "half of the layers": (evaluation(evaluated("a"), moved("b")), error(layer="b")),
    "no counter, as in old files": (
        evaluation(moved(updates=None)),
        error("the statistics moved during evaluation"),
    ),
    "the statistics were reset, and the counter with them": (
        evaluation(moved(updates=-1000)),
        error("the statistics moved during evaluation"),
    ),
    "statistics set to None": (evaluation(moved(as_shipped=None)), error("took the running statistics away")),
    "and the counter with them": (evaluation(moved(as_shipped=None, updates=None)), error()),
    # eval() does nothing there.
    "a graph with its mode built in must be made again": (
        evaluation(moved(examined=layer(baked=True))),
        error(fix="export"),
    ),
    "the counter alone: momentum 0": (
        evaluation(evaluated(examined=layer(momentum=stored(0.0)), training=True, updates=12)),
        note(),
    ),
    "the counter alone, by one batch": (evaluation(evaluated(updates=1)), note("counted 1 batch during")),
    "the counter alone, by some": (evaluation(evaluated(updates=4)), note("counted 4 batches during")),
    "the counter alone, by many": (evaluation(evaluated(updates=1200)), note("counted 1,200 batches during")),
    "the counter alone, set back": (evaluation(evaluated(updates=-3)), note("went back by 3 during")),
    "train mode with tracking switched off on the way": (
        evaluation(evaluated(training=True, untracked=True)),
        warning("track_running_stats off"),
    ),
}

UNDECIDED: Undecided = {
    "nobody watched": (
        evaluation(
            evaluated(moved=None, updates=None),
            watched=None,
            unable={"moved in evaluation": "no evaluation of yours was watched; give --evaluator"},
        ),
        "no evaluation of yours was watched; give --evaluator",
    ),
    "nobody watched, and nobody said why": (
        evaluation(evaluated(moved=None, updates=None), watched=None),
        "no evaluation was watched",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)
