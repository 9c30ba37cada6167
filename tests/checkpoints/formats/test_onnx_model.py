"""ONNX models, written by both exporters of torch and by the package onnx."""

import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from bncheck.checkpoints.encodings.protobuf import as_field
from bncheck.checkpoints.formats import onnx_model
from bncheck.checkpoints.formats.onnx_model.skeleton import GRAPH
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, Known, Normalises, inferred, stored

Read = Callable[[Path], Checkpoint]
Statistics = dict[str, np.ndarray[Any, Any]]


class Network(nn.Module):
    """No BatchNorm follows a convolution, into which exporters would fold it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, eps=1e-3, momentum=0.03))
        self.plain = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, affine=False))
        self.head = nn.BatchNorm1d(4, momentum=None)
        torch.manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.plain(self.stem(images)).mean((2, 3)))


def export(model: nn.Module, path: Path, *, dynamo: bool, opset: int = 18) -> Path:
    options: dict[str, Any] = {}
    if not dynamo:
        options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch uses what it deprecates itself
        torch.onnx.export(
            model, (torch.randn(4, 3, 8, 8),), path, dynamo=dynamo, opset_version=opset, verbose=False, **options
        )
    return path


STATISTICS: Statistics = {
    "bn.weight": np.array([1.0, 2.0, 3.0], dtype=np.float32),
    "bn.bias": np.array([0.5, 0.25, 0.125], dtype=np.float32),
    "bn.running_mean": np.array([-1.0, 0.0, 1.0], dtype=np.float32),
    "bn.running_var": np.array([0.1, 0.2, 0.3], dtype=np.float32),
}
INPUTS = ["x", *STATISTICS]


def batchnorm(inputs: Sequence[str] = INPUTS, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", inputs, output.split(), name="norm", **attributes)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> Path:
    if weights is None:
        weights = [numpy_helper.from_array(values, name) for name, values in STATISTICS.items()]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, functions=list(functions)).SerializeToString(deterministic=True)
    )
    return path


def assert_statistics(layer: BatchNormLayer) -> None:
    for name, values in STATISTICS.items():
        assert getattr(layer, name.rpartition(".")[2]).tobytes() == values.tobytes()


@pytest.mark.parametrize(("dynamo", "opset"), [(True, 18), (False, 9), (False, 13), (False, 17)])
def test_an_exported_model_has_the_layers_of_its_modules(tmp_path: Path, read: Read, dynamo: bool, opset: int) -> None:
    model = Network().eval()
    checkpoint = read(export(model, tmp_path / "model.onnx", dynamo=dynamo, opset=opset))
    assert checkpoint.format == "ONNX"
    assert checkpoint.notes == (onnx_model.MOMENTUM_NOTE,)
    assert [layer.name for layer in checkpoint.layers] == ["stem.2", "plain.1", "head"]
    for layer in checkpoint.layers:
        module = model.get_submodule(layer.name)
        for part in ("running_mean", "running_var"):
            assert getattr(layer, part).tobytes() == getattr(module, part).numpy().tobytes()
        assert layer.eps == stored(module.eps)
        assert layer.momentum == (UNKNOWN if module.momentum is None else stored(module.momentum))
        assert (layer.training, layer.baked) == (stored(False), True)
        assert layer.track_running_stats == inferred(True)
        if dynamo:
            assert layer.kind == stored(type(module).__name__)


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_train_mode_is_part_of_the_graph(tmp_path: Path, read: Read, opset: int) -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).train()
    [layer] = read(export(model, tmp_path / "model.onnx", dynamo=False, opset=opset)).layers
    assert (layer.name, layer.training, layer.baked) == ("1", stored(True), True)
    assert layer.behaviour.normalises_with is Normalises.BATCH


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_layer_without_statistics_normalises_by_the_batch(tmp_path: Path, read: Read, dynamo: bool) -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    [layer] = read(export(model, tmp_path / "model.onnx", dynamo=dynamo, opset=18 if dynamo else 17)).layers
    assert (layer.name, layer.running_mean, layer.track_running_stats) == ("1", None, inferred(False))
    assert layer.behaviour.normalises_with is Normalises.BATCH


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_folded_layer_is_none(tmp_path: Path, read: Read, dynamo: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(1, 3, 8, 8),), path, dynamo=dynamo, verbose=False)
    assert (read(path).layers, read(path).notes) == ((), ())


class StandardisedConv2d(nn.Conv2d):
    """timm's StdConv2d: the operator of BatchNorm, on weights."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return functional.conv2d(images, weight, self.bias)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
def test_weight_standardisation_and_instance_norm_are_no_layers(
    tmp_path: Path, read: Read, dynamo: bool, training: bool
) -> None:
    model = nn.Sequential(
        StandardisedConv2d(3, 4, 3),
        nn.InstanceNorm2d(4),
        nn.ReLU(),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ).train(training)
    path = export(model, tmp_path / "model.onnx", dynamo=dynamo, opset=18 if dynamo else 17)
    assert read(path).layers == ()
    exported = onnx.load(path)
    for node in exported.graph.node:
        node.ClearField("metadata_props")  # optimizers drop the modules that nodes are from
    path.write_bytes(exported.SerializeToString())
    assert read(path).layers == ()


@pytest.mark.parametrize(
    ("opset", "attributes", "outputs", "training"),
    [
        (17, {"training_mode": 1}, "y mean var", True),
        (17, {"training_mode": 0}, "y", False),
        (17, {}, "y", False),
        (13, {}, "y mean var saved_mean saved_var", True),
        (13, {}, "y", False),
        (6, {"is_test": 0}, "y mean var saved_mean saved_var", True),
        (6, {"is_test": 1}, "y", False),
    ],
)
def test_each_version_of_the_operator_tells_the_mode_in_its_way(
    tmp_path: Path, read: Read, opset: int, attributes: dict[str, int], outputs: str, training: bool
) -> None:
    path = save(tmp_path / "model.onnx", [batchnorm(output=outputs, **attributes)], opset=opset)
    [layer] = read(path).layers
    assert (layer.name, layer.training, layer.kind) == ("bn", stored(training), inferred("BatchNorm2d"))
    assert_statistics(layer)


def test_momentum_is_that_of_pytorch_and_defaults_are_those_of_the_operator(tmp_path: Path, read: Read) -> None:
    def settings(**attributes: Any) -> tuple[Any, Any]:
        [layer] = read(save(tmp_path / "model.onnx", [batchnorm(**attributes)])).layers
        return layer.eps, layer.momentum

    assert settings(momentum=0.99, epsilon=1e-3) == (stored(1e-3), stored(0.01))
    assert settings(momentum=0.9997) == (stored(1e-5), stored(0.0003))
    assert settings(training_mode=1, output="y m v") == (stored(1e-5), stored(0.1))
    assert settings() == (stored(1e-5), UNKNOWN)


def typed(name: str, kind: int, values: Any) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, [3], values)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_every_way_to_write_a_statistic_is_read(tmp_path: Path, read: Read, kind: int, dtype: str, raw: bool) -> None:
    weights = []
    for name in STATISTICS:
        weight = typed(name, kind, [0.5, 1.0, 2.0])
        if raw:
            held = numpy_helper.to_array(weight).tobytes()
            weight.ClearField("float_data")
            weight.ClearField("double_data")
            weight.ClearField("int32_data")
            weight.raw_data = held
        weights.append(weight)
    [layer] = read(save(tmp_path / "model.onnx", [batchnorm()], weights)).layers
    assert layer.dtype == dtype
    assert layer.running_var is not None
    assert layer.running_var.tolist() == [0.5, 1.0, 2.0]


def test_statistics_in_a_file_beside_the_model_are_read(tmp_path: Path, read: Read) -> None:
    path = save(tmp_path / "model.onnx", [batchnorm()])
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    [layer] = read(path).layers
    assert_statistics(layer)
    beside = tmp_path / "weights.bin"
    beside.write_bytes(beside.read_bytes()[:-1])
    with pytest.raises(UnreadableError, match=r"weights\.bin has"):
        read(path)
    beside.unlink()
    with pytest.raises(UnreadableError, match="does not exist"):
        read(path)


def test_data_outside_the_folder_are_refused(tmp_path: Path, read: Read) -> None:
    weights = [numpy_helper.from_array(values, name) for name, values in STATISTICS.items()]
    weights[3].ClearField("raw_data")
    weights[3].data_location = TensorProto.EXTERNAL
    weights[3].external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(UnreadableError, match="outside its folder"):
        read(save(tmp_path / "model.onnx", [batchnorm()], weights))


def test_constants_and_identities_lead_to_the_statistics(tmp_path: Path, read: Read) -> None:
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=numpy_helper.from_array(STATISTICS["bn.running_var"])),
        helper.make_node("Identity", ["constant"], ["same"]),
        helper.make_node("Relu", ["x"], ["relu"]),
        batchnorm(["relu", "bn.weight", "bn.bias", "bn.running_mean", "same"]),
    ]
    [layer] = read(save(tmp_path / "model.onnx", nodes)).layers
    assert_statistics(layer)
    assert layer.kind == inferred("BatchNorm")  # nothing tells the rank of what Relu gives


def test_statistics_that_are_made_from_weights_are_there_without_numbers(tmp_path: Path, read: Read) -> None:
    nodes = [helper.make_node("Exp", ["bn.running_var"], ["made"]), batchnorm([*INPUTS[:4], "made"])]
    [layer] = read(save(tmp_path / "model.onnx", nodes)).layers
    assert layer.without_data == ("running_var",)
    assert layer.track_running_stats == inferred(True)


def test_statistics_that_are_inputs_of_the_model_are_there_without_numbers(tmp_path: Path, read: Read) -> None:
    model = onnx.load(save(tmp_path / "model.onnx", [batchnorm()]))
    for weight in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, [3]))
    del model.graph.initializer[2:]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    [layer] = read(tmp_path / "model.onnx").layers
    assert (layer.without_data, layer.num_features) == (("running_mean", "running_var"), 3)


def test_a_shared_layer_is_one_and_layers_with_merged_weights_are_two(tmp_path: Path, read: Read) -> None:
    shared = [batchnorm(output="z"), batchnorm(["z", *INPUTS[1:]])]
    assert [layer.name for layer in read(save(tmp_path / "model.onnx", shared)).layers] == ["bn"]
    merged = [batchnorm(output="z"), batchnorm(["z", *INPUTS[1:4], "bn.weight"])]
    assert [layer.name for layer in read(save(tmp_path / "model.onnx", merged)).layers] == ["bn", "norm"]


def test_layers_in_subgraphs_and_functions_are_found(tmp_path: Path, read: Read) -> None:
    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])

    inner = batchnorm(["input", "scale", "shift", "mean", "variance"], "output")
    reference = onnx.AttributeProto(name="epsilon", ref_attr_name="eps", type=onnx.AttributeProto.FLOAT)
    inner.attribute.append(reference)
    function = helper.make_function(
        "local", "Norm", ["input", "scale", "shift", "mean", "variance"], ["output"], [inner],
        [helper.make_opsetid("", 17)], ["eps"],
    )  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["which"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node(
            "If",
            ["which"],
            ["z"],
            then_branch=branch("then", batchnorm(["x", "bn.weight", "bn.bias", "bn.bias", "bn.weight"], "z")),
            else_branch=branch("else", helper.make_node("Identity", ["x"], ["z"])),
        ),
        helper.make_node("Norm", ["z", *INPUTS[1:]], ["y"], domain="local", eps=1e-3),
    ]
    first, second = read(save(tmp_path / "model.onnx", nodes, functions=[function])).layers
    assert (first.name, first.eps) == ("bn", stored(1e-5))
    assert (second.eps, second.kind.known) == (stored(1e-3), Known.INFERRED)
    assert_statistics(second)


def test_functions_that_call_themselves_or_too_often_end_in_an_error(tmp_path: Path, read: Read) -> None:
    def function(name: str, called: str, times: int) -> onnx.FunctionProto:
        nodes = [helper.make_node(called, ["a"], [f"b{place}"], domain="local") for place in range(times)]
        return helper.make_function("local", name, ["a"], ["b0"], nodes, [helper.make_opsetid("local", 1)])

    start = [helper.make_node("f0", ["x"], ["y"], domain="local")]
    with pytest.raises(UnreadableError, match="nests its functions"):
        read(save(tmp_path / "model.onnx", start, functions=[function("f0", "f0", 1)]))
    onnx_functions = [function(f"f{place}", f"f{place + 1}", 30) for place in range(60)]
    with pytest.raises(UnreadableError, match="nests its functions"):
        read(save(tmp_path / "model.onnx", start, functions=onnx_functions))


def test_only_the_graph_and_the_statistics_are_read(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(values, name) for name, values in STATISTICS.items()]
    weights += [numpy_helper.from_array(np.ones((1000, 1000), dtype=np.float32), f"fc{place}") for place in range(3)]
    weights.append(helper.make_tensor("typed", TensorProto.FLOAT, [500_000], np.ones(500_000)))
    path = save(tmp_path / "model.onnx", [batchnorm()], weights)
    with FileSource(path) as source:
        checkpoint = onnx_model.read(source)
        assert source.size > 12_000_000
        assert source.bytes_read < 200_000
    tensors = checkpoint.groups[0].tensors
    assert (tensors["fc0"].dtype, tensors["fc0"].shape) == ("float32", (1000, 1000))
    assert tensors["typed"].shape == (500_000,)
    assert tensors["typed"].read is not None
    with pytest.raises(UnreadableError, match="more elements than a per-channel tensor"):
        tensors["typed"].read()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_recognised_and_unreadable(tmp_path: Path, read: Read, kept: float) -> None:
    path = save(tmp_path / "model.onnx", [batchnorm()])
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UnreadableError, match="ends at byte"):
        read(path)


def test_damaged_bytes_give_an_error_or_layers_and_nothing_else(tmp_path: Path, read: Read) -> None:
    path = save(tmp_path / "model.onnx", [batchnorm(), helper.make_node("Identity", ["y"], ["z"])])
    data = path.read_bytes()
    chance = random.Random(0)
    for _ in range(1000):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            read(path)
        except (UnreadableError, UnsupportedError):
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        b"\x08\x00",
        b"\x08\x07",
        b"\x08\x01\x12\x05hello",  # a SavedModel of TensorFlow has these fields, too
        b"\x08\x01\x12\xff\xff\xff\x7f" + bytes(100),
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x03abc\x3a\x02\x0a\x00",
        b"\x08\x07\x3a\x05hello",
        b"\x80\x04\x95" + bytes(20),
        b"PK\x03\x04" + bytes(60),
    ],
)
def test_other_files_are_not_taken_for_onnx(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with FileSource(path) as source:
        assert not onnx_model.recognises(source)


def test_two_graphs_or_a_weight_given_twice_are_refused(tmp_path: Path, read: Read) -> None:
    path = save(tmp_path / "model.onnx", [batchnorm()])
    data = path.read_bytes()
    model = onnx.load(path)
    path.write_bytes(data + as_field(GRAPH, model.graph.SerializeToString()))
    with pytest.raises(UnreadableError, match="two graphs"):
        read(path)
    model.graph.initializer.append(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnreadableError, match="two weights of one name"):
        read(path)


def test_without_the_package_the_model_is_recognised_and_the_package_named(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", [batchnorm()])
    code = f"""
import sys
from pathlib import Path
from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnsupportedError
sys.modules["onnx"] = None
try:
    read_checkpoint(FileSource(Path({str(path)!r})))
except UnsupportedError as error:
    print(error.message, error.hint)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "needs the onnx package" in said
    assert "pip install 'bncheck[onnx]'" in said


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", [batchnorm()])
    code = f"""
import sys
from pathlib import Path
from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
assert read_checkpoint(FileSource(Path({str(path)!r}))).layers
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
