"""What the text report says of two checkpoints."""

from __future__ import annotations

import io
from typing import Any

import pytest

from bncheck.findings.report import Report, Run
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose_pair
from bncheck.pairing.groups import pair_of
from bncheck.reports import Format, Style, write
from bncheck.reports.text.diff import alike, headline
from bncheck.rules import DIFF_RULES
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import stored
from tests.rules.layers import fresh, layer
from tests.rules.pairs import MOVED, NEARLY, TRAINED, file

MORE = {"num_batches_tracked": 1024}


def report(before: Checkpoint, after: Checkpoint) -> Report:
    return diagnose_pair(pair_of(before, after), Severity.ERROR, DIFF_RULES)


def text(made: Report, **style: Any) -> str:
    out = io.StringIO()
    write(Format.TEXT, Run("diff", (made,), 0), out, Style(**{"width": 80, **style}))
    return out.getvalue()


HEADLINES: dict[str, tuple[Checkpoint, Checkpoint, str]] = {
    "nothing": (file(layer()), file(layer()), "1 layer, equal weights and statistics"),
    "nothing that can be compared but statistics": (
        file(layer(weight=None, bias=None)),
        file(layer(weight=None, bias=None)),
        "1 layer, equal statistics",
    ),
    "training": (
        file(layer("a"), layer("b")),
        file(layer("a", **TRAINED, **NEARLY, **MORE), layer("b")),
        "weights changed in 1 of 2 layers, statistics in 1",
    ),
    "a drift": (
        file(layer("a"), layer("b")),
        file(layer("a", **MOVED, **MORE), layer("b", **MOVED, **MORE)),
        "weights frozen, statistics moved in 2 of 2 layers (24 train-mode batches)",
    ),
    "a drift of some layers, of other lengths": (
        file(layer("a"), layer("b"), layer("c")),
        file(layer("a", **MOVED, **MORE), layer("b", **NEARLY, num_batches_tracked=1001), layer("c")),
        "weights frozen, statistics moved in 2 of 3 layers (1 to 24 train-mode batches)",
    ),
    "a drift without counters": (
        file(layer(num_batches_tracked=None)),
        file(layer(**MOVED, num_batches_tracked=None)),
        "weights frozen, statistics moved in 1 of 1 layer",
    ),
    "ranks": (file(layer()), file(layer(**MOVED)), "equal weights, different statistics in 1 of 1 layer"),
    "another run": (
        file(layer()),
        file(layer(**MOVED, num_batches_tracked=9)),
        "the second does not continue the first: 1 of 1 layer",
    ),
    "lost": (file(layer()), file(fresh()), "the statistics of 1 of 1 layer are lost"),
    "eps and momentum count a layer once": (
        file(layer(eps=stored(1e-3), momentum=stored(0.01))),
        file(layer()),
        "settings changed in 1 of 1 layer",
    ),
    "an average": (
        file(layer()),
        file(layer(**TRAINED), source="ema.pt"),
        "averaged weights with the statistics of others",
    ),
    "the gravest comes first": (
        file(layer("a"), layer("b")),
        file(layer("a", num_batches_tracked=9), fresh("b")),
        "the statistics of 1 of 2 layers are lost",
    ),
}


@pytest.mark.parametrize("name", HEADLINES)
def test_the_first_line_says_what_happened(name: str) -> None:
    before, after, expected = HEADLINES[name]
    assert expected == headline(report(before, after))


def test_settings_and_counters_that_differ_are_named() -> None:
    before = file(*(layer(name) for name in "abc"))
    after = file(layer("a", **MORE, **TRAINED), layer("b", training=stored(True)), layer("c"))
    shown = text(report(before, after))
    assert "  weights               equal in 2 layers, changed in 1 layer\n" in shown
    assert "  num_batches_tracked   equal in 2 layers, +24 in 1 layer (a)\n" in shown
    assert "  training              equal in 2 layers, False -> True in 1 layer (b)\n" in shown


def test_the_farthest_layers_come_first_and_the_others_with_verbose() -> None:
    names = [f"layer{index}.bn" for index in range(20)]
    before = file(*(layer(name) for name in names))
    after = file(*(layer(name, **(MOVED if name == "layer7.bn" else NEARLY), **MORE) for name in names))
    made = report(before, after)
    rows = [line.split()[0] for line in text(made).splitlines() if line.startswith("  layer") and " equal " in line]
    assert (len(rows), rows[0]) == (16, "layer7.bn")
    assert "(4 more with --verbose)" in text(made)
    rows = [line for line in text(made, verbose=True).splitlines() if line.startswith("  layer") and " equal " in line]
    assert len(rows) == 20


def test_narrow_terminals_and_plain_characters() -> None:
    made = report(file(layer("backbone.layer1.0.bn1")), file(layer("backbone.layer1.0.bn1", **MOVED, **MORE)))
    assert max(len(line) for line in text(made, width=40).splitlines()[1:]) <= 44  # a pair has 20 columns for its value
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    write(Format.TEXT, Run("diff", (made,), 0), out, Style(width=80))
    out.seek(0)
    assert "##########" in out.read()


def test_statistics_that_are_not_finite_have_no_distance() -> None:
    made = report(file(layer(running_var=-1)), file(layer(**MOVED, **MORE)))
    row = next(line for line in text(made).splitlines() if line.startswith("  bn "))
    assert row.split() == ["bn", "equal", "-", "-", "-", "-"]


def test_names_from_files_are_escaped() -> None:
    made = report(file(layer("a\x1b[31m.bn")), file(layer("a\x1b[31m.bn", **MOVED, **MORE)))
    assert "\x1b" not in text(made)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": "equal", "b": "equal"}, "equal"),
        ({"a": "+1", "b": "+1", "c": "equal"}, "+1 in 2 layers, equal in 1 layer (c)"),
        (
            {str(index): f"+{index}" for index in range(5)},
            "+0 in 1 layer, +1 in 1 layer (1), +2 in 1 layer (2) and 2 other values",
        ),
    ],
)
def test_what_is_alike_is_said_once(values: dict[str, str], expected: str) -> None:
    assert expected == alike(values)
