"""Drift and repeat in words: the first line, the numbers, the table with its bars."""

from __future__ import annotations

import io
from typing import Any

import pytest
from inline_snapshot import snapshot

from bncheck.findings.report import Run
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose_evaluation
from bncheck.reports import Format, write
from bncheck.reports.style import Style
from bncheck.reports.text.evaluation import intervals
from bncheck.rules import DRIFT_RULES, REPEAT_RULES
from bncheck.subjects.evaluation import Agreement, Cause, CauseKind, Evaluation
from tests.rules.evaluations import evaluated, evaluation, fitted, repeated, shift
from tests.rules.layers import layer

DROPOUT = Cause(CauseKind.RANDOM_OPERATOR.value, "1 random operator ran in drop", ("drop",))
NORM = Cause(CauseKind.BATCHNORM.value, "1 BatchNorm layer normalises by the batch (in train mode: bn)", ("bn",))
ENDLESS = float("inf")


def text_of(examined: Evaluation, width: int = 80, **style: Any) -> str:
    rules = DRIFT_RULES if examined.repeat is None else REPEAT_RULES
    report = diagnose_evaluation(examined, Severity.ERROR, rules)
    out = io.StringIO()
    write(Format.TEXT, Run("drift", (report,), 0), out, Style(width=width, **style))
    return out.getvalue()


def first_line(examined: Evaluation) -> str:
    return text_of(examined).splitlines()[0].partition("model.pt: ")[2]


def in_train_mode(name: str, mean: Any) -> Any:
    return evaluated(name, moved=True, training=True, updates=12, as_shipped=shift(mean), train_mode=shift(mean))


def test_the_report_of_drift() -> None:
    examined = evaluation(
        evaluated("stem.bn", fit=fitted(mean=0.02).fit, train_mode=shift(0.01)),
        in_train_mode("head.bn", [0.4, 0.5, 0.5, 1.25]),
        evaluated("unused.bn", called=0),
        train_mode=Agreement(360, 0.445, 0.3, 0.975, 0.55),
        train_mode_by_batches={1: 0.0, 2: 0.02, 4: 0.05, 8: 0.2},
        fit=Agreement(360, 0.0028, 0.01, 0.975, 0.972),
        notes=("DataParallel was taken off the model",),
    )
    assert text_of(examined) == snapshot("""\
FAILED model.pt: evaluation rewrites the statistics of 1 of 3 BatchNorm layers
  module · 3 BatchNorm2d layers · 1 error

  ran                   pickled module on cpu: 360 samples in 12 batches, 3
                        passes over the data
  moved in evaluation   1 of 3 layers (as shipped); in train mode: head.bn
  never called          unused.bn
  a pass in train mode  would change 44% of the predictions (accuracy 97.5%
                        before, 55.0% after); 10% between 4 and 8 batches
  data's statistics     would change 0.3% of the predictions (accuracy 97.5%
                        before, 97.2% after) if they replace the stored ones

  layer      moved  train mode  data
  head.bn      0.5         0.5     -  ████████████████████
  stem.bn        0        0.01  0.02  █
  unused.bn      0           -     -
  (shift of the mean in standard deviations, or of their logarithm if that is
  more; median of the channels)

  error changed-in-evaluation
    head.bn
    the statistics moved in 12 updates during evaluation (as shipped): mean by
    up to 1.25 standard deviations
    fix: Call model.eval() before evaluating, on frozen parts too, and restore
         the statistics of before.

  note DataParallel was taken off the model
""")


def test_the_report_of_repeat() -> None:
    examined = repeated(
        same_batches_max_difference=0.7,
        predictions_changed=13,
        run_causes=(DROPOUT,),
        metrics=({"accuracy": 0.91}, {"accuracy": 0.93}),
    )
    assert text_of(examined) == snapshot("""\
FAILED model.pt: results differ from run to run
  module · 1 BatchNorm2d layer · 1 error

  ran                   pickled module on cpu: 360 samples in 12 batches, 3
                        passes over the data
  inputs                the same both times
  2 runs                differ by up to 0.7 of the largest output, 13
                        predictions change
  in other batches      2e-15 of the largest output in float64, within rounding
                        (2.2e-13)
  evaluation 1          accuracy 0.91
  evaluation 2          accuracy 0.93

  error differs-between-runs
    1 random operator ran in drop; outputs differ by up to 0.7 of the largest;
    13 predictions change; the evaluation returned accuracy 0.91, 0.93
    fix: Call model.eval(); in functional dropout, pass training=self.training.
""")


@pytest.mark.parametrize(
    ("examined", "expected"),
    [
        (evaluation(evaluated(), fitted("a")), "evaluation moves no statistics, they fit the data"),
        (evaluation(evaluated(), in_train_mode("b", 1)), "evaluation rewrites the statistics of 1 of 2 BatchNorm"),
        (
            evaluation(evaluated(updates=3), in_train_mode("b", 1)),
            "evaluation rewrites the statistics of 1 of 2 BatchNorm layers",
        ),
        (evaluation(fitted("a", 0.5), fitted("b")), "the statistics of 1 of 2 BatchNorm layers do not fit the data"),
        (evaluation(fitted("a", 0.5), in_train_mode("b", 1)), "evaluation rewrites the statistics of 1 of 2"),
        (evaluation(fitted("a"), fit=Agreement(360, 0.3, 0.1)), "the statistics of the model do not fit the data"),
        (evaluation(fitted("a"), watched=None), "they fit the data"),
        (evaluation(evaluated(), watched=None), "nothing found, and not all decided"),
        (evaluation(), "no BatchNorm layer"),
        (repeated(), "runs agree, batches do not matter"),
        (repeated(run_causes=(DROPOUT,)), "results differ from run to run"),
        (repeated(other_company_max_difference=0.5, company_causes=(NORM,)), "results depend on the batch"),
        (repeated(first_non_finite="head"), "the output is NaN or infinite"),
        (repeated(other_company_max_difference=None, company_tolerance=None), "runs agree"),
        (
            repeated(unable={"repeat": "x"}, same_batches_max_difference=None, other_company_max_difference=None),
            "nothing found, and not all decided",
        ),
    ],
    ids=range(15),
)  # fmt: skip
def test_the_first_line_has_the_gravest_finding_or_what_is_certain(examined: Evaluation, expected: str) -> None:
    assert first_line(examined).startswith(expected)


@pytest.mark.parametrize(
    ("by_batches", "expected"),
    [
        ({"1": 0.2}, "; 10% after 1 batch"),
        ({"1": 0.0, "2": 0.1}, "; 10% between 1 and 2 batches"),
        ({"1": 0.0, "2": 0.01, "4": 0.3, "8": 0.4}, "; 10% between 2 and 4 batches"),
        ({"1": 0.0, "2": 0.09}, ""),
        ({}, ""),
    ],
    ids=range(5),
)
def test_the_batches_between_which_a_tenth_is_reached(by_batches: dict[str, float], expected: str) -> None:
    assert intervals(by_batches) == expected


def rows(text: str) -> list[str]:
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  layer"))
    end = next(number for number, line in enumerate(lines) if line.startswith("  (shift"))
    return lines[start + 1 : end]


def test_layers_stand_by_damage_with_bars_of_their_share() -> None:
    examined = evaluation(in_train_mode("a", 0.1), in_train_mode("b", 0.4), in_train_mode("c", 0.0))
    assert [(row.split()[0], row.count("█")) for row in rows(text_of(examined))] == [("b", 20), ("a", 5), ("c", 0)]


def test_layers_without_statistics_have_no_row() -> None:
    bare = evaluated("bare", layer("bare", running_mean=None, running_var=None), as_shipped=None, moved=None)
    assert [row.split()[0] for row in rows(text_of(evaluation(bare, in_train_mode("a", 1))))] == ["a"]
    assert "(shift of the mean" not in text_of(evaluation(bare))


def test_an_infinite_shift_leaves_room_for_the_others() -> None:
    examined = evaluation(in_train_mode("a", ENDLESS), in_train_mode("b", 1e6), in_train_mode("c", 5e5))
    assert [(row.split()[1], row.count("█")) for row in rows(text_of(examined))] == [
        ("inf", 20),
        ("1e6", 20),
        ("5e5", 10),
    ]


def test_of_many_layers_the_worst_are_shown() -> None:
    many = evaluation(*(in_train_mode(f"layer{index}.bn", index / 10) for index in range(60)))
    shown = rows(text_of(many))
    assert shown[0].split()[0] == "layer59.bn"
    assert shown[-1].endswith("more with --verbose)")
    assert len(rows(text_of(many, verbose=True))) == 60


@pytest.mark.parametrize("width", [40, 44, 52, 60, 80, 132])
@pytest.mark.parametrize("name", ["a", "backbone.layer4.2.bn3", "x" * 90])
def test_the_table_fits_into_any_terminal(name: str, width: int) -> None:
    text = text_of(evaluation(in_train_mode(name, 0.4), fitted("other", 0.01)), width)
    wide = [line for line in text.splitlines()[1:] if len(line) > max(width, 44)]
    assert all(name in line for line in wide if len(name) > 20)
    assert len(name) > 20 or not wide


def test_names_from_a_file_are_spelled_out() -> None:
    assert "\x1b" not in text_of(evaluation(in_train_mode("bn\x1b[31m", 1.0)))


def test_what_was_not_measured_says_why() -> None:
    reason = "the mode is a constant of the graph, which train() does not change"
    text = text_of(evaluation(fitted(), unable={"cost of train mode": reason}))
    assert "a pass in train mode  not measured: the mode is a constant of the graph" in text
