"""Workflow commands, read back as the runner of GitHub reads them."""

import re

import pytest
from hypothesis import given, settings

from bncheck.findings.report import Run, Undecided
from bncheck.findings.rule import Severity
from bncheck.reports import Format
from bncheck.reports.phrases import shown_path
from bncheck.wording import escaped
from tests.reports.runs import every_sample, found, inspected, layer, run_of, runs, written

LEVELS = {"error", "warning", "notice"}
Command = tuple[str, dict[str, str], str]


def commands(run: Run) -> tuple[list[Command], str]:
    """The commands, and the line for people after them."""
    *lines, last, end = written(Format.GITHUB, run).split("\n")
    assert not end
    assert not last.startswith("::")
    return [parsed(line) for line in lines], last


def parsed(line: str) -> Command:
    """As ActionCommand.TryParseV2 of actions/runner: properties are split at commas, then unescaped."""
    match = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert match, line
    level, properties, data = match.groups()
    pairs = dict(pair.split("=", 1) for pair in properties.split(","))
    return level, {name: unescaped(value) for name, value in pairs.items()}, unescaped(data)


def unescaped(text: str) -> str:
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_fifty_layers_give_one_annotation() -> None:
    run = run_of(*(found(layer=f"layer{index}.bn") for index in range(50)))
    assert written(Format.GITHUB, run) == (
        "::error file=model.pt,line=1,title=negative-variance::"
        "layer0.bn, layer1.bn, layer2.bn and 47 more: it is negative%0Afix: Mend it.\n"
        "bncheck inspect: 1 input: 1 failed\n"
    )


def test_different_messages_of_a_rule_share_an_annotation_and_are_counted() -> None:
    run = run_of(*(found(layer=f"bn{index}", message=f"channel {index}") for index in range(3)))
    [(_, _, message)], _ = commands(run)
    assert message == "bn0, bn1, bn2: channel 0 (and 2 other messages)\nfix: Mend it."


def test_levels_are_githubs_and_the_gravest_comes_first() -> None:
    severities = (Severity.NOTE, Severity.WARNING, Severity.ERROR)
    made, _ = commands(run_of(*(found(f"rule-{severity.value}", severity=severity) for severity in severities)))
    assert [(level, held["title"]) for level, held, _ in made] == [
        ("error", "rule-error"),
        ("warning", "rule-warning"),
        ("notice", "rule-note"),
    ]


def test_every_finding_of_the_samples_is_annotated_with_its_rule() -> None:
    run = every_sample()
    made, last = commands(run)
    expected = {(shown_path(report.subjects[0]), finding.rule) for report in run.reports for finding in report.findings}
    assert expected <= {(held["file"], held["title"]) for _, held, _ in made}
    assert last.endswith(", 1 not read")


def test_an_unreadable_input_is_an_error_with_its_hint() -> None:
    [(level, held, message)], last = commands(inspected("missing.pt"))
    assert (level, held["title"]) == ("error", "not read")
    assert "does not exist\nCheck the path" in message
    assert last == "bncheck inspect: 1 input: 1 not read"


def test_what_was_not_decided_is_one_notice() -> None:
    undecided = (
        *(Undecided("lost-eps", name, "", "no eps") for name in ("a", "b")),
        Undecided("zero-scale", "b", "", "no weight"),
    )
    made, _ = commands(run_of(layers=(layer("a"), layer("b")), undecided=undecided))
    assert made == [
        (
            "notice",
            {"file": "model.pt", "line": "1", "title": "not decided"},
            "lost-eps: no eps\nzero-scale (b): no weight",
        )
    ]


def test_a_run_without_batchnorm_warns_and_one_input_without_it_is_noticed() -> None:
    none, some = run_of(layers=()), run_of()
    assert [level for level, _, _ in commands(none)[0]] == ["warning"]
    both = Run("inspect", (*none.reports, *some.reports), 0)
    assert [level for level, _, _ in commands(both)[0]] == ["notice"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\n::error::b", "a\\n::error::b"),
        ("%0A::error::b", "%0A::error::b"),
        ("a,title=b:c", "a,title=b:c"),
        ("x" * 300, "x" * 200 + "..."),
    ],
    ids=["line end", "escaped line end", "properties", "long"],
)
def test_a_name_can_start_no_command(name: str, shown: str) -> None:
    [(level, held, message)], _ = commands(run_of(found(rule=name[:200], layer=name)))
    assert level == "error"
    assert held == {"file": "model.pt", "line": "1", "title": escaped(name[:200])}
    assert message == f"{shown}: it is negative\nfix: Mend it."


@given(runs())
@settings(deadline=None)
def test_whatever_a_report_holds_each_line_is_one_command_and_says_it(run: Run) -> None:
    text = written(Format.GITHUB, run)
    assert text == written(Format.GITHUB, run)
    text.encode("utf-8")
    made, _ = commands(run)
    for level, held, _ in made:
        assert level in LEVELS
        assert list(held) == ["file", "line", "title"]
    titles = [held["title"] for _, held, _ in made]
    for report in run.reports:
        assert all(escaped(finding.rule) in titles for finding in report.findings)
