"""JUnit XML: a case for each rule and checkpoint, which fails when the checkpoint does."""

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given, settings
from inline_snapshot import snapshot

from bncheck.findings.report import Run, Suppressed, Undecided, Verdict
from bncheck.findings.rule import Severity
from bncheck.reports import Format
from bncheck.wording import escaped
from tests.reports.runs import every_sample, found, inspected, run_of, runs, written, written_by_name


def xml(run: Run) -> Element:
    return ElementTree.fromstring(written(Format.JUNIT, run))


def case(run: Run, rule: str) -> Element:
    [held] = [case for case in xml(run).iter("testcase") if case.get("name") == rule]
    return held


def outcome(held: Element) -> list[str]:
    return [part.tag for part in held]


def test_a_suite_for_each_checkpoint_fails_when_its_report_does() -> None:
    run = every_sample()
    for report, suite in zip(run.reports, xml(run), strict=True):
        cases = {held.get("name"): held for held in suite}
        assert report.subjects[0].endswith(suite.get("name") or "?")
        if report.error:
            assert outcome(cases["readable"]) == ["error"]
            continue
        assert list(report.rules) == list(cases)
        failed = {name for name, held in cases.items() if held.find("failure") is not None}
        assert (report.verdict is Verdict.FAILED) == bool(failed)
        assert {f.rule for f in report.findings if f.severity is Severity.ERROR} == failed
        assert {open_.rule for open_ in report.undecided} - failed == {
            name for name, held in cases.items() if held.find("skipped") is not None
        }


def test_the_document() -> None:
    findings = (
        found(layer="a"),
        found(layer="b", message="it is very negative"),
        found("zero-scale", "a", severity=Severity.NOTE, message="it is 0", fix="None."),
    )
    undecided = (Undecided("lost-eps", None, None, "the file does not hold eps"),)
    assert written(Format.JUNIT, run_of(*findings, undecided=undecided, rules=("dead-channels",))) == snapshot("""\
<?xml version='1.0' encoding='us-ascii'?>
<testsuites name="bncheck inspect" tests="4" failures="1" errors="0">
  <testsuite name="model.pt" tests="4" failures="1" errors="0" skipped="1">
    <testcase classname="model.pt" name="dead-channels" file="model.pt" />
    <testcase classname="model.pt" name="negative-variance" file="model.pt">
      <failure message="a, b: it is negative (and 1 other message)" type="error">error: a: it is negative
error: b: it is very negative
fix: Mend it.</failure>
    </testcase>
    <testcase classname="model.pt" name="zero-scale" file="model.pt">
      <system-out>note: a: it is 0
fix: None.</system-out>
    </testcase>
    <testcase classname="model.pt" name="lost-eps" file="model.pt">
      <skipped message="the file does not hold eps" />
    </testcase>
  </testsuite>
</testsuites>
""")


def test_what_fails_depends_on_the_severity_that_fails_the_checkpoint() -> None:
    warning = found(severity=Severity.WARNING)
    for fail_on, expected in (
        (Severity.NOTE, ["failure"]),
        (Severity.WARNING, ["failure"]),
        (Severity.ERROR, ["system-out"]),
        (None, ["system-out"]),
    ):
        assert expected == outcome(case(run_of(warning, fail_on=fail_on), warning.rule))


def test_the_severity_that_the_user_asked_for_reaches_the_document() -> None:
    def failures(fail_on: Severity | None) -> str | None:
        return xml(inspected("mixed-modes.pt", fail_on=fail_on)).get("failures")

    assert [failures(Severity.WARNING), failures(Severity.ERROR), failures(None)] == ["1", "0", "0"]


def test_a_rule_that_failed_on_one_layer_and_was_undecided_on_another_has_failed() -> None:
    undecided = (Undecided("negative-variance", "other", "", "it lacks a fact"),)
    held = case(run_of(found(), undecided=undecided), "negative-variance")
    assert outcome(held) == ["failure", "system-out"]
    assert held.findtext("system-out") == "not decided: it lacks a fact"


def test_nothing_passes_where_there_is_no_batchnorm() -> None:
    run = run_of(layers=(), rules=("negative-variance", "zero-scale"))
    assert [outcome(held) for held in xml(run).iter("testcase")] == [["skipped"], ["skipped"]]


def test_a_suppressed_finding_passes_and_stays_visible() -> None:
    run = run_of(rules=("negative-variance",), suppressed=(Suppressed(found(), "meant so"),))
    held = case(run, "negative-variance")
    assert outcome(held) == ["system-out"]
    assert held.findtext("system-out") == "suppressed: bn: it is negative (meant so)"


def test_the_suffix_xml_names_the_format(tmp_path: Path) -> None:
    assert ElementTree.fromstring(written_by_name("bn.xml", tmp_path)).tag == "testsuites"


@given(runs())
@settings(deadline=None)
def test_whatever_a_report_holds_the_document_parses_and_says_it(run: Run) -> None:
    text = written(Format.JUNIT, run)
    assert text == written(Format.JUNIT, run)
    assert re.fullmatch(r"[\n\x20-\x7e]*", text)
    root = xml(run)
    for report, suite in zip(run.reports, root, strict=True):
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert str(len(list(suite.iter(tag)))) == suite.get(name)
        all_text = "\n".join([*suite.itertext(), *(part.get("message", "") for part in suite.iter())])
        for finding in report.findings:
            assert escaped(finding.message) in all_text
        names = [held.get("name") for held in suite]
        assert len(names) == len(set(names)) or any(escaped(rule) != rule for rule in report.rules)


@pytest.mark.parametrize("element", ["testsuites", "testsuite"])
def test_the_counts_are_those_of_the_whole(element: str) -> None:
    root = xml(inspected("negative-variance.pt", "missing.pt"))
    counted = [root] if element == "testsuites" else list(root)
    assert sum(int(held.get("errors", 0)) for held in counted) == 1
    assert sum(int(held.get("failures", 0)) for held in counted) == 1
