"""What is known from each format: the table of the README, each cell proven on a file that the real library wrote."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import save_file
from torch import nn

from bncheck.checkpoints.formats import readers
from bncheck.checkpoints.search import find_checkpoints
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import Known
from tests.checkpoints.formats.test_sharded import write_shards

STATE_DICT = {"statistics": "yes", "momentum, eps": "no", "mode": "no"}
MODULE = {"statistics": "yes", "momentum, eps": "yes", "mode": "yes"}
GRAPH = {"statistics": "yes", "momentum, eps": "yes", "mode": "yes, baked into the graph"}

KNOWN_OF_FORMATS: dict[str, dict[str, str]] = {
    "`torch.save` of a state_dict, in any nesting": STATE_DICT,
    "`torch.save` of a module, whose classes may be absent": MODULE,
    "`torch.save` before torch 1.6, of a state_dict": STATE_DICT,
    "`torch.save` before torch 1.6, of a module": MODULE,
    "safetensors": STATE_DICT,
    "safetensors in shards, with their index, or the folder": STATE_DICT,
    "Hugging Face `pytorch_model.bin` in shards, likewise": STATE_DICT,
    "TorchScript, scripted": MODULE,
    "TorchScript, traced": GRAPH,
    "torch.export (`.pt2`)": GRAPH,
    "ONNX, with `bncheck[onnx]`": GRAPH,
    "torch.distributed.checkpoint, the folder": STATE_DICT,
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3, momentum=0.03), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    )
    for _ in range(250):  # enough for momentum 0.03
        made(torch.randn(2, 3, 9, 9))
    return made.eval()


EXAMPLE = (torch.ones(2, 3, 9, 9),)


def write_safetensors(folder: Path) -> Path:
    save_file(network().state_dict(), folder / "model")
    return folder / "model"


def write_torch(made: Callable[[], Any], **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(made(), folder / "model", **options)
        return folder / "model"

    return write


def write_script(made: Callable[[], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.jit.save(made(), folder / "model")
        return folder / "model"

    return write


def write_export(folder: Path) -> Path:
    torch.export.save(torch.export.export(network(), EXAMPLE), folder / "model.pt2")  # torch insists on the suffix
    return folder / "model.pt2"


def write_onnx(folder: Path) -> Path:
    torch.onnx.export(
        network(),
        EXAMPLE,
        folder / "model",
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # which does not fold BatchNorm into the convolutions
    )
    return folder / "model"


def write_distributed(folder: Path) -> Path:
    torch.distributed.checkpoint.save({"model": network().state_dict()}, checkpoint_id=folder / "step", no_dist=True)
    [found] = find_checkpoints(str(folder / "step"))
    return found


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "`torch.save` of a state_dict, in any nesting": (
        "torch.save",
        write_torch(lambda: {"trainer": [{"state_dict": network().state_dict()}]}),
    ),
    "`torch.save` of a module, whose classes may be absent": ("torch.save", write_torch(network)),
    "`torch.save` before torch 1.6, of a state_dict": (
        "torch.save, legacy",
        write_torch(lambda: network().state_dict(), _use_new_zipfile_serialization=False),
    ),
    "`torch.save` before torch 1.6, of a module": (
        "torch.save, legacy",
        write_torch(network, _use_new_zipfile_serialization=False),
    ),
    "safetensors": ("safetensors", write_safetensors),
    "safetensors in shards, with their index, or the folder": (
        "sharded",
        lambda folder: write_shards(folder, network()),
    ),
    "Hugging Face `pytorch_model.bin` in shards, likewise": (
        "sharded",
        lambda folder: write_shards(folder, network(), suffix="bin"),
    ),
    "TorchScript, scripted": ("TorchScript", write_script(lambda: torch.jit.script(network()))),
    "TorchScript, traced": ("TorchScript", write_script(lambda: torch.jit.trace(network(), EXAMPLE))),
    "torch.export (`.pt2`)": ("torch.export", write_export),
    "ONNX, with `bncheck[onnx]`": ("ONNX", write_onnx),
    "torch.distributed.checkpoint, the folder": ("torch.distributed.checkpoint", write_distributed),
}


@pytest.mark.parametrize("name", KNOWN_OF_FORMATS)
def test_what_is_known_of_a_format(tmp_path: Path, read: Callable[[Path], Checkpoint], name: str) -> None:
    format_, write = WRITERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates some of its formats
        path = write(tmp_path)
    checkpoint = read(path)
    assert checkpoint.format == format_
    layers = checkpoint.layers
    assert [layer.name.rpartition(".")[2] for layer in layers] == ["1", "3"]
    for layer, module in zip(layers, (network()[1], network()[3]), strict=True):
        assert layer.running_var is not None
        np.testing.assert_array_equal(layer.running_var, module.running_var.numpy())
    known = KNOWN_OF_FORMATS[name]
    settings_are_stored = all(layer.momentum.known is layer.eps.known is Known.STORED for layer in layers)
    assert settings_are_stored == (known["momentum, eps"] == "yes")
    assert all(layer.training.is_known for layer in layers) == known["mode"].startswith("yes")
    assert [layer.baked for layer in layers] == [known["mode"].endswith("graph")] * 2
    if settings_are_stored:
        expected = [pytest.approx((1e-3, 0.03)), pytest.approx((1e-5, 0.1))]  # ONNX holds them in float32
        assert [(layer.eps.value, layer.momentum.value) for layer in layers] == expected


def test_every_format_is_in_the_table() -> None:
    assert {format_.FORMAT for format_ in readers()} == {format_ for format_, _ in WRITERS.values()}
    assert set(WRITERS) == set(KNOWN_OF_FORMATS)


def test_no_format_needs_torch_to_be_read(tmp_path: Path) -> None:
    paths = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (_, write) in enumerate(WRITERS.values()):
            folder = tmp_path / str(number)
            folder.mkdir()
            paths.append(str(write(folder)))
    script = (
        "import sys, contextlib\n"
        "from bncheck.cli import app\n"
        "with contextlib.suppress(SystemExit):\n"
        "    app(['inspect', '-f', 'json', *sys.argv[1:]])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reports = json.loads(done.stdout)["reports"]
    assert [report["format"] for report in reports] == [format_ for format_, _ in WRITERS.values()]
    assert [len(report["layers"]) for report in reports] == [2] * len(WRITERS)
    # The two layers differ in eps and momentum, which is a note.
    found = {finding["rule"] for report in reports for finding in report["findings"]}
    assert found == {"inconsistent-settings"}
