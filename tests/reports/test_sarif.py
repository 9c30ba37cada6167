"""SARIF: valid by the schema of the standard, and with what code scanning needs to tell results apart.

sarif-schema-2.1.0.json is the schema of OASIS as the package schemastore 0.2.3 carries it.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from bncheck.findings.report import Run, Suppressed, Undecided
from bncheck.findings.rule import Severity
from bncheck.reports import Format
from bncheck.reports.sarif import fingerprint, message_text, uri
from bncheck.rules import RULES
from bncheck.wording import escaped
from tests.reports.runs import SAMPLES, every_sample, found, inspected, layer, run_of, runs, written, written_by_name

SCHEMA = json.loads((Path(__file__).parent / "sarif-schema-2.1.0.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
# RFC 3986: a path of which no segment can be read as a scheme, or a file URI.
URI = re.compile(r"(file:///)?([\w.~/-]|%[0-9A-F]{2})*", re.ASCII)


def sarif(run: Run) -> Any:
    """The one run of the log, when the schema takes it."""
    log = json.loads(written(Format.SARIF, run))
    VALIDATOR.validate(log)
    [made] = log["runs"]
    return made


def results_of(made: Any) -> list[tuple[str, str, str | None]]:
    """Rule, level, and layer or group."""
    return [
        (
            result["ruleId"],
            result["level"],
            result["locations"][0].get("logicalLocations", [{"name": None}])[0]["name"],
        )
        for result in made["results"]
    ]


def fingerprints(made: Any) -> list[str]:
    return [result["partialFingerprints"]["primaryLocationLineHash"] for result in made["results"]]


def test_all_samples_give_a_valid_log_with_their_findings() -> None:
    run = every_sample()
    made = sarif(run)
    expected = [
        (f.rule, f.severity.value, f.layer if f.layer is not None else f.group or None)
        for report in run.reports
        for f in report.findings
    ]
    assert expected == results_of(made)
    assert len(expected) > 30


def test_the_driver_names_the_rules_that_ran_with_their_help() -> None:
    made = sarif(inspected("healthy.pt"))
    driver = made["tool"]["driver"]
    explained = {rule.id: rule for rule in RULES}
    assert {"name", "version", "semanticVersion", "rules"} == set(driver)
    assert driver["rules"]
    for descriptor in driver["rules"]:
        rule = explained[descriptor["id"]]
        assert rule.summary == descriptor["shortDescription"]["text"]
        assert rule.severity.value == descriptor["defaultConfiguration"]["level"]
        assert "## What to do" in descriptor["help"]["markdown"]
        assert not re.search(r"##|\n", descriptor["fullDescription"]["text"])
    [negative] = [held for held in driver["rules"] if held["id"] == "negative-variance"]
    assert negative["fullDescription"]["text"].startswith("running_var is nowhere negative.")


def test_a_result_says_where_what_and_what_to_do() -> None:
    made = sarif(inspected("more-updates-than-steps.pt", "never-updated-statistics.pt"))
    of_group, of_layer, _ = made["results"]
    assert made["tool"]["driver"]["rules"][of_layer["ruleIndex"]]["id"] == of_layer["ruleId"]
    assert ". Load with strict=True" in of_layer["message"]["text"]
    [location] = of_layer["locations"]
    assert location["physicalLocation"]["region"] == {"startLine": 1}
    assert location["logicalLocations"] == [{"name": "block.bn1", "fullyQualifiedName": "block.bn1", "kind": "member"}]
    assert of_group["locations"][0]["logicalLocations"] == [
        {"name": "model", "fullyQualifiedName": "model", "kind": "namespace"}
    ]


def test_a_layer_of_a_group_is_qualified_by_it_and_a_finding_about_the_file_has_no_logical_location() -> None:
    findings = (found(group="ema", layer="stem.1"), found(layer="", group="ema"), found(layer=None, group=None))
    first, second, third = sarif(run_of(*findings))["results"]
    assert first["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "ema/stem.1"
    assert second["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "ema/(the module itself)"
    assert "logicalLocations" not in third["locations"][0]


def test_results_on_the_same_line_have_fingerprints_of_their_own() -> None:
    """GitHub merges what is equal; all stand on line 1."""
    findings = [
        found(), found("dead-channels"), found(layer="bn2"), found(group="ema"), found(layer=None), found(layer=""),
        found(layer=None, message="it is said twice of the file"),
    ]  # fmt: skip
    made = fingerprints(sarif(run_of(*findings)))
    assert len(findings) == len(set(made))


def test_a_fingerprint_stays_when_the_file_is_renamed_and_its_numbers_change() -> None:
    once = run_of(found(message="10 channels"))
    [report] = once.reports
    moved = replace(once, reports=(replace(report, subjects=("other.pt",)),))
    again = run_of(found(message="12 channels", severity=Severity.WARNING, measured={"channels": 12}))
    assert fingerprints(sarif(once)) == fingerprints(sarif(moved)) == fingerprints(sarif(again))
    assert fingerprint(found()) == "210b78f3ab1d0b77"


def test_what_could_not_be_read_or_decided_is_a_notification() -> None:
    run = inspected("healthy.pt", "missing.pt")
    [invocation] = sarif(run)["invocations"]
    assert (invocation["exitCode"], invocation["executionSuccessful"]) == (2, False)
    *notes, error = invocation["toolExecutionNotifications"]
    assert error["level"] == "error"
    assert "missing.pt does not exist. Check the path" in error["message"]["text"]
    assert {"note"} == {note["level"] for note in notes}
    [mode] = [note for note in notes if note["associatedRule"]["id"] == "saved-in-train-mode"]
    assert mode["message"]["text"] == "saved-in-train-mode could not be decided: the file does not hold the mode"


def test_an_undecided_rule_names_its_layers_unless_they_are_all() -> None:
    layers = (layer("a"), layer("b"))
    one = Undecided("dead-channels", "b", "", "it lacks a fact")
    [note] = sarif(run_of(layers=layers, undecided=(one,)))["invocations"][0]["toolExecutionNotifications"]
    assert note["message"]["text"] == "dead-channels could not be decided (b): it lacks a fact"


def test_a_run_that_passed_was_successful() -> None:
    [invocation] = sarif(inspected("healthy_module.pt"))["invocations"]
    assert tuple(invocation[key] for key in ("exitCode", "executionSuccessful", "toolExecutionNotifications")) == (
        0,
        True,
        [],
    )


def test_a_suppressed_finding_is_a_result_with_its_reason() -> None:
    run = run_of(found("dead-channels"), suppressed=(Suppressed(found(), "meant so"),))
    counts, suppressed = sarif(run)["results"]
    assert counts["suppressions"] == []
    assert suppressed["suppressions"] == [{"kind": "external", "justification": "meant so"}]
    assert suppressed["ruleId"] == "negative-variance"


def test_without_suppressions_no_result_speaks_of_them() -> None:
    assert all("suppressions" not in result for result in sarif(run_of(found()))["results"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("release/model.pt", "release/model.pt"),
        ("./model.pt", "model.pt"),
        ("../model.pt", "../model.pt"),
        ("a b#c?d.pt", "a%20b%23c%3Fd.pt"),
        ("s3:model.pt", "s3%3Amodel.pt"),  # no scheme
        ("größe.pt", "gr%C3%B6%C3%9Fe.pt"),
        ("bad\udcff.pt", "bad%FF.pt"),  # a byte of a file name that is not UTF-8
        ("\ud800.pt", "%ED%A0%80.pt"),
        ("/elsewhere/model.pt", "file:///elsewhere/model.pt"),
        ("//elsewhere/model.pt", "file:///elsewhere/model.pt"),
    ],
    ids=["relative", "dot", "above", "reserved", "colon", "umlauts", "bytes", "surrogate", "absolute", "two slashes"],
)
def test_paths_are_uris(path: str, expected: str) -> None:
    assert expected == uri(path)


def test_an_absolute_path_below_the_current_directory_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLES.parent)
    assert uri(str(SAMPLES / "healthy.pt")) == "sample_checkpoints/healthy.pt"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer {0}", "layer {{0}}"),
        ("[a](http://b)", "[a] (http://b)"),
        ("shape [3]", "shape [3]"),
        ("a\nb\ud800", "a\\nb\\ud800"),
    ],
    ids=["placeholder", "link", "brackets", "controls"],
)
def test_a_message_holds_no_placeholder_and_no_link(text: str, expected: str) -> None:
    assert expected == message_text(text)


def test_the_suffix_sarif_names_the_format(tmp_path: Path) -> None:
    VALIDATOR.validate(json.loads(written_by_name("bn.sarif", tmp_path)))


@given(runs())
@settings(deadline=None)
def test_whatever_a_report_holds_the_log_is_valid_and_says_it(run: Run) -> None:
    text = written(Format.SARIF, run)
    assert text == written(Format.SARIF, run)
    made = sarif(run)
    text.encode("ascii")
    json.dumps(made, ensure_ascii=False).encode("utf-8")  # no lone surrogate, which strict parsers refuse
    said = [f for r in run.reports for f in (*r.findings, *(held.finding for held in r.suppressed))]
    rules = [descriptor["id"] for descriptor in made["tool"]["driver"]["rules"]]
    for finding, result in zip(said, made["results"], strict=True):
        assert escaped(finding.rule) == result["ruleId"] == rules[result["ruleIndex"]]
        [location] = result["locations"]
        assert URI.fullmatch(location["physicalLocation"]["artifactLocation"]["uri"])
        if finding.layer:
            assert escaped(finding.layer) == location["logicalLocations"][0]["name"]
        message = result["message"]["text"]
        assert not re.search(r"[{}]", re.sub(r"\{\{|\}\}", "", message))
        assert "](" not in message
    for report in run.reports:
        made = fingerprints(sarif(replace(run, reports=(report,))))
        assert len(report.findings) + len(report.suppressed) == len(set(made))
