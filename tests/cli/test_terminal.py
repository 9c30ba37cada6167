"""Colors, width, progress: what the environment asks for, on a terminal, through a pipe, and in the log of a CI."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="Windows has no such terminals")

SAMPLES = Path(__file__).parents[2] / "sample_checkpoints"
FAILING = "negative-variance.pt"
COLOR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-9]|4[0-9]|9[0-7])[0-9;]*m")
# Whatever the machine that runs the tests says of these.
UNSET = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CI", "COLORTERM")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in (FAILING, "healthy.pt", "healthy_module.pt"):
        shutil.copy(SAMPLES / name, tmp_path)
    return tmp_path


def environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in UNSET} | variables


def piped(here: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bncheck", "inspect", *arguments]
    return subprocess.run(
        command, cwd=here, env=environment(**variables), capture_output=True, encoding="utf-8", check=False
    )


def on_terminal(here: Path, *arguments: str, **variables: str) -> str:
    """What a terminal of 80 columns is sent, stdout and stderr as they come."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "bncheck", "inspect", *arguments]
    variables = {"TERM": "xterm-256color"} | variables
    with subprocess.Popen(
        command, cwd=here, env=environment(**variables), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        sent = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            sent += part
        process.wait()
    os.close(ours)
    return sent.decode("utf-8")


# -- colors


def test_a_terminal_gets_colors(here: Path) -> None:
    assert COLOR.search(on_terminal(here, FAILING))


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [((), {"NO_COLOR": "1"}), (("--no-color",), {}), ((), {"TERM": "dumb"})],
    ids=["NO_COLOR", "--no-color", "TERM=dumb"],
)
def test_a_terminal_gets_none_where_they_are_unwanted(
    here: Path, arguments: tuple[str, ...], variables: dict[str, str]
) -> None:
    shown = on_terminal(here, FAILING, *arguments, **variables)
    assert "FAILED" in shown
    assert not COLOR.search(shown)


def test_an_empty_no_color_does_not_count(here: Path) -> None:
    assert COLOR.search(on_terminal(here, FAILING, NO_COLOR=""))


def test_a_pipe_gets_plain_text(here: Path) -> None:
    assert "\x1b" not in piped(here, FAILING).stdout


def test_force_color_colors_a_pipe(here: Path) -> None:
    assert COLOR.search(piped(here, FAILING, FORCE_COLOR="1").stdout)


def test_no_color_wins_over_force_color(here: Path) -> None:
    assert not COLOR.search(piped(here, FAILING, FORCE_COLOR="1", NO_COLOR="1").stdout)
    assert not COLOR.search(piped(here, FAILING, "--no-color", FORCE_COLOR="1").stdout)


@pytest.mark.parametrize("format_", ["json", "sarif", "junit", "github", "markdown"])
def test_force_color_leaves_what_machines_read_alone(here: Path, format_: str) -> None:
    plain = piped(here, FAILING, "--format", format_)
    assert plain.stdout == piped(here, FAILING, "--format", format_, FORCE_COLOR="1", COLUMNS="50").stdout
    assert "\x1b" not in plain.stdout


def test_force_color_leaves_files_alone(here: Path) -> None:
    piped(here, FAILING, "--output", "text=report.txt", FORCE_COLOR="1")
    assert "\x1b" not in (here / "report.txt").read_text("utf-8")


# -- width


@pytest.mark.parametrize(("columns", "name"), [(60, "healthy_module.pt"), (120, FAILING)])
def test_columns_sets_the_width(here: Path, columns: int, name: str) -> None:
    lines = piped(here, name, COLUMNS=str(columns)).stdout.splitlines()
    assert columns * 0.7 < max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", ["", "0", "-5", "wide"])
def test_a_width_that_is_none_does_not_count(here: Path, columns: str) -> None:
    assert piped(here, "healthy_module.pt").stdout == piped(here, "healthy_module.pt", COLUMNS=columns).stdout


def test_the_option_wins_over_columns(here: Path) -> None:
    lines = piped(here, "healthy_module.pt", "--width", "60", COLUMNS="120").stdout.splitlines()
    assert max(map(len, lines)) <= 60


# -- progress


@pytest.fixture
def many(here: Path) -> Path:
    """As many files as make progress worth showing."""
    for index in range(8):
        shutil.copy(SAMPLES / "healthy.pt", here / f"step{index}.pt")
    return here


def test_somebody_who_watches_sees_progress(many: Path) -> None:
    assert "checkpoints" in on_terminal(many, ".", "--quiet")


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"CI": "true"}], ids=str)
def test_a_log_gets_no_progress(many: Path, variables: dict[str, str]) -> None:
    assert piped(many, ".", "--quiet", **variables).stderr == ""


def test_the_log_of_a_ci_that_pretends_to_be_a_terminal_gets_no_progress(many: Path) -> None:
    """Buildkite and Travis run a job in a pseudo-terminal, whose output nobody watches."""
    assert "checkpoints" not in on_terminal(many, ".", "--quiet", CI="true")


# -- quiet


def test_quiet_prints_the_verdict_line_only(here: Path) -> None:
    result = piped(here, FAILING, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (1, f"FAILED {FAILING}: 5 errors\n", "")


def test_quiet_prints_a_line_for_each_input_and_the_sum(here: Path) -> None:
    (here / "broken.pt").write_bytes((here / "healthy.pt").read_bytes()[:1000])
    result = piped(here, "--quiet", "healthy.pt", FAILING, "broken.pt")
    passed, failed, error, total = result.stdout.splitlines()
    assert (passed, failed) == ("PASSED healthy.pt: no findings", f"FAILED {FAILING}: 5 errors")
    assert error.startswith("ERROR broken.pt ")
    assert total == "3 inputs: 1 passed, 1 failed, 1 not read"
    assert (result.returncode, result.stderr) == (2, "")


# -- the summary of a job on GitHub


def test_github_gets_annotations_and_a_summary_of_the_job(here: Path) -> None:
    (here / "summary.md").write_text("before\n")
    result = piped(here, FAILING, "--format", "github", GITHUB_STEP_SUMMARY=str(here / "summary.md"))
    assert result.returncode == 1
    assert result.stdout.startswith("::error file=")
    summary = (here / "summary.md").read_text("utf-8")
    assert summary.startswith("before\n")
    assert FAILING in summary


def test_a_summary_that_cannot_be_written_does_not_change_the_verdict(here: Path) -> None:
    result = piped(here, FAILING, "--format", "github", GITHUB_STEP_SUMMARY=str(here / "absent" / "summary.md"))
    assert result.returncode == 1
    assert result.stdout.startswith("::error file=")
