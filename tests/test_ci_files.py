"""The files that put bncheck into pre-commit, GitHub Actions and GitLab: their syntax, and what they run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bncheck.version import __version__

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "sample_checkpoints"
FAILING = "negative-variance.pt"


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


# The console script of the environment that runs the tests, before any other.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def called(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "GITHUB_"))}
    return subprocess.run(
        command, cwd=cwd, env=without | {"PATH": PATH} | variables, capture_output=True, encoding="utf-8", check=False
    )


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-actions", "action.yml"),
        ("vendor.github-workflows", "examples/github-workflow.yml"),
        ("vendor.gitlab-ci", "examples/gitlab-ci.yml"),
    ],
    ids=["action", "workflow", "gitlab"],
)
def test_the_files_are_what_their_services_read(schema: str, path: str) -> None:
    result = called("check-jsonschema", "--builtin-schema", schema, path, cwd=ROOT)
    assert result.returncode == 0, result.stdout


# -- pre-commit


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the hook, in which `git` knows nobody and asks for nothing."""
    [hook] = loaded(".pre-commit-hooks.yaml")
    # As pre-commit has it after it has installed bncheck into an environment; here it is installed already.
    local = {"repos": [{"repo": "local", "hooks": [{**hook, "language": "system"}]}]}
    made = tmp_path / "repository"
    made.mkdir()
    assert called("git", "init", "--quiet", cwd=made).returncode == 0
    (made / ".pre-commit-config.yaml").write_text(yaml.safe_dump(local))
    return made


def run_hook(repository: Path) -> subprocess.CompletedProcess[str]:
    assert called("git", "add", "--all", cwd=repository).returncode == 0
    home = str(repository.parent / "home")
    return called(
        "pre-commit", "run", "--verbose", "--color=never", cwd=repository, PRE_COMMIT_HOME=home, HOME=home, CI=""
    )


def test_pre_commit_accepts_the_manifest() -> None:
    result = called("pre-commit", "validate-manifest", ".pre-commit-hooks.yaml", cwd=ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "name",
    ["model.pt", "a b/model.pth", "last.ckpt", "m.safetensors", "pytorch_model.bin", "program.pt2", "graph.onnx"],
)
def test_the_hook_takes_checkpoints_by_name(name: str) -> None:
    [hook] = loaded(".pre-commit-hooks.yaml")
    assert re.search(hook["files"], name)


@pytest.mark.parametrize("name", ["model.py", "model.pt.txt", "apt", "notes.md", "model.ptx", "pt"])
def test_the_hook_leaves_other_files_alone(name: str) -> None:
    [hook] = loaded(".pre-commit-hooks.yaml")
    assert not re.search(hook["files"], name)


def test_the_hook_passes_healthy_checkpoints_in_one_call(repository: Path) -> None:
    names = ["healthy.safetensors", "name with spaces.pt", "list[1].pt", *(f"step{index}.pt" for index in range(9))]
    for name in names:
        shutil.copy(SAMPLES / (name if name.startswith("healthy") else "healthy.pt"), repository / name)
    (repository / "notes.txt").write_text("no checkpoint")
    result = run_hook(repository)
    assert result.returncode == 0, result.stdout
    assert "12 inputs: 12 passed" in result.stdout


def test_the_hook_stops_a_commit_and_shows_why(repository: Path) -> None:
    shutil.copy(SAMPLES / "healthy.pt", repository)
    shutil.copy(SAMPLES / FAILING, repository)
    result = run_hook(repository)
    assert result.returncode == 1
    assert "exit code: 1" in result.stdout
    assert f"FAILED {FAILING}" in result.stdout
    assert "error negative-variance" in result.stdout


def test_the_hook_stops_a_commit_of_a_truncated_file(repository: Path) -> None:
    (repository / "model.pt").write_bytes((SAMPLES / "healthy.pt").read_bytes()[:-100])
    result = run_hook(repository)
    assert result.returncode == 1
    assert "exit code: 2" in result.stdout


# -- the GitHub Action


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = loaded("action.yml")["runs"]["steps"]
    return found


def test_no_input_is_written_into_a_script() -> None:
    """`${{ inputs.paths }}` inside `run` would be executed: it goes through the environment."""
    scripts = [step["run"] for step in steps() if "run" in step]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)
    assert all(step["shell"] == "bash" for step in steps() if "run" in step)


def test_every_input_is_used_and_every_one_that_is_used_exists() -> None:
    action = loaded("action.yml")
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(action["runs"])))
    assert set(action["inputs"]) == used
    assert all(described["description"] for described in action["inputs"].values())


def run_step(name: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the script of a step as a runner does."""
    [step] = [step for step in steps() if step.get("name") == name]
    script = cwd / "step.sh"
    script.write_text(step["run"])
    assert set(variables) >= set(step["env"])
    return called("bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script), cwd=cwd, **variables)


def check(cwd: Path, paths: str, args: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return run_step("Check the BatchNorm layers", cwd, PATHS=paths, ARGS=args, **variables)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for name in ("healthy.pt", FAILING):
        shutil.copy(SAMPLES / name, tmp_path)
    return tmp_path


def test_the_action_annotates_what_it_finds(release: Path) -> None:
    result = check(release, FAILING)
    assert result.returncode == 1
    assert result.stdout.startswith(f"::error file={FAILING},line=1,title=negative-variance::")
    assert check(release, "healthy.pt").returncode == 0


def test_the_action_writes_the_summary_of_the_job(release: Path) -> None:
    summary = release / "summary.md"
    summary.write_text("of an earlier step\n")
    check(release, FAILING, GITHUB_STEP_SUMMARY=str(summary))
    assert summary.read_text("utf-8").startswith("of an earlier step\n## bncheck inspect\n")


def test_the_action_takes_several_paths_and_options(release: Path) -> None:
    shutil.copy(SAMPLES / "healthy.pt", release / "name with spaces.pt")
    result = check(
        release, f"healthy.pt\r\n\n{FAILING}\nname with spaces.pt\n", "--fail-on never\n --select negative-*"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("bncheck inspect: 3 inputs: 3 passed\n")


@pytest.mark.parametrize(
    "text",
    ["$(touch pwned)", "`touch pwned`", "; touch pwned", '" ; touch pwned ; "', "' || touch pwned #", "&touch pwned"],
)
def test_an_input_is_never_run(release: Path, text: str) -> None:
    assert check(release, text).returncode == 2
    assert check(release, "healthy.pt", text).returncode == 2
    assert not (release / "pwned").exists()


def test_a_path_is_no_option(release: Path) -> None:
    result = check(release, "--help")
    assert result.returncode == 2
    assert "--help does not exist" in result.stdout


def test_a_pattern_among_the_options_is_not_expanded_by_the_shell(release: Path) -> None:
    assert check(release, "healthy.pt", "--layer *").returncode == 0


@pytest.mark.parametrize(
    ("version", "wanted"), [("", "/the/action"), ("1.2.3", "bncheck==1.2.3")], ids=["own", "named"]
)
def test_the_action_installs_itself_or_the_version_that_is_named(tmp_path: Path, version: str, wanted: str) -> None:
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    path = os.pathsep.join([str(stand_in.parent), os.environ["PATH"]])
    result = run_step("Install bncheck", tmp_path, VERSION=version, HERE="/the/action", PATH=path)
    assert result.returncode == 0
    assert result.stdout.splitlines()[:3] == ["-m", "pip", "install"]
    assert result.stdout.splitlines()[-1] == wanted


# -- the examples


def test_the_workflow_uses_the_action_as_it_is() -> None:
    [job] = loaded("examples/github-workflow.yml")["jobs"].values()
    checkout, step = job["steps"]
    assert checkout["with"] == {"lfs": True}
    assert step["uses"].endswith(f"/bncheck@v{__version__}")
    assert set(step["with"]) <= set(loaded("action.yml")["inputs"])


def test_the_gitlab_job_fails_with_its_findings_and_leaves_a_junit_report(tmp_path: Path) -> None:
    job = loaded("examples/gitlab-ci.yml")["bncheck"]
    (tmp_path / "release").mkdir()
    shutil.copy(SAMPLES / FAILING, tmp_path / "release")
    install, inspect = job["script"]
    assert install.startswith("pip install bncheck")
    assert called(*shlex.split(inspect), cwd=tmp_path).returncode == 1
    assert "negative-variance" in (tmp_path / job["artifacts"]["reports"]["junit"]).read_text("utf-8")
