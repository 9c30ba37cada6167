"""`.pt2` archives, written by torch.export."""

import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.formats import pt2
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, Known, Normalises, stored

Read = Callable[[Path], Checkpoint]


class Network(nn.Module):
    """A shared layer, one without parameters, one without statistics, and an InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False))
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.head = nn.BatchNorm1d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.block(self.bn(self.stem(images)))
        features = self.instance(self.untracked(self.block[1](features)))
        return self.head(features.mean((2, 3)))


def network(*, training: bool = False) -> Network:
    torch.manual_seed(0)
    made = Network()
    made(torch.randn(4, 3, 8, 8))
    return made.train(training)


def export(model: nn.Module, path: Path, *, decompose: bool = False, shape: tuple[int, ...] = (4, 3, 8, 8)) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch uses what it deprecates itself
        program = torch.export.export(model, (torch.randn(shape),))
        torch.export.save(program.run_decompositions() if decompose else program, path)
    return path


def rewrite(path: Path, entries: dict[str, bytes | None]) -> Path:
    """Replaces, adds or removes (None) entries of an archive, by the ends of their names."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    for end, data in entries.items():
        name = next((name for name in held if name.endswith(end)), f"{path.stem}/{end}")
        held[name] = data or b""
        if data is None:
            del held[name]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


def model_json(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{path.stem}/models/model.json"))  # type: ignore[no-any-return]


def forget_modules(path: Path) -> Path:
    """Removes what passes over the graph may drop: the modules that its nodes are from."""
    held = model_json(path)
    for node in held["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return rewrite(path, {"models/model.json": json.dumps(held).encode()})


def by_name(checkpoint: Checkpoint) -> dict[str, BatchNormLayer]:
    return {layer.name: layer for layer in checkpoint.layers}


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_settings_of_each_layer_are_those_of_its_module(
    tmp_path: Path, read: Read, training: bool, decompose: bool
) -> None:
    model = network(training=training)
    checkpoint = read(export(model, tmp_path / "model.pt2", decompose=decompose))
    assert checkpoint.format == "torch.export"
    assert checkpoint.facts == {"torch_version": torch.__version__}
    layers = by_name(checkpoint)
    assert list(layers) == ["bn", "block.1", "untracked", "head"]
    for name, layer in layers.items():
        module = model.get_submodule(name)
        assert layer.kind == stored(type(module).__name__)
        assert layer.class_path == f"torch.nn.modules.batchnorm.{type(module).__name__}"
        assert (layer.eps, layer.momentum) == (stored(module.eps), stored(module.momentum))
        assert layer.affine == stored(module.affine)
        assert layer.track_running_stats == stored(module.track_running_stats)
        assert layer.training == stored(training or name == "untracked")  # without statistics, always by the batch
        assert layer.baked
        assert layer.num_features == 4


@pytest.mark.parametrize("decompose", [False, True])
def test_the_numbers_are_those_of_the_model_bit_for_bit(tmp_path: Path, read: Read, decompose: bool) -> None:
    model = network()
    layers = by_name(read(export(model, tmp_path / "model.pt2", decompose=decompose)))
    for name, layer in layers.items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            ours, theirs = getattr(layer, part), getattr(model.get_submodule(name), part)
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert ours.tobytes() == theirs.detach().numpy().tobytes()
    assert [layer.num_batches_tracked for layer in layers.values()] == [1, 2, None, 1]


def test_the_mode_is_what_the_graph_does(tmp_path: Path, read: Read) -> None:
    trained = by_name(read(export(network(training=True), tmp_path / "train.pt2")))["bn"].behaviour
    evaluated = by_name(read(export(network(), tmp_path / "eval.pt2")))["bn"].behaviour
    assert (trained.normalises_with, trained.updates_statistics) == (Normalises.BATCH, True)
    assert (evaluated.normalises_with, evaluated.updates_statistics) == (Normalises.RUNNING, False)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("decompose", [False, True])
def test_without_modules_the_buffers_tell_the_layers(
    tmp_path: Path, read: Read, decompose: bool, training: bool
) -> None:
    path = export(network(training=training), tmp_path / "model.pt2", decompose=decompose)
    layers = read(forget_modules(path)).layers
    assert [layer.name for layer in layers] == ["bn", "block.1", "untracked", "head"]
    assert [layer.kind.value for layer in layers] == ["BatchNorm2d"] * 3 + ["BatchNorm1d"]
    assert {layer.kind.known for layer in layers} == {Known.INFERRED}


class StandardisedConv2d(nn.Conv2d):
    """timm's StdConv2d: the operator of BatchNorm, on weights."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return functional.conv2d(images, weight, self.bias)


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("missing", ["nothing", "modules", "shapes"])
def test_weight_standardisation_and_instance_norm_are_no_layers(
    tmp_path: Path, read: Read, missing: str, decompose: bool
) -> None:
    model = nn.Sequential(
        StandardisedConv2d(3, 4, 3),
        nn.InstanceNorm2d(4),
        nn.ReLU(),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    )
    path = export(model, tmp_path / "model.pt2", decompose=decompose)
    if missing == "modules":
        forget_modules(path)
    if missing == "shapes":
        held = model_json(path)
        held["graph_module"]["graph"]["tensor_values"] = {}
        rewrite(path, {"models/model.json": json.dumps(held).encode()})
    assert "batch_norm" in json.dumps(model_json(path))
    assert read(path).layers == ()


class Frozen(nn.Module):
    """torch.no_grad() and autocast become subgraphs of their own; the latter renames its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.first(torch.relu(images))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.second(torch.relu(features))


def test_layers_in_subgraphs_are_found_in_their_order(tmp_path: Path, read: Read) -> None:
    path = export(Frozen().eval(), tmp_path / "model.pt2")
    assert "batch_norm" not in {node["target"] for node in model_json(path)["graph_module"]["graph"]["nodes"]}
    layers = read(path).layers
    assert [layer.name for layer in layers] == ["first", "second"]
    assert all(layer.running_var is not None and layer.weight is not None for layer in layers)
    assert {layer.kind for layer in layers} == {stored("BatchNorm2d")}


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_a", torch.zeros(3), persistent=False)
        self.register_buffer("mean_b", torch.ones(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = functional.batch_norm(images, self.mean_a, self.variance)
        images = functional.batch_norm(images, self.mean_b, self.variance)
        return functional.batch_norm(images, None, None, training=True)


def test_calls_without_a_module_are_layers_named_by_their_buffers(tmp_path: Path, read: Read) -> None:
    first, second, third = read(export(Functional(), tmp_path / "model.pt2")).layers
    assert [first.name, second.name] == ["mean_a", "mean_b"]
    assert first.kind.known is Known.INFERRED
    assert first.kind.value == "BatchNorm2d"
    assert first.running_mean is not None  # not persistent, so that it is among the constants
    assert np.array_equal(first.running_mean, np.zeros(3))
    assert second.running_mean is not None
    assert np.array_equal(second.running_mean, np.ones(3))
    assert (third.track_running_stats, third.num_features) == (stored(False), 3)


def test_momentum_none_is_not_taken_for_zero_in_eval_mode(tmp_path: Path, read: Read) -> None:
    [layer] = read(export(nn.BatchNorm2d(3, momentum=None).eval(), tmp_path / "model.pt2")).layers
    assert layer.momentum.known is Known.UNKNOWN


def test_buffers_that_train_mode_does_not_use_are_kept(tmp_path: Path, read: Read) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].track_running_stats = False
    [layer] = read(export(model, tmp_path / "model.pt2")).layers
    assert layer.track_running_stats == stored(False)
    assert layer.running_mean is not None
    assert layer.behaviour.normalises_with is Normalises.BATCH


def test_a_half_precision_model_keeps_its_dtype(tmp_path: Path, read: Read) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).eval().to(torch.bfloat16)

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images.to(torch.bfloat16))

    [layer] = read(export(Cast().eval(), tmp_path / "model.pt2")).layers
    assert (layer.name, layer.dtype) == ("inner.0", "bfloat16")


def test_only_the_graph_and_the_statistics_are_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64 * 36, 512)).eval()
    path = export(model, tmp_path / "model.pt2")
    with FileSource(path) as source:
        assert len(pt2.read(source).layers) == 1
        assert source.size > 4_000_000
        assert source.bytes_read < 200_000


def test_several_programs_are_groups_by_their_names(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        programs = {
            name: torch.export.export(nn.BatchNorm2d(3).train(name == "teacher"), (torch.randn(2, 3, 4, 4),))
            for name in ("student", "teacher")
        }
        torch.export.pt2_archive._package.package_pt2(path, exported_programs=programs)
    layers = read(path).layers
    assert [(layer.group, layer.name, layer.training.value) for layer in layers] == [
        ("student", "", False),
        ("teacher", "", True),
    ]


def test_what_loading_would_unpickle_is_reported(tmp_path: Path, read: Read) -> None:
    path = export(nn.BatchNorm2d(3).eval(), tmp_path / "model.pt2")

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return eval, ("__import__('pathlib').Path('harm').touch()",)

    buffer = io.BytesIO()
    torch.save(Harmful(), buffer)
    rewrite(path, {"data/sample_inputs/model.pt": buffer.getvalue()})
    assert ("__builtin__.eval", "called") in {(found.path, found.use) for found in read(path).globals}
    assert not Path("harm").exists()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_unreadable_and_not_passed_over(tmp_path: Path, read: Read, kept: float) -> None:
    path = export(network(), tmp_path / "model.pt2")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UnreadableError):
        read(path)


def test_older_archives_are_refused_with_the_way_to_renew_them(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("version", "7.3")
    with pytest.raises(UnsupportedError, match=r"torch 2\.8 and older") as caught:
        read(path)
    assert "torch.export.save(torch.export.load(path)" in caught.value.hint


def test_an_archive_with_pickled_weights_is_refused(tmp_path: Path, read: Read) -> None:
    path = export(nn.BatchNorm2d(3).eval(), tmp_path / "model.pt2")
    with pytest.raises(UnsupportedError, match=r"torch 2\.8 and older"):
        read(rewrite(path, {"data/weights/model.pt": b"PK"}))


def test_an_archive_of_compiled_code_holds_no_graph(tmp_path: Path, read: Read) -> None:
    path = export(nn.BatchNorm2d(3).eval(), tmp_path / "model.pt2")
    with pytest.raises(UnsupportedError, match="without an exported program"):
        read(rewrite(path, {"models/model.json": None}))


@pytest.mark.parametrize(
    "graph",
    [
        b"[]",
        b"{",
        b'{"graph_module": 1}',
        b'{"graph_module": {"graph": {"nodes": [3], "tensor_values": {}}, "signature": {"input_specs": [4]}}}',
        b'{"graph_module": {"graph": {"nodes": [], "tensor_values": []}, "signature": {"input_specs": []}}}',
        b'{"a":' * 100_000,
    ],
)
def test_a_graph_that_makes_no_sense_is_unreadable(tmp_path: Path, read: Read, graph: bytes) -> None:
    path = export(nn.BatchNorm2d(3).eval(), tmp_path / "model.pt2")
    with pytest.raises(UnreadableError):
        read(rewrite(path, {"models/model.json": graph}))


@pytest.mark.parametrize(
    "changed",
    [
        {"path_name": "weight_99"},
        {"path_name": 3},
        {"tensor_meta": {"dtype": 7}},
        {"sizes": [{"as_int": -1}]},
        {"sizes": [{"as_int": 10**30}]},
        {"sizes": [{"as_int": True}]},
        {"strides": [{"as_int": 1000}]},
        {"storage_offset": {"as_int": 5}},
        {"storage_offset": {"as_expr": {"expr_str": "s0"}}},
    ],
)
def test_a_weight_outside_its_entry_is_unreadable(tmp_path: Path, read: Read, changed: dict[str, Any]) -> None:
    path = export(nn.BatchNorm2d(3).eval(), tmp_path / "model.pt2")
    end = "data/weights/model_weights_config.json"
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read(f"model/{end}"))
    payload = config["config"]["running_var"]
    target = payload if changed.keys() <= payload.keys() else payload["tensor_meta"]
    target.update(changed)
    with pytest.raises(UnreadableError):
        read(rewrite(path, {end: json.dumps(config).encode()}))


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    path = export(nn.BatchNorm2d(3).eval(), tmp_path / "model.pt2")
    code = f"""
import sys
from pathlib import Path
from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
assert read_checkpoint(FileSource(Path({str(path)!r}))).layers
assert not {{"torch", "onnx"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_constant_that_torch_unpickles_whatever_the_table_says_is_listed(tmp_path: Path) -> None:
    """torch.export.load goes by the name `opaque_obj_`: it would call what the pickle says."""
    torch.export.save(torch.export.export(nn.BatchNorm2d(2).eval(), (torch.ones(1, 2, 3, 3),)), tmp_path / "honest.pt2")
    meta = {
        "dtype": 1, "sizes": [{"as_int": 4}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}, "layout": 7,
        "requires_grad": False, "device": {"type": "cpu", "index": None},
    }  # fmt: skip
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    payload = {"config": {"a": entry}}
    with zipfile.ZipFile(tmp_path / "honest.pt2") as honest, zipfile.ZipFile(tmp_path / "planted.pt2", "w") as planted:
        for name in honest.namelist():
            is_table = name.endswith("constants_config.json")
            planted.writestr(name, json.dumps(payload).encode() if is_table else honest.read(name))
        root = honest.namelist()[0].partition("/")[0]
        planted.writestr(f"{root}/data/constants/opaque_obj_0", b"cos\ngetenv\n(VHOME\ntR.")
    with FileSource(tmp_path / "planted.pt2") as source:
        called = [reference.path for reference in read_checkpoint(source).globals if reference.use == "called"]
    assert "os.getenv" in called
