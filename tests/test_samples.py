"""The sample checkpoints are what they claim to be, and make.py can build them again."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bncheck.commands.inspect import run
from bncheck.findings.report import Report, Verdict
from bncheck.rules import PAIR_RULES, RULES
from sample_checkpoints import make, training
from sample_checkpoints.network import LAYERS, DigitNet

SAMPLES = Path(make.__file__).parent
HEALTHY = ("healthy.pt", "healthy.safetensors", "healthy_module.pt")
TO_REPAIR = ("reset-statistics.pt",)


def inspect(path: Path, model: str | None = None, *, deep: bool = False) -> Report:
    said = {"paths": [path], "deep": deep, **({"model": model} if model else {})}
    [report] = run(said).reports
    assert report.error is None
    return report


def sample_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".pt", ".safetensors"))


def findings(path: Path) -> list[tuple[str, str, str | None]]:
    """Rule, severity and layer; sorted, since the order of layers is that of the file.

    A defect that shows with an option alone says so: `MODEL` for --model, `DEEP` for --deep.
    """
    defect = make.DEFECTS.get(path.stem)
    found = inspect(path, getattr(defect, "MODEL", None), deep=getattr(defect, "DEEP", False)).findings
    return sorted(((f.rule, f.severity.value, f.layer) for f in found), key=str)


def images(folder: Path) -> dict[str, tuple[str | None, str, tuple[int, int], bytes]]:
    """Format, mode, size and pixels of every digit."""
    found = {}
    for path in folder.glob("digits/*/*.png"):
        with Image.open(path) as image:
            found[str(path.relative_to(folder))] = (image.format, image.mode, image.size, image.tobytes())
    return found


def structure(path: Path) -> object:
    """Names, shapes and dtypes of all tensors, as torch reads them. The samples are our own: they may be run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    elif getattr(make.DEFECTS.get(path.stem), "SCRIPTED", False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is old, and still released
            state = torch.jit.load(path).state_dict()
    else:
        held = torch.load(path, weights_only=False)
        state = held.state_dict() if isinstance(held, torch.nn.Module) else held.get("state_dict", held)
    return outline(state)


def outline(value: object) -> object:
    """Shapes and dtypes of tensors, however they are nested; of anything else its type."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {name: outline(held) for name, held in value.items()}
    return type(value).__name__


def healthy_accuracy(folder: Path) -> float:
    network = DigitNet()
    network.load_state_dict(torch.load(folder / "healthy.pt", weights_only=True))
    return training.accuracy(network.eval(), training.read_digits(folder / "digits"))


def test_there_is_one_sample_for_every_rule_and_one_rule_for_every_sample() -> None:
    rules = sorted(rule.id for rule in RULES if rule not in PAIR_RULES)  # those are in folders: test_sample_pairs.py
    assert rules == sorted(make.DEFECTS)
    assert sorted([*HEALTHY, *TO_REPAIR, *(f"{rule}.pt" for rule in rules)]) == sample_names(SAMPLES)


@pytest.mark.parametrize("rule", sorted(make.DEFECTS))
def test_a_sample_sets_off_what_it_was_made_for_and_nothing_else(rule: str) -> None:
    expected = make.DEFECTS[rule].FINDS
    assert sorted(expected, key=str) == findings(SAMPLES / f"{rule}.pt")
    # What shows only when the model runs is listed apart, and tested by running it.
    assert rule in {found for found, _, _ in [*expected, *getattr(make.DEFECTS[rule], "RUNS", ())]}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_healthy_sample(name: str) -> None:
    report = inspect(SAMPLES / name)
    assert not report.findings
    assert Verdict.PASSED is report.verdict
    assert sorted(LAYERS) == sorted(layer.name for layer in report.layers)


def test_the_overflow_leaves_its_trace_and_the_parameters_finite() -> None:
    report = inspect(SAMPLES / "non-finite-statistics.pt")
    found = [finding for finding in report.findings if finding.rule == "non-finite-statistics"]
    assert "overflowed in half precision" in found[0].message
    assert all(finding.measured["parameters_are_finite"] for finding in found)


def test_loading_the_sample_with_unexpected_globals_would_call_what_the_report_names() -> None:
    report = inspect(SAMPLES / "unexpected-globals.pt")
    assert ("os.getenv", "called") in report.globals
    called = report.findings[0].measured["globals"]
    assert called == ("os.getenv",)


def test_the_healthy_samples_hold_the_same_layers_and_statistics() -> None:
    first, *others = (
        {
            layer.name: (layer.num_features, layer.num_batches_tracked, layer.running_mean, layer.running_var)
            for layer in inspect(SAMPLES / name).layers
        }
        for name in HEALTHY
    )
    assert set(LAYERS) == set(first)
    assert [first, first] == others


def test_the_healthy_network_reads_the_digits() -> None:
    assert healthy_accuracy(SAMPLES) > 0.97


def test_the_digits_are_held_out_small_gray_and_balanced() -> None:
    trained_on, held_out = training.load_digits()
    stored = training.read_digits(SAMPLES / "digits")
    assert set() == set(stored.indices.tolist()) & set(trained_on.indices.tolist())
    assert sorted(held_out.indices.tolist()) == sorted(stored.indices.tolist())
    counts = np.bincount(stored.labels.numpy(), minlength=10)
    assert 200 <= counts.sum() <= 400
    assert counts.max() - counts.min() <= 2
    formats = {image[:3] for image in images(SAMPLES).values()}
    assert {("PNG", "L", (8, 8))} == formats


def test_the_digits_are_stored_as_they_were_trained_on() -> None:
    _, held_out = training.load_digits()
    stored = training.read_digits(SAMPLES / "digits")
    order, other = stored.indices.argsort(), held_out.indices.argsort()
    assert torch.equal(held_out.images[other], stored.images[order])
    assert torch.equal(held_out.labels[other], stored.labels[order])


def test_the_samples_are_small() -> None:
    sizes = {name: (SAMPLES / name).stat().st_size for name in sample_names(SAMPLES)}
    assert max(sizes.values()) < 200_000
    assert sum(sizes.values()) < 2_500_000


@pytest.mark.slow
def test_the_samples_can_be_built_again(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    subprocess.run([sys.executable, "-W", "error", SAMPLES / "make.py", folder], cwd=tmp_path, check=True)

    names = sample_names(SAMPLES)
    assert names == sample_names(folder)
    for name in names:
        assert structure(SAMPLES / name) == structure(folder / name), name
        assert findings(SAMPLES / name) == findings(folder / name), name
    assert images(SAMPLES) == images(folder)
    assert healthy_accuracy(folder) > 0.97
    assert healthy_accuracy(SAMPLES) == pytest.approx(healthy_accuracy(folder), abs=0.005)
