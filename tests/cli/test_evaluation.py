"""`drift` and `repeat` as a user meets them: samples, exit codes, streams, options, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inline_snapshot import snapshot
from PIL import Image
from typer.testing import CliRunner, Result

from bncheck.cli import app
from sample_checkpoints import make
from sample_checkpoints.network import LAYERS

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_checkpoints"
DIGITS = SAMPLES / "digits"
NETWORK = f"{SAMPLES / 'network.py'}:DigitNet"
COMMANDS = ("drift", "repeat")
# Pickled modules call their classes sample_checkpoints.network.
HERE = ("--python-path", ROOT, "--device", "cpu")
MODULE = (SAMPLES / "healthy_module.pt", "--trust-pickle", *HERE)

Run = Callable[..., Result]


@pytest.fixture
def bncheck(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process, 80 columns wide."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report_of(result: Result) -> Any:
    assert result.exit_code in (0, 1, 3), result.stderr
    document = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    [report] = document["reports"]
    return report


def found(result: Result) -> list[tuple[str, str, str | None]]:
    return sorted(((f["rule"], f["severity"], f["layer"]) for f in report_of(result)["findings"]), key=str)


def refused(result: Result) -> tuple[str, str]:
    """The message and the hint, and nothing else."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message, hint = result.stderr.rstrip("\n").split("\n")
    return message.removeprefix("error: "), hint.removeprefix(" hint: ")


# -- the samples

RUN = {rule: defect for rule, defect in make.DEFECTS.items() if hasattr(defect, "COMMAND")}


@pytest.mark.parametrize("rule", sorted(RUN))
def test_a_sample_shows_when_it_is_run_what_it_was_made_for_and_nothing_else(
    rule: str, bncheck: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where the options of the samples name their files from
    defect = RUN[rule]
    prepared = ("--grayscale", "--mean", 0.5, "--std", 0.5)
    for options in (prepared, ()):  # given, and read from config.json beside the sample
        result = bncheck(
            defect.COMMAND, SAMPLES / f"{rule}.pt", *defect.OPTIONS, "--data", DIGITS, *options, "-f", "json", *HERE
        )
        assert sorted(defect.RUNS, key=str) == found(result)
    assert rule in {name for name, _, _ in defect.RUNS}


HEALTHY: dict[str, tuple[object, ...]] = {
    "module": MODULE,
    "state_dict": (SAMPLES / "healthy.pt", "--model", NETWORK),
    "safetensors": (SAMPLES / "healthy.safetensors", "--model", NETWORK),
    "numbers of a module": (SAMPLES / "healthy_module.pt", "--model", NETWORK),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_healthy_sample(name: str, command: str, bncheck: Run) -> None:
    result = bncheck(command, *HEALTHY[name], "--data", DIGITS, "--fail-on", "note", "-f", "json")
    report = report_of(result)
    assert (result.exit_code, report["findings"]) == (0, [])
    undecided = [(open_["rule"], open_["reason"]) for open_ in report["undecided"]]
    unwatched = ("changed-in-evaluation", "no evaluation of yours was watched; give --evaluator")
    assert undecided == ([] if name == "module" or command == "repeat" else [unwatched])
    assert report["measurements"]["data"]["from"] == {"size": "config.json", "mean": "config.json"}


def test_the_healthy_network_reads_the_digits_and_a_pass_in_train_mode_costs_little(bncheck: Run) -> None:
    numbers = report_of(bncheck("drift", *MODULE, "--data", DIGITS, "-f", "json"))["measurements"]
    assert (numbers["images"], numbers["batches"], numbers["passes"]) == (360, 12, 3)
    assert numbers["train_mode"]["accuracy_before"] > 0.97
    assert numbers["fit"]["accuracy_after"] > 0.97
    assert list(numbers["train_mode"]["by_batches"]) == ["1", "2", "4", "8"]
    assert [layer["called"] for layer in numbers["layers"].values()] == [12] * 5


@pytest.mark.parametrize(
    ("options", "severity", "exit_code"),
    [((), "warning", 0), (("--fail-on", "warning"), "warning", 1), (("--in-distribution",), "error", 1)],
    ids=["unknown data", "warnings fail", "vouched for"],
)
def test_a_misfit_is_an_error_only_with_data_that_the_user_vouches_for(
    options: tuple[str, ...], severity: str, exit_code: int, bncheck: Run
) -> None:
    path = SAMPLES / "statistics-do-not-fit-data.pt"
    result = bncheck("drift", path, "--model", NETWORK, "--data", DIGITS, "-f", "json", *options)
    assert result.exit_code == exit_code
    assert severity in {severity for _, severity, _ in found(result)}


def test_channels_are_written_on_request(bncheck: Run) -> None:
    plain, full = (
        report_of(bncheck("drift", *MODULE, "--data", DIGITS, "-f", "json", "--limit", 40, *options))["measurements"]
        for options in ((), ("--channels",))
    )
    assert "channels" not in plain["layers"]["stem.1"]
    channels = full["layers"]["stem.1"]["channels"]
    held = torch.load(SAMPLES / "healthy.pt", weights_only=True)
    np.testing.assert_allclose(channels["running_mean"], held["stem.1.running_mean"].numpy())
    assert {len(values) for values in channels.values()} == {12}


def test_the_report_is_the_same_twice(bncheck: Run) -> None:
    for command in COMMANDS:
        one, other = (bncheck(command, *MODULE, "--data", DIGITS, "-f", "json", "--limit", 80) for _ in range(2))
        assert one.stdout == other.stdout


# -- the evaluator, by name

EVALUATION = """
import torch

@torch.no_grad()
def sound(model, batches):
    print("evaluating")
    model.eval()
    right = [(model(images).argmax(1) == labels).double().mean() for images, labels in batches]
    return {"accuracy": float(sum(right) / len(right))}

@torch.no_grad()
def careless(model, batches):
    for images, labels in batches:
        model(images)

def own_data(model):
    model.eval()(torch.zeros(4, 1, 8, 8))

def broken(model, batches):
    raise ValueError("no labels\\nanywhere")
"""


@pytest.mark.parametrize("form", ["metrics:{}", "metrics.py:{}"])
def test_an_evaluation_is_named_by_module_or_file(form: str, here: Path, bncheck: Run) -> None:
    (here / "metrics.py").write_text(EVALUATION)
    numbers = (SAMPLES / "healthy.pt", "--model", NETWORK, "--device", "cpu", "-f", "json")
    state = (*numbers, "--data", DIGITS)
    for name in ("sound", "own_data", "careless"):
        moved = LAYERS if name == "careless" else ()
        result = bncheck("drift", *state, "--evaluator", form.format(name))
        assert [("changed-in-evaluation", "error", layer) for layer in moved] == found(result)
        assert report_of(result)["undecided"] == []
        assert result.stderr.startswith("evaluating" if name == "sound" else "")
    metrics = report_of(bncheck("repeat", *state, "--evaluator", form.format("sound")))["measurements"]["repeat"][
        "metrics"
    ]
    assert metrics[0] == metrics[1]
    assert metrics[0]["accuracy"] > 0.97
    message, _ = refused(bncheck("drift", *state, "--evaluator", form.format("broken")))
    assert message == "the evaluation 'broken' fails: ValueError: no labels"


# -- what is wrong is said in a sentence


def gray(folder: Path, *sizes: tuple[int, int], mode: str = "L") -> Path:
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new(mode, size).save(folder / f"{number}.png")
    return folder


def broken_image(folder: Path) -> Path:
    gray(folder, *[(8, 8)] * 9)
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:40])
    return folder


def alone(folder: Path) -> tuple[object, ...]:
    """The healthy module without the configuration of its preprocessing beside it."""
    return (shutil.copy(MODULE[0], folder), *MODULE[1:])  # type: ignore[call-overload]


MISTAKES: dict[str, tuple[Callable[[Path], list[object]], str, str]] = {
    "no model": (lambda _: [], "no model is named", "checkpoint = ... under [tool.bncheck]"),
    "no data": (lambda _: MODULE[:2], "no data is named", "--data DIR"),
    "no such model": (lambda _: ["nope.pt", "--data", DIGITS], "nope.pt does not exist", "Check the path"),
    "no such data": (lambda _: [*MODULE, "--data", "nope"], "--data nope does not exist", "A folder of images"),
    "a state_dict alone": (
        lambda _: [SAMPLES / "healthy.pt", "--data", DIGITS],
        "holds a state_dict, which is numbers without a network",
        "--model module:callable",
    ),
    "a module that is not trusted": (
        lambda _: [MODULE[0], "--data", DIGITS],
        "is a pickled module: loading it runs code that the file names (sample_checkpoints.network.DigitNet",
        "--trust-pickle",
    ),
    "another network": (
        lambda _: [SAMPLES / "healthy.pt", "--data", DIGITS, "--model", NETWORK, "--model-arg", "channels=8"],
        "does not fit the model: stem.0.weight is (12, 1, 3, 3) in the file and (8, 1, 3, 3) in the model",
        "the same --model-arg",
    ),
    "an empty folder": (lambda here: [*MODULE, "--data", here], "is empty", "A folder of images"),
    "a folder without images": (
        lambda here: [*MODULE, "--data", (here / "text.txt").write_text("") or here],
        "holds no images and no arrays",
        "A folder of images",
    ),
    "a broken image": (
        lambda here: [*MODULE, "--data", broken_image(here / "x"), "--grayscale"],
        "image '4.png' cannot be read",
        "--skip-unreadable",
    ),
    "images of different sizes": (
        lambda here: [*alone(here), "--data", gray(here / "x", (8, 8), (9, 8)), "--grayscale"],
        "images of different sizes: '0.png' has 8x8 and '1.png' has 8x9 pixels",
        "--resize N --size HxW",
    ),
    "images of three channels": (
        lambda here: [*alone(here), "--data", gray(here / "x", (8, 8), mode="RGB")],
        "the model fails on a batch of (1, 3, 8, 8): RuntimeError: Given groups=1",
        "what its forward takes",
    ),
    "a size that is none": (lambda _: [*MODULE, "--data", DIGITS, "--size", "0x3"], "--size 0x3 is no size", "224x160"),
    "a mean that is none": (
        lambda _: [*MODULE, "--data", DIGITS, "--mean", "gray"],
        "--mean gray are no numbers",
        "0.485",
    ),
    "an evaluator that is not there": (
        lambda _: [*MODULE, "--data", DIGITS, "--evaluator", "nope:f"],
        "--evaluator nope:f cannot be loaded: ModuleNotFoundError",
        "--python-path",
    ),
    "an evaluator without a name": (
        lambda _: [*MODULE, "--data", DIGITS, "--evaluator", "nope"],
        "--evaluator nope does not name a callable",
        "module:callable",
    ),
    "a device that is not there": (
        lambda _: [*MODULE[:-1], "cuda:99", "--data", DIGITS],
        "--device cuda:99 is not available here",
        "--device cpu",
    ),
    "a rule of another command": (
        lambda _: [*MODULE, "--data", DIGITS, "--select", "negative-variance"],
        "--select negative-variance: there is no such rule",
        "",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_a_sentence_with_a_hint(name: str, command: str, here: Path, bncheck: Run) -> None:
    arguments, message, hint = MISTAKES[name]
    told, advice = refused(bncheck(command, *arguments(here)))
    assert message in told
    assert hint in advice


@pytest.mark.parametrize("command", COMMANDS)
def test_images_that_cannot_be_read_are_left_out_on_request_and_listed(command: str, here: Path, bncheck: Run) -> None:
    folder = broken_image(here / "x")
    options = ("--data", folder, "--grayscale", "--skip-unreadable", "-f", "json")
    report = report_of(bncheck(command, *MODULE, *options))
    assert report["measurements"]["images"] == 8
    assert report["measurements"]["data"]["skipped"] == ["4.png"]
    assert "left out as unreadable: 1 image (4.png)" in report["notes"]


@pytest.mark.parametrize("command", COMMANDS)
def test_nan_in_the_data_is_said(command: str, here: Path, bncheck: Run) -> None:
    values = np.random.default_rng(0).normal(size=(70, 1, 8, 8)).astype(np.float32)
    values[[3, 40], 0, 2, 2] = np.nan
    np.save(here / "data.npy", values)
    report = report_of(bncheck(command, *MODULE, "--data", here / "data.npy", "-f", "json"))
    assert report["measurements"]["data"]["non_finite"] == 2
    assert "NaN or infinity in the inputs of 2 samples" in report["notes"]
    if command == "repeat":
        [finding] = report["findings"]
        assert (finding["rule"], finding["measured"]["samples"]) == ("output-not-finite", 2)
        assert "so is the input already" in finding["message"]


# -- the configuration

PYPROJECT = """
[tool.bncheck]
checkpoint = "release/model.pt"
{more}
"""


def project(here: Path, sample: str, more: str = "") -> Path:
    (here / "release").mkdir()
    shutil.copy(SAMPLES / sample, here / "release" / "model.pt")
    shutil.copy(SAMPLES / "config.json", here / "release")
    (here / "pyproject.toml").write_text(PYPROJECT.format(more=more))
    return here


@pytest.mark.parametrize("command", COMMANDS)
def test_the_model_of_the_configuration_is_run_from_any_folder_of_the_project(
    command: str, here: Path, bncheck: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(here, "healthy_module.pt")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    result = bncheck(command, "--data", DIGITS, "--trust-pickle", *HERE, "-f", "json")
    assert report_of(result)["subjects"] == [str(here / "release" / "model.pt")]
    named = bncheck(command, *MODULE, "--data", DIGITS, "-f", "json")
    assert report_of(named)["subjects"] == [str(SAMPLES / "healthy_module.pt")]


def test_with_a_network_in_the_configuration_the_data_are_all_that_is_left_to_say(here: Path, bncheck: Run) -> None:
    project(
        here, "healthy.pt", f'model = "{NETWORK}"\nmodel-args = {{ channels = 12 }}\nevaluator = "metrics.py:sound"'
    )
    (here / "metrics.py").write_text(EVALUATION)
    result = bncheck("drift", "--data", DIGITS, "--device", "cpu", "-f", "json")
    assert found(result) == []
    assert report_of(result)["undecided"] == []
    # What the configuration says belongs to its checkpoint.
    message, _ = refused(bncheck("drift", SAMPLES / "healthy.pt", "--data", DIGITS))
    assert "numbers without a network" in message


# -- text


def test_the_text_report_of_drift(bncheck: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLES)
    result = bncheck("drift", "changed-in-evaluation.pt", "--data", "digits", "--trust-pickle", *HERE)
    assert result.exit_code == 1
    assert result.stderr == ""
    first, *rest = result.stdout.splitlines()
    assert first == ("FAILED changed-in-evaluation.pt: evaluation rewrites the statistics of 3 of 5 BatchNorm layers")
    text = "\n".join(rest)
    assert "moved in evaluation   3 of 5 layers (as shipped); in train mode: stem.1," in text
    assert "a pass in train mode  would change" in text
    assert "  layer" in text
    assert "error changed-in-evaluation" in text


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("rule", ["changed-in-evaluation", "depends-on-batch", "statistics-do-not-fit-data"])
def test_no_line_of_the_text_is_wider_than_the_terminal_but_the_first(
    rule: str, width: int, bncheck: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    defect = RUN[rule]
    arguments = (
        defect.COMMAND,
        f"sample_checkpoints/{rule}.pt",
        *defect.OPTIONS,
        "--data",
        "sample_checkpoints/digits",
    )
    result = bncheck(*arguments, "--limit", 64, "--width", width, "--device", "cpu")
    room = max(width, 44)  # labels take 24 columns, and what they stand for has 20 at least
    assert [line for line in result.stdout.splitlines()[1:] if len(line) > room] == []
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_quiet_is_one_line(bncheck: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLES)
    options = ("--data", "digits", "--trust-pickle", *HERE, "--quiet")
    assert [bncheck(command, "healthy_module.pt", *options).stdout for command in COMMANDS] == snapshot(
        [
            "PASSED healthy_module.pt: evaluation moves no statistics, they fit the data\n",
            "PASSED healthy_module.pt: runs agree, batches do not matter\n",
        ]
    )


def test_selected_rules_alone_are_asked(bncheck: Run) -> None:
    path = SAMPLES / "changed-in-evaluation.pt"
    options = ("--data", DIGITS, "--trust-pickle", *HERE, "-f", "json", "--limit", 80)
    selected = report_of(bncheck("drift", path, *options, "--select", "statistics-*"))
    assert (selected["rules"], selected["findings"]) == (["statistics-do-not-fit-data"], [])
    ignored = report_of(bncheck("drift", path, *options, "--ignore", "changed-in-evaluation"))
    assert ignored["rules"] == ["statistics-do-not-fit-data"]


# -- as a process


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error::UserWarning", "-m", "bncheck", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment, **options
    )


@pytest.mark.slow
def test_a_reader_that_stops_reading_does_not_change_the_verdict() -> None:
    path = SAMPLES / "changed-in-evaluation.pt"
    with process("drift", path, "--data", DIGITS, "--trust-pickle", "--limit", 64) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 1


SLOW = """
import sys, time, torch

def batches():
    print("started", file=sys.stderr, flush=True)
    while True:
        yield torch.zeros(4, 1, 8, 8)
        time.sleep(0.05)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_is_neither_a_verdict_nor_a_traceback(command: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    running = process(command, MODULE[0], "--trust-pickle", "--data", f"{tmp_path / 'slow.py'}:batches")
    assert running.stderr is not None
    assert running.stderr.readline() == "started\n"
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode not in (0, 1, 3)
    assert out == ""
    assert "Traceback" not in err
