"""The configuration and the policy that it makes: what is read, what is refused, what is suppressed and until when."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bncheck.config import KEYS, Config, configured, schema
from bncheck.errors import UsageError
from bncheck.findings.report import Finding, LayerSummary, Report, Undecided, Verdict
from bncheck.findings.rule import Severity
from bncheck.judgement.baseline import baseline_of, read_baseline
from bncheck.judgement.policy import Ignore, Policy, policy_of
from bncheck.judgement.verdicts import gate_exit_code, gated, remarks
from bncheck.options.gating import GateOptions
from bncheck.options.option import make
from bncheck.rules import RULES

IDS = [rule.id for rule in RULES]
TODAY = datetime.date(2027, 6, 30)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str, name: str = "pyproject.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- the file


def test_every_value_says_where_it_comes_from(project: Path) -> None:
    path = written(project, '[tool.bncheck]\ndata = "validation"\nfail-on = "error"\n')
    config = configured(project)
    assert (config["data"], config.origin("data")) == ("validation", str(path))
    assert (config["batch-size"], config.origin("batch-size")) == (32, "default")
    options = make(GateOptions, {"fail_on": "note"}, config.values)
    assert (options.data, options.fail_on, options.batch_size) == ("validation", "note", 32)


def test_the_former_name_of_a_key_still_counts_but_not_beside_the_present_one(project: Path) -> None:
    written(project, '[tool.bncheck]\nignore-rules = ["dead-*"]\n')
    assert configured(project)["ignore"] == ["dead-*"]
    written(project, '[tool.bncheck]\nignore-rules = ["dead-*"]\nignore = ["zero-scale"]\n')
    with pytest.raises(UsageError, match="both ignore-rules and ignore"):
        configured(project)


def test_arguments_of_the_model_keep_their_types(project: Path) -> None:
    written(project, "[tool.bncheck.model-args]\nscale = inf\nday = 2027-06-30\ndepth = 18\nname = '18'\n")
    arguments = make(GateOptions, configured(project).values).arguments
    assert arguments == {"scale": float("inf"), "day": datetime.date(2027, 6, 30), "depth": 18, "name": "18"}


def test_the_configuration_of_a_folder_above_is_found_and_its_paths_start_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(
        project, '[tool.bncheck]\ncheckpoint = ["release/a.pt", "b.pt"]\nmodel = "net.py:Net"\nevaluator = "my.m:run"\n'
    )
    inside = project / "deep" / "er"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    config = configured(inside)
    assert config["checkpoint"] == [str(project / "release/a.pt"), str(project / "b.pt")]
    assert config["model"] == f"{project / 'net.py'}:Net"
    assert config["evaluator"] == "my.m:run"
    monkeypatch.chdir(project)
    assert configured(project)["checkpoint"] == [os.path.join("release", "a.pt"), "b.pt"]


def test_a_file_of_its_own_needs_no_table(project: Path) -> None:
    written(project, 'data = "a"\n', "bncheck.toml")
    written(project, '[tool.bncheck]\ndata = "b"\n')
    assert configured(project)["data"] == "a"
    assert configured(project, Path("pyproject.toml"))["data"] == "b"


def test_a_project_without_a_table_has_the_defaults(project: Path) -> None:
    written(project, "[tool.ruff]\nline-length = 100\n")
    config = configured(project)
    assert config == Config()
    assert {key: config[key] for key in KEYS} == {key: held.default for key, held in KEYS.items()}


BAD: dict[str, tuple[str, str, str]] = {
    "an unknown key": ('chekpoint = "a"', "unknown key 'chekpoint' in .*pyproject.toml", "Did you mean checkpoint"),
    "a number for a text": ("data = 3", "data in .* is 3, and must be a string", "Folder or file of images"),
    "a text for a flag": ('grayscale = "yes"', "grayscale in .* must be a boolean", "one channel"),
    "true for a number": ("batch-size = true", "batch-size in .* must be an integer", "Samples"),
    "too small a number": ("batch-size = 0", "must be at least 1", ""),
    "another severity": ('fail-on = "fatal"', "must be one of note, warning, error, never", ""),
    "a severity of a rule": ('severity = { "dead-channels" = "bad" }', "'dead-channels', which is 'bad'", ""),
    "a list with a number in it": ('select = ["a", 3]', "select in .* is 3", ""),
    "an ignore without a reason": ('ignore = [{ rule = "dead-channels" }]', "an entry without reason", ""),
    "an ignore with an empty reason": ('ignore = [{ rule = "dead-channels", reason = "" }]', "is empty", ""),
    "an ignore with a wrong key": (
        'ignore = [{ rule = "dead-channels", reason = "a", layers = "b" }]',
        "unknown key 'layers'; Did you mean layer",
        "",
    ),
    "an ignore with no date": ('ignore = [{ rule = "a-b", reason = "a", expires = "soon" }]', "must be a date", ""),
    "no TOML": ("data = ", "cannot be read", "Mend"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_in_the_file_is_named(project: Path, name: str) -> None:
    text, message, hint = BAD[name]
    written(project, f"[tool.bncheck]\n{text}\n")
    with pytest.raises(UsageError, match=message) as refused:
        configured(project)
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('require = ["dead-chanels"]', "require in .* names the unknown rule 'dead-chanels'"),
        ('severity = { "dead-chanels" = "error" }', "severity in .* names the unknown rule"),
        ('ignore = [{ rule = "dead-chanels", reason = "a" }]', "ignore in .* names the unknown rule"),
    ],
    ids=["require", "severity", "ignore"],
)
def test_an_unknown_rule_is_named_with_its_neighbour(project: Path, text: str, message: str) -> None:
    written(project, f"[tool.bncheck]\n{text}\n")
    with pytest.raises(UsageError, match=message) as refused:
        policy_of(make(GateOptions, configured(project).values), IDS, project / "pyproject.toml")
    assert "dead-channels" in refused.value.hint


def test_a_file_that_was_asked_for_must_have_the_table(project: Path) -> None:
    path = written(project, "[project]\n")
    with pytest.raises(UsageError, match="has no"):
        configured(project, path)
    with pytest.raises(UsageError, match="cannot be read"):
        configured(project, project / "absent.toml")


def test_the_schema_allows_what_is_allowed_and_refuses_what_is_refused(project: Path) -> None:
    """Two ways to the same answer: the schema that editors use, and the check of bncheck itself."""
    import tomllib

    validator = jsonschema.Draft202012Validator(schema())
    good = 'checkpoint = "a"\nmean = [0.5]\nignore = [{ rule = "dead-channels", reason = "r", expires = "2027-01-01" }]'
    validator.validate(tomllib.loads(good))
    for name, (text, _, _) in BAD.items():
        if name in ("no TOML", "an ignore with no date"):  # formats are remarks in JSON Schema
            continue
        assert not validator.is_valid(tomllib.loads(text)), name


# -- the policy


def finding(rule: str = "dead-channels", severity: Severity = Severity.ERROR, layer: str | None = "a.bn") -> Finding:
    return Finding(rule, severity, layer, "", "message", {}, "fix")


def report(*findings: Finding, **fields: Any) -> Report:
    from bncheck.judgement.summaries import summarise
    from tests.rules.layers import layer

    layers: tuple[LayerSummary, ...] = fields.pop("layers", (summarise(layer()),))
    return Report(
        ("model.pt",), "torch.save", Verdict.PASSED, layers=layers, findings=findings, rules=tuple(IDS), **fields
    )


def test_the_gate_fails_from_a_warning_on() -> None:
    policy = policy_of(GateOptions(), IDS)
    assert gated(report(finding(severity=Severity.NOTE)), policy, TODAY).verdict is Verdict.PASSED
    assert gated(report(finding(severity=Severity.WARNING)), policy, TODAY).verdict is Verdict.FAILED
    never = policy_of(GateOptions(fail_on="never"), IDS)
    assert gated(report(finding()), never, TODAY).verdict is Verdict.PASSED


def test_severities_are_those_of_the_team() -> None:
    policy = Policy(severities={"dead-channels": Severity.NOTE})
    found = gated(report(finding()), policy, TODAY)
    assert found.verdict is Verdict.PASSED
    assert found.findings[0].severity is Severity.NOTE


IGNORED = {
    "the rule": (Ignore("dead-channels", None, "known"), True),
    "a glob of rules": (Ignore("dead-*", None, "known"), True),
    "the layer": (Ignore("dead-channels", "a.*", "known"), True),
    "another layer": (Ignore("dead-channels", "b.*", "known"), False),
    "another rule": (Ignore("zero-scale", None, "known"), False),
    "until today": (Ignore("dead-channels", None, "known", TODAY), True),
    "until yesterday": (Ignore("dead-channels", None, "known", TODAY - datetime.timedelta(1)), False),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_ignored_stays_visible_and_does_not_count(name: str) -> None:
    entry, suppresses = IGNORED[name]
    found = gated(report(finding()), Policy(ignores=(entry,)), TODAY)
    assert found.verdict is (Verdict.PASSED if suppresses else Verdict.FAILED)
    assert [held.reason for held in found.suppressed] == (["known"] if suppresses else [])
    assert len(found.findings) == (0 if suppresses else 1)


def test_an_entry_for_a_layer_says_nothing_of_the_whole_file() -> None:
    policy = Policy(ignores=(Ignore("dead-channels", "*", "known"),))
    assert gated(report(finding(layer=None)), policy, TODAY).verdict is Verdict.FAILED


def test_entries_that_do_nothing_are_remarked() -> None:
    expired = Ignore("dead-channels", None, "known", datetime.date(2027, 1, 1))
    unused = Ignore("zero-scale", "b.*", "known")
    used = Ignore("dead-channels", "a.*", "known")
    policy = Policy(ignores=(expired, unused, used))
    said = remarks([gated(report(finding()), policy, TODAY)], policy, TODAY)
    assert said == (
        "ignore dead-channels expired on 2027-01-01, and suppresses nothing any more",
        "ignore zero-scale in b.* fits nothing that was found: remove it",
    )


def test_what_is_required_and_undecided_is_inconclusive() -> None:
    open_ = Undecided("depends-on-batch", None, None, "no data")
    policy = Policy(require=("depends-on-batch",))
    found = gated(report(undecided=(open_,)), policy, TODAY)
    assert found.verdict is Verdict.UNDECIDED
    assert found.notes == ("inconclusive: depends-on-batch is required and was not decided: no data",)
    assert gate_exit_code([found]) == 3
    assert gated(report(undecided=(open_,)), Policy(), TODAY).verdict is Verdict.PASSED
    assert gated(report(finding(), undecided=(open_,)), policy, TODAY).verdict is Verdict.FAILED


def test_no_batchnorm_is_inconclusive_unless_the_team_says_otherwise() -> None:
    assert gated(report(layers=()), Policy(), TODAY).verdict is Verdict.UNDECIDED
    assert gated(report(layers=()), Policy(require_batchnorm=False), TODAY).verdict is Verdict.PASSED


def test_one_inconclusive_checkpoint_keeps_the_gate_shut() -> None:
    passed, open_ = (gated(report(), Policy(), TODAY), gated(report(layers=()), Policy(), TODAY))
    assert gate_exit_code([passed]) == 0
    assert gate_exit_code([passed, open_]) == 3
    assert gate_exit_code([gated(report(finding()), Policy(), TODAY), open_]) == 1


# -- the baseline


def test_known_findings_do_not_count_and_new_ones_do(tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(baseline_of([report(finding(), finding(layer="b.bn"))]))
    policy = Policy(baseline=read_baseline(str(tmp_path / "known.json")))
    assert gated(report(finding()), policy, TODAY).verdict is Verdict.PASSED
    assert gated(report(finding(), finding(layer="c.bn")), policy, TODAY).verdict is Verdict.FAILED
    assert gated(report(finding("zero-scale")), policy, TODAY).verdict is Verdict.FAILED


def test_the_baseline_is_the_same_text_for_the_same_findings() -> None:
    one, other = finding(layer="b"), finding(layer="a")
    assert baseline_of([report(one, other)]) == baseline_of([report(other), report(one, one)])
    assert json.loads(baseline_of([report(one)]))["version"] == 1


@pytest.mark.parametrize("text", ["", "[]", '{"findings": 3}', '{"findings": [{}]}'])
def test_a_baseline_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "known.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        read_baseline(str(tmp_path / "known.json"))
