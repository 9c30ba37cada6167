"""`bncheck diff` as a user meets it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import bncheck
from bncheck.cli import app
from bncheck.findings.report import Verdict


@pytest.fixture
def diff(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs the command in this process, in an empty folder, 80 columns wide."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["diff", *(str(argument) for argument in arguments)])

    return run


def network() -> nn.Sequential:
    """Easy numbers, so that the report is the same on every machine."""
    made = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        made[0].weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
        made[3].weight.fill_(0.5)
        made[3].bias.fill_(0.0)
        made(torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(4, 1, 1, 1))
    return made


def drifted(batches: int = 4) -> nn.Sequential:
    made = network()
    with torch.no_grad():
        for _ in range(batches):
            made(torch.tensor([4.0, 5.0, 6.0, 7.0]).reshape(4, 1, 1, 1))
    return made


def write(name: str, state: Any) -> None:
    torch.save(state, name)


def documents(result: Result) -> Any:
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def rounded(value: Any) -> Any:
    """Six digits of every number: the last ones differ by machine."""
    if isinstance(value, dict):
        return {key: rounded(held) for key, held in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def test_the_text_report(diff: Callable[..., Result]) -> None:
    write("before.pt", network().state_dict())
    write("after.pt", {"model": {f"module.{name}": held for name, held in drifted().state_dict().items()}})
    result = diff("before.pt", "after.pt")
    assert result.exit_code == 1
    assert result.stderr == ""
    assert result.stdout == snapshot("""\
FAILED before.pt -> after.pt: weights frozen, statistics moved in 1 of 1 layer (4 train-mode batches)
  torch.save · 1 BatchNorm2d layer · 1 error

  weights               equal in 1 layer
  statistics            changed in 1 layer
  num_batches_tracked   +4

  layer  weights  mean  at most  variance  at most
  1        equal   2.4      2.9      0.23     0.38  ██████████
  (shift of the mean in standard deviations, of the variance as half its
  logarithm; median and maximum of the channels)

  error frozen-but-drifting
    model: 1
    the weights are equal in every bit, but 4 batches in train mode moved the
    statistics: the means by 2.361 standard deviations (median of the channels;
    at most 2.94), the standard deviations by a factor of 1.261
    fix: Copy running_mean, running_var and num_batches_tracked of the first
         checkpoint back: the weights are equal, so that nothing is lost. Then
         call eval() on the frozen part after every train().

  note names of after.pt are read without module.

  not decided: settings-changed: the file does not hold eps
  not decided: settings-changed: the file does not hold momentum
""")


def test_the_json_report(diff: Callable[..., Result]) -> None:
    write("before.pt", network())
    write("after.pt", drifted())
    result = diff("before.pt", "after.pt", "--format", "json")
    document = documents(result)
    [report] = document["reports"]
    assert (document["command"], document["exit_code"], result.exit_code) == ("diff", 1, 1)
    assert (report["subjects"], report["verdict"]) == (["before.pt", "after.pt"], "failed")
    [finding] = report["findings"]
    assert (finding["rule"], finding["layer"], finding["measured"]["train_mode_batches"]) == (
        "frozen-but-drifting",
        "1",
        4,
    )
    assert rounded(report["measurements"]) == snapshot(
        {
            "pair": {"layers": 1, "same_parameters": 1, "same_statistics": 0, "formats": ["torch.save", "torch.save"]},
            "layers": {
                "1": {
                    "name_before": "1",
                    "group_before": "",
                    "same_parameters": True,
                    "fed_by": ["0.weight"],
                    "same_statistics": False,
                    "channels": 2,
                    "channels_not_finite": 0,
                    "mean_shift": {"median": 2.36065, "max": 2.93986, "channels_moved": 2},
                    "variance_shift": {"median": 0.232005, "max": 0.375589, "channels_moved": 2},
                    "counter_change": 4,
                    "settings": {},
                }
            },
        }
    )


def test_quiet_says_what_happened_in_one_line(diff: Callable[..., Result]) -> None:
    write("before.pt", network())
    write("after.pt", drifted(1))
    result = diff("before.pt", "after.pt", "--quiet")
    assert result.stdout == (
        "FAILED before.pt -> after.pt: weights frozen, statistics moved in 1 of 1 layer (1 train-mode batch)\n"
    )


def test_nothing_happened(diff: Callable[..., Result]) -> None:
    write("before.pt", network())
    save_file(network().state_dict(), "after.safetensors")
    result = diff("before.pt", "after.safetensors", "-q")
    assert (result.exit_code, result.stdout) == (
        0,
        "PASSED before.pt -> after.safetensors: 1 layer, equal weights and statistics\n",
    )


@pytest.mark.parametrize(("option", "code"), [("error", 1), ("warning", 1), ("note", 1), ("never", 0)])
def test_fail_on(option: str, code: int, diff: Callable[..., Result]) -> None:
    write("before.pt", network())
    write("after.pt", drifted())
    assert diff("before.pt", "after.pt", "--fail-on", option).exit_code == code


def test_rules_are_selected_and_ignored(diff: Callable[..., Result]) -> None:
    write("before.pt", network())
    write("after.pt", drifted())
    assert diff("before.pt", "after.pt", "--ignore", "frozen-*").exit_code == 0
    assert diff("before.pt", "after.pt", "--select", "ranks-disagree").exit_code == 0
    result = diff("before.pt", "after.pt", "--select", "dead-channels")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no such rule" in result.stderr


def test_several_files_are_compared_with_the_first(diff: Callable[..., Result]) -> None:
    Path("ranks").mkdir()
    for rank in range(3):
        state = network().state_dict()
        state["1.running_mean"] += rank
        write(f"ranks/rank{rank}.pt", state)
    result = diff("ranks/rank0.pt", "ranks", "--format", "json")
    document = documents(result)
    assert [["ranks/rank0.pt", f"ranks/rank{rank}.pt"] for rank in (1, 2)] == [
        report["subjects"] for report in document["reports"]
    ]
    assert {"ranks-disagree"} == {one["rule"] for report in document["reports"] for one in report["findings"]}
    assert "2 inputs: 2 failed\n" in diff("ranks/rank0.pt", "ranks/rank1.pt", "ranks/rank2.pt").stdout


def test_groups_and_maps_are_chosen(diff: Callable[..., Result]) -> None:
    write("before.pt", {"model": network().state_dict(), "ema": drifted().state_dict()})
    write("after.pt", {"a.": 0, "net": {f"left.{name}": held for name, held in network().state_dict().items()}})
    assert diff("before.pt", "after.pt").exit_code == 0
    assert diff("before.pt", "after.pt", "--before-group", "ema", "--fail-on", "note").exit_code == 1
    assert diff("before.pt", "after.pt", "--map", "=left.").exit_code == 0
    assert diff("before.pt", "after.pt", "--after-group", "n*").exit_code == 0


BAD: dict[str, tuple[tuple[str, ...], str, str]] = {
    "one file only": (("before.pt",), "Missing argument", ""),
    "the first is missing": (("none.pt", "before.pt"), "none.pt does not exist", "Check the path"),
    "the second is missing": (("before.pt", "none.pt"), "none.pt does not exist", "Check the path"),
    "damaged": (("before.pt", "cut.pt"), "cut.pt", ""),
    "no layer in common": (
        ("before.pt", "other.pt"),
        "before.pt and other.pt have no BatchNorm layer in common",
        "Name the prefixes with --map FROM=TO",
    ),
    "a group that is not there": (
        ("before.pt", "before.pt", "--before-group", "ema"),
        "--before-group ema fits no group of before.pt",
        "Its groups: ''.",
    ),
    "a map without a sign": (("before.pt", "before.pt", "--map", "x"), "--map x has no '='", "Write --map FROM=TO"),
    "a folder of several as the first": ((".", "before.pt"), ". holds 4 checkpoints", "Give one of them"),
    "no model": (("before.pt", "text.pt"), "text.pt", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_a_hint(name: str, diff: Callable[..., Result]) -> None:
    write("before.pt", network().state_dict())
    write("other.pt", nn.Sequential(nn.BatchNorm2d(7)).state_dict())
    Path("cut.pt").write_bytes(Path("before.pt").read_bytes()[:-100])
    Path("text.pt").write_text("no model")
    arguments, message, hint = BAD[name]
    result = diff(*arguments)
    said = " ".join((result.stdout + result.stderr).split())
    assert result.exit_code == 2
    assert message in said
    assert hint in said
    assert "Traceback" not in said


def test_one_unreadable_file_does_not_hide_the_others(diff: Callable[..., Result]) -> None:
    write("a.pt", network())
    write("b.pt", drifted())
    result = diff("a.pt", "none.pt", "b.pt")
    assert result.exit_code == 2
    assert "frozen-but-drifting" in result.stdout
    assert "2 inputs: 1 failed, 1 not read\n" in result.stdout


def test_without_batchnorm_nothing_is_decided(diff: Callable[..., Result]) -> None:
    write("a.pt", nn.Linear(2, 2).state_dict())
    write("b.pt", nn.Linear(2, 2).state_dict())
    result = diff("a.pt", "b.pt")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (3, "UNDECIDED a.pt -> b.pt: no BatchNorm layer")


@pytest.mark.parametrize("format_", ["text", "json", "sarif", "junit", "github", "markdown"])
def test_every_format_carries_the_finding(format_: str, diff: Callable[..., Result]) -> None:
    write("before.pt", network())
    write("after.pt", drifted())
    result = diff("before.pt", "after.pt", "--format", format_, "--output", "report")
    assert result.exit_code == 1
    assert "frozen-but-drifting" in Path("report").read_text()


def test_torch_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("before.pt", network().state_dict())
    write("after.pt", drifted().state_dict())
    code = (
        "import sys; from bncheck.cli import main; sys.argv = ['bncheck', 'diff', 'before.pt', 'after.pt', '-q']\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FAILED before.pt -> after.pt")


def test_the_function_says_the_same_of_files_and_live_modules(diff: Callable[..., Result]) -> None:
    write("before.pt", network())
    write("after.pt", drifted())
    of_files = bncheck.diff("before.pt", Path("after.pt"))
    net = drifted()
    held = copy.deepcopy(net.state_dict())
    of_modules = bncheck.diff(network(), net)
    assert (Verdict.FAILED, of_files.findings) == (of_modules.verdict, of_modules.findings)
    assert all(torch.equal(value, held[name]) for name, value in net.state_dict().items())
    assert Verdict.PASSED is bncheck.diff("before.pt", net, ignore=["frozen-but-drifting"]).verdict
    joint = nn.ModuleDict({"left": network(), "right": drifted()})
    assert [one.rule for one in bncheck.diff(network(), joint).findings] == []
    found = bncheck.diff(network(), joint, map={"": "right."}).findings
    assert [(one.rule, one.layer) for one in found] == [("frozen-but-drifting", "right.1")]
