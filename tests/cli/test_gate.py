"""The gate as a team uses it: a real git repository with a configuration, gated by the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.commands import gate as gating
from bncheck.findings.rule import Rule, Severity
from sample_checkpoints import make

SAMPLES = Path(make.__file__).parent
STATIC = sorted(rule for rule, defect in make.DEFECTS.items() if not hasattr(defect, "COMMAND"))
CONFIGURATION = """
[tool.bncheck]
checkpoint = "release/model.pt"
data = "validation"
grayscale = true
mean = [0.5]
std = [0.5]
"""
Gate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A project with a release, validation images and the configuration, under git."""
    folder = tmp_path / "project"
    (folder / "release").mkdir(parents=True)
    for digit in range(10):
        for path in sorted((SAMPLES / "digits" / str(digit)).iterdir())[:8]:
            target = folder / "validation" / str(digit) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(SAMPLES / "network.py", folder / "network.py")
    (folder / "pyproject.toml").write_text(CONFIGURATION)
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "release"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture
def gate(repository: Path) -> Gate:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bncheck", "gate", *arguments]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    return run


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def release(repository: Path, name: str) -> None:
    shutil.copy(SAMPLES / name, repository / "release" / "model.pt")


def configure(repository: Path, text: str) -> None:
    path = repository / "pyproject.toml"
    path.write_text(path.read_text() + text)


def test_a_healthy_release_passes_every_check(repository: Path, gate: Gate) -> None:
    release(repository, "healthy.pt")
    configure(
        repository, 'model = "network.py:DigitNet"\nreference = "release/previous.pt"\nrequire = ["depends-on-batch"]\n'
    )
    shutil.copy(SAMPLES / "healthy.pt", repository / "release" / "previous.pt")
    done = gate()
    assert done.stderr == ""
    assert done.returncode == 0
    first, *_, last = done.stdout.splitlines()
    assert first == "PASSED release/model.pt: no findings"
    assert "inspect, drift, repeat, diff" in done.stdout
    assert last == "PASSED: 1 checkpoint, 1 passed"


def test_what_was_not_checked_is_said(repository: Path, gate: Gate) -> None:
    release(repository, "healthy.pt")
    (repository / "pyproject.toml").write_text('[tool.bncheck]\ncheckpoint = "release/model.pt"\n')
    done = gate()
    assert done.returncode == 0
    assert "drift, repeat: no data is configured" in unwrapped(done.stdout)
    assert "diff: no reference is configured" in unwrapped(done.stdout)


def test_a_check_that_failed_is_not_called_unconfigured(repository: Path, gate: Gate) -> None:
    release(repository, "healthy.pt")
    (repository / "pyproject.toml").write_text(
        '[tool.bncheck]\ncheckpoint = "release/model.pt"\nreference = "release/absent.pt"\n'
    )
    done = gate("--format", "json")
    assert done.returncode == 2
    [report] = json.loads(done.stdout)["reports"]
    reasons = {check["name"]: check["reason"] for check in report["checks"] if not check["done"]}
    assert "does not exist" in reasons["diff"]
    assert reasons["drift"] == "no data is configured"
    assert report["error"]["message"].startswith("diff: ")


@pytest.mark.slow
@pytest.mark.parametrize("rule", STATIC)
def test_each_defect_fails_the_gate_in_every_format(repository: Path, gate: Gate, rule: str) -> None:
    """A gate fails on warnings; notes do not fail it by themselves, so here they are raised."""
    release(repository, f"{rule}.pt")
    (repository / "pyproject.toml").write_text("[tool.bncheck]\n")
    configure(repository, f'severity = {{ "{rule}" = "error" }}\n')
    if hasattr(make.DEFECTS[rule], "MODEL"):
        configure(repository, 'model = "network.py:DigitNet"\n')
    if hasattr(make.DEFECTS[rule], "DEEP"):
        configure(repository, f'select = ["{rule}"]\n')
    outputs = ["--output", "sarif=a.sarif", "--output", "junit=a.xml", "--output", "json=a.json"]
    done = gate("release/model.pt", *outputs, "--output", "markdown=a.md", "--output", "github=a.txt")
    assert done.stderr == ""
    assert done.returncode == 1
    assert done.stdout.startswith("FAILED release/model.pt: ")
    assert f"error {rule}" in done.stdout
    assert rule in {
        result["ruleId"] for result in json.loads((repository / "a.sarif").read_text())["runs"][0]["results"]
    }
    failed = {
        case.get("name") for case in ET.parse(repository / "a.xml").iter("testcase") if case.find("failure") is not None
    }
    assert rule in failed
    [report] = json.loads((repository / "a.json").read_text())["reports"]
    assert rule in {finding["rule"] for finding in report["findings"]}
    assert rule in (repository / "a.md").read_text()
    assert f"::error file=release/model.pt,line=1,title={rule}::" in (repository / "a.txt").read_text()


def test_a_model_left_in_train_mode_fails_by_what_it_does(repository: Path, gate: Gate) -> None:
    release(repository, "saved-in-train-mode.pt")
    configure(repository, 'trust-pickle = true\npython-path = ["."]\n')
    shutil.copytree(SAMPLES, repository / "sample_checkpoints", ignore=lambda *_: ["digits", "defects"])
    done = gate("--format", "json")
    assert done.returncode == 1, done.stderr
    [report] = json.loads(done.stdout)["reports"]
    rules = {finding["rule"] for finding in report["findings"]}
    assert {"saved-in-train-mode", "changed-in-evaluation", "depends-on-batch"} <= rules


IGNORE = """
[[tool.bncheck.ignore]]
rule = "never-updated-statistics"
layer = "block.*"
reason = "the block is trained later"
expires = {date}
"""


def test_a_suppressed_finding_passes_and_is_shown(repository: Path, gate: Gate) -> None:
    release(repository, "never-updated-statistics.pt")
    (repository / "pyproject.toml").write_text("[tool.bncheck]\n" + IGNORE.format(date="2999-01-01"))
    done = gate("release/model.pt")
    assert done.returncode == 0, done.stdout
    assert "PASSED release/model.pt: no findings, 2 suppressed" in done.stdout
    assert "the block is trained later" in unwrapped(done.stdout)


def test_an_expired_suppression_fails(repository: Path, gate: Gate) -> None:
    release(repository, "never-updated-statistics.pt")
    (repository / "pyproject.toml").write_text("[tool.bncheck]\n" + IGNORE.format(date="2001-01-01"))
    done = gate("release/model.pt")
    assert done.returncode == 1
    assert "expired on 2001-01-01" in unwrapped(done.stdout)


def test_a_baseline_lets_what_is_known_pass_and_nothing_else(repository: Path, gate: Gate) -> None:
    (repository / "pyproject.toml").write_text("[tool.bncheck]\n")
    release(repository, "never-updated-statistics.pt")
    assert gate("release/model.pt").returncode == 1
    assert gate("release/model.pt", "--write-baseline", "known.json").returncode == 0
    done = gate("release/model.pt", "--baseline", "known.json")
    assert done.returncode == 0
    assert "known: in the baseline" in unwrapped(done.stdout)
    release(repository, "negative-variance.pt")
    assert gate("release/model.pt", "--baseline", "known.json").returncode == 1


def test_a_truncated_release_has_no_verdict(repository: Path, gate: Gate) -> None:
    data = (SAMPLES / "healthy.pt").read_bytes()
    (repository / "release" / "model.pt").write_bytes(data[: len(data) // 2])
    done = gate()
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "NO VERDICT: 1 checkpoint, 1 without a verdict"


def test_a_model_without_batchnorm_is_inconclusive(repository: Path, gate: Gate) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), repository / "release" / "model.pt")
    (repository / "pyproject.toml").write_text('[tool.bncheck]\ncheckpoint = "release/model.pt"\n')
    done = gate()
    assert done.returncode == 3
    assert done.stdout.startswith("INCONCLUSIVE release/model.pt")
    configure(repository, "require-batchnorm = false\n")
    assert gate().returncode == 0


def test_what_is_required_and_cannot_be_decided_is_inconclusive(repository: Path, gate: Gate) -> None:
    release(repository, "healthy.pt")
    configure(repository, 'model = "network.py:DigitNet"\nrequire = ["changed-in-evaluation"]\n')
    done = gate()
    assert done.returncode == 3
    assert "changed-in-evaluation is required and was not decided" in unwrapped(done.stdout)


def test_a_check_that_cannot_run_leaves_no_verdict(repository: Path, gate: Gate) -> None:
    release(repository, "healthy.pt")  # a state_dict, and no model is configured
    done = gate()
    assert done.returncode == 2
    assert "drift: " in done.stdout


def test_a_wrong_configuration_is_one_sentence(repository: Path, gate: Gate) -> None:
    configure(repository, 'fail_on = "error"\n')
    done = gate()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "unknown key 'fail_on'" in done.stderr
    assert "Did you mean fail-on?" in done.stderr


def test_two_hundred_checkpoints_keep_their_order(repository: Path, gate: Gate) -> None:
    (repository / "pyproject.toml").write_text("[tool.bncheck]\n")
    names = [f"release/{number:03}.pt" for number in range(200)]
    for number, name in enumerate(names):
        bad = number % 50 == 7
        shutil.copy(SAMPLES / ("negative-variance.pt" if bad else "healthy.pt"), repository / name)
    reports = {}
    for jobs in ("1", "2"):
        done = gate("release", "--format", "json", "--jobs", jobs)
        assert done.returncode == 1, done.stderr
        reports[jobs] = json.loads(done.stdout)["reports"]
        assert [report["subjects"] for report in reports[jobs]] == [[name] for name in names]
    assert reports["1"] == reports["2"]
    failed = [report["subjects"][0] for report in reports["1"] if report["verdict"] == "failed"]
    assert failed == [names[number] for number in (7, 57, 107, 157)]


def test_the_effective_configuration_and_its_schema_are_shown(repository: Path) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "bncheck", "config", *arguments]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout

    assert f'data = "validation"  # {repository / "pyproject.toml"}' in run()
    assert 'fail-on = "warning"  # default' in run()
    assert "checkpoint" in json.loads(run("--schema"))["properties"]


def test_a_defect_of_ours_is_one_report_and_with_debug_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only way to meet one is to make one: a rule that fails."""

    def fail(layer: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLES / "healthy.pt", tmp_path)
    broken = Rule("broken", Severity.ERROR, "", "Broken.", layer=fail)
    monkeypatch.setattr(gating, "CHECKS", {**gating.CHECKS, "inspect": (broken,)})
    [report] = gating.run({"checkpoint": ["healthy.pt"], "jobs": 1}).reports
    assert report.error is not None
    assert report.error.message == "bncheck itself failed on healthy.pt: RuntimeError('broken on purpose')"
    with pytest.raises(RuntimeError, match="broken on purpose"):
        gating.run({"checkpoint": ["healthy.pt"], "jobs": 1, "debug": True})
