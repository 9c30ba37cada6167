"""Details of the text report that the command's snapshots do not show."""

import io

import pytest

from bncheck.findings.report import Distribution, Finding, LayerSummary, Report, Run, Undecided, Verdict
from bncheck.findings.rule import Severity
from bncheck.reports import Format, write
from bncheck.reports.style import Style
from bncheck.subjects.layer import UNKNOWN, Behaviour, Normalises, inferred
from bncheck.wording import escaped, short


def layer(name: str, momentum: float = 0.1, low: float = 0.0) -> LayerSummary:
    spread = Distribution(low, 0.5, 1.0, 0, (low, 0.5, 1.0), (1, 0, 0, 0, 0, 0, 0, 1))
    return LayerSummary(
        name, "", name, None, inferred("BatchNorm2d"), 64, "float32", 10, UNKNOWN, inferred(momentum), inferred(True),
        inferred(True), UNKNOWN, Behaviour(Normalises.UNKNOWN, None), spread, spread,
    )  # fmt: skip


def text_of(report: Report, **style: object) -> str:
    out = io.StringIO()
    write(Format.TEXT, Run("inspect", (report,), 0), out, Style(width=80, **style))  # type: ignore[arg-type]
    return out.getvalue()


def test_of_many_layers_the_odd_ones_are_named() -> None:
    layers = tuple(layer(f"layer{index}.bn", 0.01 if index in (3, 7) else 0.1, -float(index)) for index in range(53))
    text = text_of(Report(("model.pt",), "torch.save", Verdict.PASSED, layers=layers))
    assert "momentum              0.1 (inferred); 0.01 (inferred) in 2 layers: layer3.bn,\n" in text
    assert "running_mean          -52 (layer52.bn) … 1 (layer0.bn)" in text
    assert "--verbose shows each layer" in text
    assert text.count("\n") < 20


def test_findings_of_one_rule_are_folded_and_the_worst_come_first() -> None:
    def finding(rule: str, severity: Severity, name: str, message: str) -> Finding:
        return Finding(rule, severity, name, "", message, {}, "Do it.")

    findings = (
        finding("mild", Severity.NOTE, "a", "x"),
        *(finding("bad", Severity.ERROR, f"bn{index}", f"channel {index}") for index in range(5)),
    )
    text = text_of(Report(("m",), "f", Verdict.FAILED, layers=(layer("a"),), findings=findings))
    assert text.index("error bad") < text.index("note mild")
    assert "5 layers: bn0, bn1, bn2 and 2 more" in text
    assert "bn0: channel 0\n    (4 other messages with --verbose)" in text
    verbose = text_of(Report(("m",), "f", Verdict.FAILED, layers=(layer("a"),), findings=findings), verbose=True)
    assert "bn4: channel 4" in verbose
    assert "5 layers: bn0, bn1, bn2, bn3, bn4" in verbose


def test_a_layer_that_is_a_whole_group_has_a_name() -> None:
    findings = (
        Finding("r", Severity.ERROR, "", "ema", "x", {}, "y"),
        Finding("s", Severity.ERROR, "a" * 300, "ema", "x", {}, "y"),
    )
    text = text_of(Report(("m",), "f", Verdict.FAILED, layers=(layer(""),), findings=findings))
    assert "  error r\n    ema: (the module itself)\n" in text
    assert "a" * 300 in text.replace("\n    ", ""), "a name is not cut, so that it can be copied"


def test_what_could_not_be_decided_names_its_layers() -> None:
    undecided = (Undecided("rule", "b", "", "it lacks a fact"),)
    text = text_of(Report(("m",), "f", Verdict.PASSED, layers=(layer("a"), layer("b")), undecided=undecided))
    assert "not decided: rule (b): it lacks a fact" in text


def test_warnings_that_pass_are_announced() -> None:
    findings = (Finding("r", Severity.WARNING, "a", "", "x", {}, "y"),)
    text = text_of(Report(("m",), "f", Verdict.PASSED, layers=(layer("a"),), findings=findings))
    assert "1 warning (--fail-on warning would fail)" in text


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (12345.0, "1.23e4"), (5.6e-45, "5.6e-45"), (-0.00001, "-1e-5"), (1.5, "1.5")]
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert short(value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("größe.层", "größe.层"), ("a\x1b[0m", "a\\x1b[0m"), ("\u202e", "\\u202e"), ("\ud800", "\\ud800"), ("a b", "a b")],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert escaped(text) == shown
