"""The JSON report keeps to its schema, which scripts rely on, and the schema names all that a report holds."""

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from bncheck.findings.report import Run
from bncheck.reports import Format
from bncheck.reports.json import VERSION
from tests.reports.runs import SAMPLES, every_sample, inspected, runs, written

SCHEMA = json.loads(resources.files("bncheck.reports").joinpath("schema.json").read_text("utf-8"))


def closed(schema: Any) -> Any:
    """The schema without room for keys that it does not name; a reader is given that room, a writer is not."""
    if isinstance(schema, dict):
        made = {key: closed(held) for key, held in schema.items()}
        if isinstance(made.get("properties"), dict):
            made.setdefault("additionalProperties", False)
        return made
    return [closed(held) for held in schema] if isinstance(schema, list) else schema


WRITER = jsonschema.Draft202012Validator(closed(SCHEMA))


def document(run: Run) -> Any:
    """What a parser gets that knows no NaN."""
    return json.loads(written(Format.JSON, run), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_schema_is_one_and_is_of_the_version_that_is_written() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["version"]["const"] == VERSION


def test_the_reports_on_all_samples_and_on_a_missing_file_keep_to_it() -> None:
    held = document(every_sample())
    WRITER.validate(held)
    assert {"passed", "failed", "undecided"} == {report["verdict"] for report in held["reports"]}
    assert sum(report["error"] is not None for report in held["reports"]) == 1


@pytest.mark.parametrize("command", ["drift", "repeat"])
def test_the_reports_on_a_model_that_ran_keep_to_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from bncheck.cli import app

    monkeypatch.chdir(SAMPLES.parent)
    options = ["--trust-pickle", "--python-path", ".", "--grayscale", "--limit", "64", "--format", "json"]
    data = SAMPLES / "digits"
    result = CliRunner().invoke(app, [command, str(SAMPLES / "healthy_module.pt"), "--data", str(data), *options])
    assert result.exit_code in (0, 1), result.stderr
    held = json.loads(result.stdout)
    WRITER.validate(held)
    assert "layers" in held["reports"][0]["measurements"] or "repeat" in held["reports"][0]["measurements"]


@given(runs())
@settings(deadline=None)
def test_whatever_a_report_holds_the_json_keeps_to_it_and_says_it(run: Run) -> None:
    held = document(run)
    WRITER.validate(held)
    assert written(Format.JSON, run) == written(Format.JSON, run)
    for report, told in zip(run.reports, held["reports"], strict=True):
        assert read_back(report.subjects) == told["subjects"]
        assert read_back([(f.rule, f.layer, f.group, f.message, f.fix) for f in report.findings]) == [
            [f["rule"], f["layer"], f["group"], f["message"], f["fix"]] for f in told["findings"]
        ]
        assert set(read_back(dict.fromkeys(report.facts))) == set(told["facts"])


def read_back(value: Any) -> Any:
    """What is left of names in JSON, where lone surrogates are spelled out: strict parsers refuse them."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {read_back(name): held for name, held in value.items()}
    return [read_back(held) for held in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("exit_code",), 4),
        (("reports", 0, "verdict"), "fine"),
        (("reports", 0, "layers", 0, "running_var", "min"), None),
        (("reports", 0, "layers", 0, "new"), 1),
        (("reports", 0, "findings", 0, "severity"), "fatal"),
    ],
    ids=lambda part: part[-1] if isinstance(part, tuple) else "",
)
def test_what_is_not_in_the_schema_is_noticed(path: tuple[Any, ...], value: Any) -> None:
    held = document(inspected("negative-variance.pt"))
    WRITER.validate(held)
    *parents, last = path
    place = held
    for key in parents:
        place = place[key]
    place[last] = value
    assert not WRITER.is_valid(held)
