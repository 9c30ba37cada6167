"""`bncheck recalibrate` as a user meets it: a new file, a report on it, and the input as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner, Result

import bncheck as library
from bncheck.cli import app
from bncheck.errors import BncheckError
from bncheck.findings.measurements import as_json
from bncheck.findings.report import Verdict
from sample_checkpoints import make, training
from sample_checkpoints.network import LAYERS, DigitNet

SAMPLES = Path(make.__file__).parent
MODEL = ("--model", SAMPLES / "network.py:DigitNet")
DATA = ("--data", SAMPLES / "digits", "--grayscale", "--mean", "0.5", "--std", "0.5", "--device", "cpu")
RESET = SAMPLES / "reset-statistics.pt"
MEASURED = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def recalibrate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command in this process, 80 columns wide."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["recalibrate", *map(str, arguments)])

    return run


def accuracy(path: Path) -> float:
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    network = DigitNet()
    network.load_state_dict(state)
    return training.accuracy(network.eval(), training.read_digits(SAMPLES / "digits"))


def recalibration(result: Result) -> Any:
    return json.loads(result.stdout)["reports"][0]["measurements"]["recalibration"]


@pytest.mark.parametrize("method", ["train", "sequential"])
def test_a_network_without_its_statistics_reads_the_digits_again(
    method: str, tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    before = RESET.read_bytes()
    new = tmp_path / "new.pt"
    result = recalibrate(RESET, *MODEL, *DATA, "--output", new, "--method", method, "--format", "json")
    assert result.exit_code == 0, result.output
    assert before == RESET.read_bytes()
    assert accuracy(RESET) < 0.5
    assert accuracy(new) > accuracy(SAMPLES / "healthy.pt") - 0.005
    numbers = recalibration(result)
    assert numbers["before"]["accuracy_before"] == pytest.approx(accuracy(RESET))
    assert numbers["after"]["accuracy_before"] == pytest.approx(accuracy(new))
    assert numbers["before"]["predictions_changed"] > 0.5
    assert numbers["after"]["predictions_changed"] < 0.01
    assert sorted(LAYERS) == sorted(numbers["layers"])
    assert numbers["layers"]["stem.1"]["num_batches_tracked"] == {"before": 0, "after": 12}
    assert (method, "within-batch", 360, 12) == tuple(
        numbers[key] for key in ("method", "variance", "images", "batches")
    )


def test_the_report_says_what_was_written_and_what_it_does(tmp_path: Path, recalibrate: Callable[..., Result]) -> None:
    new = tmp_path / "new.pt"
    result = recalibrate(RESET, *MODEL, *DATA, "--output", new, "--width", 200)
    assert f"PASSED {new}: has the statistics of the data in 5 BatchNorm layers\n" in result.stdout
    assert "within-batch, what running_var follows in training\n" in result.stdout
    assert "  before                accuracy " in result.stdout
    assert "  after                 accuracy " in result.stdout
    assert "0% of the predictions differ from those with the data's statistics" in result.stdout
    assert "0 -> 12" in result.stdout


def test_a_dry_run_measures_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recalibrate: Callable[..., Result]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = recalibrate(RESET, *MODEL, *DATA, "--dry-run", "--format", "json")
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path) == []
    numbers = recalibration(result)
    assert numbers["target"] is None
    assert numbers["after"]["accuracy_before"] > 0.97
    shown = recalibrate(RESET, *MODEL, *DATA, "--dry-run")
    assert "none: this was a dry run" in shown.stdout


def test_a_pickled_module_is_run_only_if_trusted_and_stays_what_it_was(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    module = make.reset(torch.load(SAMPLES / "healthy_module.pt", weights_only=False))
    torch.save(module, tmp_path / "a.pt")
    refused = recalibrate(tmp_path / "a.pt", *DATA, "--output", tmp_path / "b.pt")
    assert refused.exit_code == 2
    assert "--trust-pickle" in refused.stderr
    result = recalibrate(tmp_path / "a.pt", *DATA, "--output", tmp_path / "b.pt", "--trust-pickle")
    assert result.exit_code == 0, result.output
    made = torch.load(tmp_path / "b.pt", weights_only=False)
    assert training.accuracy(made, training.read_digits(SAMPLES / "digits")) > 0.97
    for key, value in made.state_dict().items():
        assert (key.rpartition(".")[2] in MEASURED) != torch.equal(value, module.state_dict()[key]), key


def test_layers_that_a_module_holds_in_eval_mode_are_kept_and_said(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    module = torch.load(SAMPLES / "healthy_module.pt", weights_only=False).train()
    module.stem.eval()
    torch.save(module, tmp_path / "a.pt")
    common = (tmp_path / "a.pt", *DATA, "--trust-pickle", "--dry-run", "--format", "json", "--fail-on", "never")
    kept = recalibration(recalibrate(*common))
    assert list(kept["kept"]) == ["stem.1"]
    assert "stem.1" not in kept["layers"]
    assert "stem.1" in recalibration(recalibrate(*common, "--no-keep-frozen"))["layers"]


def test_only_the_named_layers_change(tmp_path: Path, recalibrate: Callable[..., Result]) -> None:
    new = tmp_path / "new.pt"
    recalibrate(RESET, *MODEL, *DATA, "--output", new, "--layer", "block.*")
    before, after = torch.load(RESET), torch.load(new)
    changed = {key.rpartition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert {"block.bn1", "block.bn2"} == changed


def test_weights_below_a_prefix_are_written_below_it(tmp_path: Path, recalibrate: Callable[..., Result]) -> None:
    state = {f"backbone.{key}": value for key, value in torch.load(RESET).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    result = recalibrate(tmp_path / "a.pt", *MODEL, *DATA, "--output", tmp_path / "b.pt", "--format", "json")
    assert result.exit_code == 0, result.output
    assert "backbone.stem.1" in recalibration(result)["layers"]
    assert int(torch.load(tmp_path / "b.pt")["state_dict"]["backbone.stem.1.num_batches_tracked"]) == 12


# -- from another checkpoint


def test_statistics_are_copied_from_another_checkpoint_and_nothing_else(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    state = torch.load(SAMPLES / "healthy.pt")
    other = {f"module.{key}": value + 1 if "weight" in key else value for key, value in state.items()}
    torch.save(other, tmp_path / "other.pt")
    new = tmp_path / "new.pt"
    result = recalibrate(RESET, "--from", tmp_path / "other.pt", "--output", new, "--format", "json")
    assert result.exit_code == 0, result.output
    assert all(torch.equal(state[key], value) for key, value in torch.load(new).items())
    assert recalibration(result)["method"] == "copied"


def test_the_copy_of_a_half_precision_file_stays_in_half_precision(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    torch.save(DigitNet().half().state_dict(), tmp_path / "half.pt")
    result = recalibrate(
        tmp_path / "half.pt", "--from", SAMPLES / "healthy.safetensors", "--output", tmp_path / "new.pt",
        "--layer", "stem.*", "--fail-on", "never",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = torch.load(SAMPLES / "healthy.pt")["stem.1.running_var"].half()
    assert torch.equal(expected, torch.load(tmp_path / "new.pt")["stem.1.running_var"])


def test_copying_neither_runs_the_file_nor_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom bncheck.cli import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, 'sample_checkpoints' in sys.modules)"
    )
    arguments = [SAMPLES / "healthy_module.pt", "--from", SAMPLES / "healthy.pt", "--output", tmp_path / "new.pt", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", code, "recalibrate", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 False False", done.stdout + done.stderr
    assert (SAMPLES / "healthy_module.pt").read_bytes() == (tmp_path / "new.pt").read_bytes()


# -- what is refused, in one sentence with a hint


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "no source": ((RESET, "--dry-run"), "statistics come from --data or from --from"),
    "two sources": ((RESET, "--from", RESET, *DATA, "--dry-run"), "statistics come from --data or from --from"),
    "no target": ((RESET, "--from", SAMPLES / "healthy.pt"), "named by --output, or left out by --dry-run"),
    "the input as target": (
        (RESET, "--from", SAMPLES / "healthy.pt", "--output", RESET, "--force"),
        "is or holds the input",
    ),
    "the other input as target": (
        (RESET, "--from", SAMPLES / "healthy.pt", "--output", SAMPLES / "healthy.pt", "--force"),
        "is or holds the input",
    ),
    "broken statistics": (
        (RESET, "--from", SAMPLES / "non-finite-statistics.pt", "--dry-run"),
        "has unusable statistics",
    ),
    "no such layer": ((RESET, "--from", SAMPLES / "healthy.pt", "--layer", "x", "--dry-run"), "that --layer x names"),
    "no network": ((RESET, *DATA, "--dry-run"), "a state_dict, which is numbers without a network"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_done_is_an_error(kind: str, recalibrate: Callable[..., Result]) -> None:
    arguments, said = REFUSED[kind]
    result = recalibrate(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "\n hint: " in result.stderr
    assert result.stdout == ""


HEALTHY = SAMPLES / "healthy.pt"


def below(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def one_norm(prefix: str) -> dict[str, Any]:
    return below(prefix, nn.BatchNorm2d(5).state_dict())


def changed_parameters(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value + 1 if key.endswith(("weight", "bias")) else value for key, value in state.items()}


# Each: the checkpoint from that with reset statistics, the other from a healthy one, what is asked for, and the prefix
# under which the layers of the new file stand.
PREFIXED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], tuple[str, ...], str]] = {
    "beside another layer": (
        lambda own: {**below("net.", own), **one_norm("aux.bn.")},
        lambda other: other,
        ("--layer", "net.*"),
        "net.",
    ),
    "in a joint model": (
        lambda own: own,
        lambda other: {**below("net.", other), **one_norm("aux.bn.")},
        (),
        "",
    ),
    "a prefix on either side": (
        lambda own: {**below("net.", own), **one_norm("aux.bn.")},
        lambda other: below("student.encoder.", other),
        ("--layer", "net.*"),
        "net.",
    ),
    "wrappers": (
        lambda own: below("module._orig_mod.net.", own),
        lambda other: below("_orig_mod.module.", other),
        (),
        "module._orig_mod.net.",
    ),
    "one layer only": (
        lambda own: {**below("net.", own), **one_norm("aux.bn.")},
        lambda other: other,
        ("--layer", "net.block.bn2"),
        "net.",
    ),
    "two candidates": (
        lambda own: own,
        lambda other: {**below("rgb.", changed_parameters(DigitNet().state_dict())), **below("depth.", other)},
        (),
        "",
    ),
}


@pytest.mark.parametrize("name", PREFIXED)
def test_layers_are_matched_as_diff_matches_them(name: str, tmp_path: Path, recalibrate: Callable[..., Result]) -> None:
    own, other, options, prefix = PREFIXED[name]
    healthy = torch.load(HEALTHY)
    torch.save(own(torch.load(RESET)), tmp_path / "own.pt")
    torch.save(other(healthy), tmp_path / "other.pt")
    arguments = ("--output", tmp_path / "new.pt", "--fail-on", "never", "--format", "json")
    result = recalibrate(tmp_path / "own.pt", "--from", tmp_path / "other.pt", *options, *arguments)
    assert result.exit_code == 0, result.output
    layers = ["block.bn2"] if name == "one layer only" else list(LAYERS)
    assert len(layers) == len(recalibration(result)["layers"])
    new = torch.load(tmp_path / "new.pt")
    for layer in layers:
        for part in MEASURED:
            assert torch.equal(healthy[f"{layer}.{part}"], new[f"{prefix}{layer}.{part}"])
    compared = CliRunner().invoke(
        app, ["diff", str(tmp_path / "new.pt"), str(tmp_path / "other.pt"), "--fail-on", "never", "--format", "json"]
    )
    pairs = json.loads(compared.stdout)["reports"][0]["measurements"]["layers"].values()
    by_name = {pair["name_before"]: pair for pair in pairs}
    assert all(by_name[layer]["same_statistics"] for layer in recalibration(result)["layers"])


@pytest.mark.parametrize("group", ["ema", "model"])
def test_the_group_that_is_named_is_looked_for_in_both_files(
    group: str, tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    reset, healthy = torch.load(RESET), torch.load(HEALTHY)
    torch.save({"model": reset, "ema": below("net.", torch.load(RESET))}, tmp_path / "own.pt")
    torch.save({"model": healthy, "ema": healthy}, tmp_path / "other.pt")
    new = tmp_path / "new.pt"
    result = recalibrate(
        tmp_path / "own.pt", "--from", tmp_path / "other.pt", "--group", group, "-o", new, "--fail-on", "never"
    )
    assert result.exit_code == 0, result.output
    written = torch.load(new)
    prefix = "net." if group == "ema" else ""
    assert torch.equal(healthy["stem.1.running_mean"], written[group][f"{prefix}stem.1.running_mean"])
    untouched = written["model" if group == "ema" else "ema"]
    assert all(torch.equal(reset[key.removeprefix("net.")], value) for key, value in untouched.items())


def test_a_group_of_the_other_file_alone_is_taken_from_there(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    reset, healthy = torch.load(RESET), torch.load(HEALTHY)
    torch.save(reset, tmp_path / "own.pt")
    torch.save({"model": reset, "ema": below("net.", healthy)}, tmp_path / "other.pt")
    new = tmp_path / "new.pt"
    result = recalibrate(tmp_path / "own.pt", "--from", tmp_path / "other.pt", "--group", "ema", "-o", new)
    assert result.exit_code == 0, result.output
    assert torch.equal(healthy["stem.1.running_mean"], torch.load(new)["stem.1.running_mean"])


def test_of_two_parts_the_one_that_is_asked_for_is_matched(tmp_path: Path, recalibrate: Callable[..., Result]) -> None:
    """Either fits: only --layer tells them apart."""
    reset, healthy = torch.load(RESET), torch.load(HEALTHY)
    torch.save({**below("rgb.", reset), **below("depth.", torch.load(RESET))}, tmp_path / "own.pt")
    new = tmp_path / "new.pt"
    result = recalibrate(
        tmp_path / "own.pt", "--from", HEALTHY, "--layer", "depth.*", "-o", new, "--fail-on", "never", "--width", 300
    )
    assert result.exit_code == 0, result.output
    assert f"layers below 'depth.' in {tmp_path / 'own.pt'} are matched with those of {HEALTHY}" in result.stdout
    written = torch.load(new)
    assert torch.equal(healthy["stem.1.running_mean"], written["depth.stem.1.running_mean"])
    assert torch.equal(reset["stem.1.running_mean"], written["rgb.stem.1.running_mean"])


def test_of_several_groups_the_one_with_equal_parameters_is_taken_and_said(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    healthy = torch.load(HEALTHY)
    torch.save({"model": changed_parameters(healthy), "ema": healthy}, tmp_path / "other.pt")
    new = tmp_path / "new.pt"
    result = recalibrate(RESET, "--from", tmp_path / "other.pt", "--output", new, "--width", 300)
    assert result.exit_code == 0, result.output
    assert f"of {tmp_path / 'other.pt'}, ema is taken, not model (--group chooses)" in result.stdout
    assert torch.equal(healthy["stem.1.running_mean"], torch.load(new)["stem.1.running_mean"])


def test_of_groups_that_nothing_tells_apart_one_must_be_named(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    other = changed_parameters(torch.load(HEALTHY))
    torch.save({"model": other, "ema": other}, tmp_path / "other.pt")
    result = recalibrate(RESET, "--from", tmp_path / "other.pt", "--dry-run")
    assert result.exit_code == 2
    assert "holds more than one model: 'model', 'ema'" in " ".join(result.stderr.split())
    named = recalibrate(RESET, "--from", tmp_path / "other.pt", "--dry-run", "--group", "ema")
    assert named.exit_code == 0, named.output


def test_a_single_layer_below_a_prefix_is_known_by_its_parameters(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    state = {key.removeprefix("stem."): value for key, value in torch.load(HEALTHY).items() if key.startswith("stem.")}
    for name, held in (("same.pt", state), ("other.pt", changed_parameters(state))):
        torch.save(held, tmp_path / name)
    options = ("--layer", "stem.*", "--dry-run", "--fail-on", "never")
    assert recalibrate(RESET, "--from", tmp_path / "same.pt", *options).exit_code == 0
    refused = recalibrate(RESET, "--from", tmp_path / "other.pt", *options)
    assert refused.exit_code == 2
    assert "does not have the layers stem.1" in " ".join(refused.stderr.split())


def test_a_block_that_is_like_one_of_another_network_is_not_matched(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    """Two layers match by name and width, out of eight and ten."""
    mine, others = (
        [f"{part}.{block}.bn{place}" for block in range(blocks) for place in (1, 2)]
        for part, blocks in (("stage", 4), ("tower", 5))
    )
    for name, norms in (("own.pt", mine), ("other.pt", others)):
        widths = {norm: 4 if ".0." in norm else 5 + place + len(norms) for place, norm in enumerate(norms)}
        torch.save(
            {
                f"{norm}.{key}": held
                for norm in norms
                for key, held in nn.BatchNorm2d(widths[norm]).state_dict().items()
            },
            tmp_path / name,
        )
    result = recalibrate(tmp_path / "own.pt", "--from", tmp_path / "other.pt", "--layer", "stage.0.*", "--dry-run")
    assert result.exit_code == 2
    assert "does not have the layers stage.0.bn1, stage.0.bn2" in " ".join(result.stderr.split())


def test_layers_of_the_same_name_and_another_width_are_told_by_their_numbers(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    for name, width in (("own.pt", 4), ("other.pt", 6)):
        torch.save(nn.Sequential(nn.Conv2d(1, width, 1), nn.BatchNorm2d(width)).state_dict(), tmp_path / name)
    result = recalibrate(tmp_path / "own.pt", "--from", tmp_path / "other.pt", "--dry-run")
    assert result.exit_code == 2
    assert "has 4 numbers and should get 6" in " ".join(result.stderr.split())


def test_layers_without_a_counterpart_are_named(tmp_path: Path, recalibrate: Callable[..., Result]) -> None:
    torch.save({**below("net.", torch.load(RESET)), **one_norm("aux.bn.")}, tmp_path / "joint.pt")
    result = recalibrate(tmp_path / "joint.pt", "--from", HEALTHY, "--dry-run")
    assert result.exit_code == 2
    assert "does not have the layers aux.bn" in " ".join(result.stderr.split())
    assert "net." not in result.stderr


def test_layers_are_not_matched_by_the_end_of_their_name_alone(
    tmp_path: Path, recalibrate: Callable[..., Result]
) -> None:
    other = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    result = recalibrate(RESET, "--from", tmp_path / "other.pt", "--layer", "stem.*", "--dry-run")
    assert result.exit_code == 2
    assert "does not have the layers stem.1" in result.stderr


def test_shared_buffers_are_refused_before_the_model_runs(tmp_path: Path, recalibrate: Callable[..., Result]) -> None:
    state = dict(torch.load(RESET))
    state["block.bn1.running_mean"] = state["block.bn2.running_mean"]
    torch.save(state, tmp_path / "a.pt")
    result = recalibrate(tmp_path / "a.pt", *MODEL, *DATA, "--output", tmp_path / "b.pt")
    assert result.exit_code == 2
    assert "gets different numbers" in result.stderr or "shares its bytes" in result.stderr
    assert os.listdir(tmp_path) == ["a.pt"]


# -- in Python


def digits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    held = training.read_digits(SAMPLES / "digits")
    return list(zip(held.images.split(60), held.labels.split(60), strict=True))


def test_a_live_module_gets_the_statistics_and_is_otherwise_as_it_was() -> None:
    module = make.reset(torch.load(SAMPLES / "healthy_module.pt", weights_only=False)).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    report = library.recalibrate(module, digits(), fail_on=None)
    assert module.training
    for key, value in module.state_dict().items():
        assert (key.rpartition(".")[2] in MEASURED) != torch.equal(value, before[key]), key
    numbers: Any = as_json(report.measurements)["recalibration"]
    assert numbers["after"]["accuracy_before"] > 0.97
    assert training.accuracy(module.eval(), training.read_digits(SAMPLES / "digits")) > 0.97


def test_a_file_is_recalibrated_on_batches_that_somebody_holds(tmp_path: Path) -> None:
    module = SAMPLES / "network.py:DigitNet"
    report = library.recalibrate(RESET, digits, output=tmp_path / "new.pt", model=str(module), method="sequential")
    assert report.verdict is Verdict.PASSED
    assert accuracy(tmp_path / "new.pt") > 0.97


def test_wrong_arguments_of_the_function_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BncheckError, match="data or from another"):
        library.recalibrate(RESET)
    with pytest.raises(BncheckError, match="read only once"):
        library.recalibrate(nn.BatchNorm1d(1), iter(digits()))
    with pytest.raises(BncheckError, match="no file to write"):
        library.recalibrate(nn.BatchNorm1d(1), digits(), output=tmp_path / "new.pt")
    with pytest.raises(BncheckError, match="method='fast' must be one of train, sequential"):
        library.recalibrate(nn.BatchNorm1d(1), digits(), method="fast")
    with pytest.raises(TypeError, match="'modle'"):
        library.recalibrate(RESET, digits(), modle="x")
