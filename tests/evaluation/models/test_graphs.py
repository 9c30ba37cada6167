"""Graphs run as the file says, wherever they were made, and none runs code while it is loaded."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.models.calls import call, predictions_of
from bncheck.evaluation.models.exported import is_arithmetic
from bncheck.evaluation.models.loading import load_runnable
from tests.evaluation.artefacts import export, images, outputs, replacing, rewritten, script


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
def test_torchscript_runs_and_says_whether_its_mode_can_be_set(
    tmp_path: Path, net: Any, options: Any, how: str
) -> None:
    model = net().eval()
    runnable = load_runnable(script(model, tmp_path / "model.pt", how=how), options(None))
    assert (runnable.artefact, runnable.modes_are_stored, runnable.can_hook) == ("torchscript", True, False)
    assert runnable.can_set_mode == (how == "script")
    assert torch.allclose(outputs(runnable), model(images()), atol=1e-6)
    if how != "freeze":
        assert list(runnable.layers) == ["bn"]
        assert [(layer.name, layer.eps.value, layer.training.value) for layer in runnable.described] == [
            ("bn", 1e-5, False)
        ]


def test_a_traced_part_of_a_scripted_model_has_its_mode_as_a_constant(tmp_path: Path, options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.trace(nn.BatchNorm2d(3).eval(), images())
    runnable = load_runnable(script(nn.Sequential(part, nn.BatchNorm2d(3)), tmp_path / "model.pt"), options(None))
    assert not runnable.can_set_mode


def test_the_dtype_of_torchscript(tmp_path: Path, net: Any, options: Any) -> None:
    path = script(net().eval(), tmp_path / "model.pt")
    assert load_runnable(path, options(None, dtype="float64")).dtype == torch.float64
    with pytest.raises(UsageError, match="frozen graph"):
        load_runnable(script(net().eval(), path, how="freeze"), options(None, dtype="float64"))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_exported_program_runs_with_its_own_batch_size(
    tmp_path: Path, net: Any, options: Any, dynamic: bool, training: bool
) -> None:
    model = net().train(training)
    model.drop.p = 0.0
    runnable = load_runnable(export(model, tmp_path / "model.pt2", dynamic=dynamic), options(None))
    assert (runnable.artefact, runnable.can_set_mode, runnable.can_hook) == ("exported", False, False)
    assert runnable.fixed_batch_size == (None if dynamic else 4)
    assert runnable.program is not None
    assert torch.allclose(outputs(runnable), model(images()), atol=1e-6)
    assert runnable.module.get_buffer("bn.num_batches_tracked").item() == 7 + training
    assert list(runnable.layers) == ["bn"]
    assert [(layer.name, layer.training.value) for layer in runnable.described] == [("bn", training)]
    if not dynamic:
        with pytest.raises(ModelError, match=r"fails on a batch of \(2, 3, 8, 8\)"):
            call(runnable.module, images(2))


def test_an_exported_program_from_a_gpu_is_loaded(tmp_path: Path, net: Any, options: Any) -> None:
    model = net().eval()
    path = export(model, tmp_path / "model.pt2")
    change = replacing('{"type": "cpu", "index": null}', '{"type": "cuda", "index": 0}')
    runnable = load_runnable(rewritten(path, change), options(None))
    assert torch.equal(outputs(runnable), model(images()))
    assert {tensor.device.type for tensor in runnable.module.state_dict().values()} == {"cpu"}


def test_the_dtype_of_an_exported_program(tmp_path: Path, net: Any, options: Any) -> None:
    path = export(net().eval(), tmp_path / "model.pt2", dynamic=True)
    runnable = load_runnable(path, options(None, dtype="float64"))
    assert call(runnable.module, runnable.place(images())).dtype == torch.float64


def test_sample_inputs_of_an_exported_program_are_never_unpickled(tmp_path: Path, net: Any, options: Any) -> None:
    path = export(net().eval(), tmp_path / "model.pt2")
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()
    hostile = rewritten(path, lambda name, data: bomb if "sample_inputs" in name else data)
    with contextlib.suppress(Exception):  # it fails after it has run
        torch.export.load(hostile)
    assert (tmp_path / "ran").exists(), "torch itself runs it"
    (tmp_path / "ran").unlink()
    runnable = load_runnable(hostile, options(None))
    assert outputs(runnable).shape == (4, 3)
    assert not (tmp_path / "ran").exists()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Symbol('s", "exec(chr(49)) or Symbol('s"),
        ("Symbol('s", "().__class__ or Symbol('s"),
        ('"guards_code": []', '"guards_code": ["print(1)"]'),
        ('"torch.ops.aten.conv2d.default"', '"torch.os.system"'),
        ('"name": "x"', '"name": "x=exit()"'),
        ('"use_pickle": false', '"use_pickle": true'),
        ('"config": {}', '"config": {"a": {"path_name": "opaque_obj_0", "is_param": false, "use_pickle": false}}'),
    ],
    ids=["expression", "attribute", "guard", "operator", "name", "pickled weight", "pickled object"],
)
def test_an_exported_program_that_could_run_code_needs_trust(
    tmp_path: Path, net: Any, options: Any, old: str, new: str
) -> None:
    path = export(net().eval(), tmp_path / "model.pt2", dynamic=True)
    if old.startswith('"config"'):
        hostile = rewritten(path, replacing(old, new), new={"data/constants/opaque_obj_0": b"cposix\nsystem\n."})
    else:
        hostile = rewritten(path, replacing(old, new))
    assert hostile.read_bytes() != path.read_bytes()
    with pytest.raises(UsageError, match="could run code while it is loaded") as error:
        load_runnable(hostile, options(None))
    assert "--trust-pickle" in error.value.hint


def test_an_exported_program_of_any_network_is_loaded_without_trust(tmp_path: Path, options: Any) -> None:
    """Guards between inputs, functions of symbolic sizes, dicts and several inputs are what real exports hold."""

    class Rich(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor, rest: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            y = rest["y"]
            if x.shape[0] * 2 == y.shape[0] + 1:
                x = x + 1
            product = torch.einsum("bi,bj->bij", x, y[: x.shape[0]])
            return {"logits": self.bn(x), "product": product, "half": y[: y.shape[0] // 2]}

    auto = torch.export.Dim.AUTO
    inputs = (torch.randn(5, 3), {"y": torch.randn(12, 3)})
    shapes = {"x": {0: auto}, "rest": {"y": {0: auto}}}
    program = torch.export.export(Rich().eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    graph = zipfile.ZipFile(tmp_path / "model.pt2").read("model/models/model.json")
    assert b"size()[0]" in graph
    runnable = load_runnable(tmp_path / "model.pt2", options(None))
    assert predictions_of(call(runnable.module, runnable.place(inputs))).shape == (5,)  # type: ignore[union-attr]


def test_arithmetic_is_told_from_code() -> None:
    harmless = ["s0", "2*s77 + 1", "Symbol('s0', positive=True)", "Mod(s0, 2)", "L['x'].size()[0] <= 4", "Max(1, u0)"]
    harmful = [
        "__import__('os')",
        "exec('1')",
        "(lambda: 1)()",
        "x.y",
        "[i for i in s]",
        "chr(1)",
        "a\nb",
        "Max",
        "'('",
    ]
    assert [text for text in harmless if not is_arithmetic(text)] == []
    assert [text for text in harmful if is_arithmetic(text)] == ["Max"]


@pytest.mark.parametrize("how", ["TorchScript", "torch.export"])
def test_a_graph_takes_no_architecture(tmp_path: Path, net: Any, options: Any, how: str) -> None:
    model = net().eval()
    path = script(model, tmp_path / "m.pt") if how == "TorchScript" else export(model, tmp_path / "m.pt2")
    with pytest.raises(UsageError, match="brings its own code"):
        load_runnable(path, options())


def test_onnx_is_not_run(tmp_path: Path, net: Any, options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net().eval(), (images(),), tmp_path / "model.onnx", dynamo=False)
    with pytest.raises(ModelError, match="does not run"):
        load_runnable(tmp_path / "model.onnx", options(None))
