"""TorchScript archives, written by torch: scripted, traced, for mobile, frozen."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bncheck.checkpoints.formats import torchscript
from bncheck.checkpoints.formats.torchscript.code import (
    FUNCTIONAL,
    UNRESOLVED,
    Attribute,
    BatchNormCall,
    Literal,
    TensorConstant,
    calls_in,
    evaluate,
    read_classes,
)
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, Known, Normalises, Setting, inferred, stored

Read = Callable[[Path], Checkpoint]
IMAGES = torch.zeros(4, 3, 8, 8)
UNKNOWN: Setting[Any] = Setting(None, Known.UNKNOWN)


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Network(nn.Module):
    """Two blocks whose classes TorchScript has to tell apart, a Sequential, and a head of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block(nn.BatchNorm2d(3))
        self.second = Block(nn.BatchNorm2d(3, eps=1e-3, momentum=0.03))
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.head = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.layers(self.second(self.first(x))).mean((2, 3)))
        return y


def trained(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    for _ in range(3):
        network(torch.randn(4, 3, 8, 8))
    return network


def script(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        torch.jit.save(torch.jit.script(network), path)
    return path


def trace(network: nn.Module, path: Path, example: torch.Tensor = IMAGES) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, example, check_trace=False), path)
    return path


def loaded_by_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path)


def rewritten(path: Path, changes: dict[str, bytes]) -> Path:
    """The archive with other bytes in the entries whose names end like this."""
    copy = path.with_name(f"rewritten_{path.name}")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as out:
        for name in archive.namelist():
            data = next((changes[end] for end in changes if name.endswith(end)), None)
            out.writestr(name, archive.read(name) if data is None else data)
    return copy


def only(checkpoint: Checkpoint) -> BatchNormLayer:
    [layer] = checkpoint.layers
    return layer


def settings(layer: BatchNormLayer) -> tuple[object, ...]:
    return layer.eps, layer.momentum, layer.affine, layer.track_running_stats, layer.training, layer.baked


def assert_same_statistics(checkpoint: Checkpoint, network: nn.Module) -> None:
    modules = {name: m for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert [layer.name for layer in checkpoint.layers] == list(modules)
    for layer in checkpoint.layers:
        module = modules[layer.name]
        for name in ("running_mean", "running_var", "weight", "bias"):
            ours, theirs = getattr(layer, name), getattr(module, name)
            assert ours.tobytes() == theirs.detach().numpy().tobytes()
        assert module.num_batches_tracked is not None
        assert layer.num_batches_tracked == module.num_batches_tracked.item()


# -- scripted and traced


@pytest.mark.parametrize("training", [True, False])
def test_a_scripted_module_has_everything_stored(tmp_path: Path, read: Read, training: bool) -> None:
    network = trained(Network()).train(training)
    checkpoint = read(script(network, tmp_path / "model.pt"))
    assert checkpoint.format == "TorchScript"
    assert [(group.name, group.contents) for group in checkpoint.groups] == [("", "module")]
    assert_same_statistics(checkpoint, network)
    usual = (stored(1e-5), stored(0.1), stored(True), stored(True), stored(training), False)
    unusual = (stored(1e-3), stored(0.03), stored(True), stored(True), stored(training), False)
    assert {layer.name: settings(layer) for layer in checkpoint.layers} == {
        "first.bn": usual,
        "second.bn": unusual,
        "layers.1": usual,
        "head": usual,
    }
    assert {layer.name: (layer.kind, layer.class_path, layer.num_features) for layer in checkpoint.layers} == {
        **dict.fromkeys(
            ("first.bn", "second.bn", "layers.1"),
            (stored("BatchNorm2d"), "torch.nn.modules.batchnorm.BatchNorm2d", 3),
        ),
        "head": (stored("BatchNorm1d"), "torch.nn.modules.batchnorm.BatchNorm1d", 3),
    }


def test_a_trace_in_train_mode_stays_in_train_mode(tmp_path: Path, read: Read) -> None:
    path = trace(trained(Network()).train(), tmp_path / "model.pt")
    loaded = loaded_by_torch(path).eval()
    checkpoint = read(path)
    assert_same_statistics(checkpoint, as_network(loaded))
    before = loaded.head.running_mean.clone()
    loaded(torch.randn(4, 3, 8, 8))
    assert not torch.equal(before, loaded.head.running_mean), "eval() does not help"
    for layer in checkpoint.layers:
        assert (layer.training, layer.baked) == (stored(True), True)
        assert (layer.affine, layer.track_running_stats) == (stored(True), stored(True))
        assert layer.behaviour.normalises_with is Normalises.BATCH
    assert {layer.name: (layer.eps.value, layer.momentum.value) for layer in checkpoint.layers} == {
        "first.bn": (1e-5, 0.1),
        "second.bn": (1e-3, 0.03),
        "layers.1": (1e-5, 0.1),
        "head": (1e-5, 0.1),
    }


def as_network(loaded: torch.jit.ScriptModule) -> Network:
    network = Network()
    network.load_state_dict(loaded.state_dict())
    return network


def test_a_trace_in_eval_mode_stays_in_eval_mode(tmp_path: Path, read: Read) -> None:
    network = trained(Network()).eval()
    path = trace(network, tmp_path / "model.pt")
    checkpoint = read(path)
    assert_same_statistics(checkpoint, network)
    # In eval mode a call is given the statistics whatever track_running_stats says.
    expected = (stored(1e-5), stored(0.1), stored(True), inferred(True), stored(False), True)
    assert settings(checkpoint.layers[0]) == expected
    loaded = loaded_by_torch(path).train()
    before = loaded.head.running_mean.clone()
    loaded(torch.randn(4, 3, 8, 8))
    assert torch.equal(before, loaded.head.running_mean)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (nn.BatchNorm2d(3, affine=False), (stored(1e-5), stored(0.1), stored(False), stored(True))),
        (nn.BatchNorm2d(3, track_running_stats=False), (stored(1e-5), stored(0.1), stored(True), stored(False))),
        (
            nn.BatchNorm2d(3, affine=False, track_running_stats=False),
            (stored(1e-5), stored(0.1), stored(False), stored(False)),
        ),
        (nn.BatchNorm2d(3, momentum=None), (stored(1e-5), stored(None), stored(True), stored(True))),
    ],
)
def test_a_scripted_layer_with_unusual_settings(
    tmp_path: Path, read: Read, norm: nn.Module, expected: tuple[object, ...], training: bool
) -> None:
    layer = only(read(script(Block(norm).train(training), tmp_path / "model.pt")))
    assert settings(layer) == (*expected, stored(training), False)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_traced_layer_without_statistics_has_no_baked_mode(
    tmp_path: Path, read: Read, affine: bool, training: bool
) -> None:
    """It is called with training=True in either mode, which changes nothing."""
    block = Block(nn.BatchNorm2d(3, affine=affine, track_running_stats=False)).train(training)
    layer = only(read(trace(block, tmp_path / "model.pt")))
    assert settings(layer) == (stored(1e-5), stored(0.1), stored(affine), stored(False), stored(training), False)
    assert layer.behaviour.normalises_with is Normalises.BATCH


def test_a_traced_layer_without_affine(tmp_path: Path, read: Read) -> None:
    layer = only(read(trace(Block(nn.BatchNorm2d(3, affine=False)).eval(), tmp_path / "model.pt")))
    assert (layer.affine, layer.weight, layer.training) == (stored(False), None, stored(False))


def test_a_trace_does_not_tell_a_momentum_of_none_from_0_in_eval_mode(tmp_path: Path, read: Read) -> None:
    layer = only(read(trace(Block(nn.BatchNorm2d(3, momentum=None)).eval(), tmp_path / "model.pt")))
    assert layer.momentum == UNKNOWN


def test_a_trace_in_train_mode_has_the_factor_of_its_batch_as_momentum(tmp_path: Path, read: Read) -> None:
    block = Block(nn.BatchNorm2d(3, momentum=None)).train()
    block(torch.randn(4, 3, 8, 8))
    assert only(read(trace(block, tmp_path / "model.pt"))).momentum == stored(0.5)


@pytest.mark.parametrize(
    ("norm", "kind", "example"),
    [
        (nn.BatchNorm1d(3), "BatchNorm1d", torch.zeros(4, 3)),
        (nn.BatchNorm3d(3), "BatchNorm3d", torch.zeros(4, 3, 2, 2, 2)),
        (nn.SyncBatchNorm(3), "SyncBatchNorm", IMAGES),
    ],
)
def test_kinds_of_traced_layers(tmp_path: Path, read: Read, norm: nn.Module, kind: str, example: torch.Tensor) -> None:
    layer = only(read(trace(nn.Sequential(norm).eval(), tmp_path / "model.pt", example)))
    assert (layer.name, layer.kind, layer.training, layer.baked) == ("0", stored(kind), stored(False), True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(tmp_path: Path, read: Read, dtype: torch.dtype) -> None:
    block = Block(nn.BatchNorm2d(3)).to(dtype)
    layer = only(read(script(block, tmp_path / "model.pt")))
    assert layer.running_var is not None
    assert (layer.dtype, layer.running_var.tolist()) == (str(dtype).removeprefix("torch."), [1, 1, 1])


@pytest.mark.parametrize("save", [script, trace])
def test_a_layer_at_two_places_is_what_torch_makes_of_it(tmp_path: Path, read: Read, save: Callable[..., Path]) -> None:
    """Modules are scripted and traced place by place; only the tensors are shared."""
    shared = nn.BatchNorm2d(3)
    path = save(nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared).eval(), tmp_path / "model.pt")
    expected = [name for name, module in loaded_by_torch(path).named_modules() if hasattr(module, "running_mean")]
    assert [layer.name for layer in read(path).layers] == expected


# -- calls of batch_norm elsewhere than in the layer


class Functional(nn.Module):
    """Calls F.batch_norm on the buffers of a layer whose forward nobody calls, and on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bn = self.bn
        x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, 0.25, 1e-4)
        return F.batch_norm(x, self.running_mean, self.running_var, training=False, momentum=0.5, eps=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_a_call_belongs_to_the_layer_whose_statistics_it_is_given(tmp_path: Path, read: Read, training: bool) -> None:
    network = Functional().train(training)
    for save, baked in ((script, False), (trace, True)):
        own, layer = read(save(network, tmp_path / f"{save.__name__}.pt")).layers
        assert (own.name, own.eps, own.momentum) == ("", stored(1e-2), stored(0.5))
        assert (own.affine, own.training, own.baked) == (stored(False), stored(False), True)
        assert (layer.name, layer.training, layer.baked) == ("bn", stored(training), baked)
    # only the trace: a scripted layer has its own forward, too, which says something else
    assert (layer.eps, layer.momentum) == (stored(1e-4), stored(0.25))


def test_sources_that_contradict_each_other_leave_a_setting_unknown(tmp_path: Path, read: Read) -> None:
    _, layer = read(script(Functional(), tmp_path / "model.pt")).layers
    assert (layer.eps, layer.momentum) == (UNKNOWN, UNKNOWN)
    assert (layer.affine, layer.track_running_stats) == (stored(True), stored(True))


class MixedStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.BatchNorm2d(3)
        self.b = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.a.running_mean, self.b.running_var)


def test_a_call_on_the_statistics_of_two_layers_is_that_of_neither(tmp_path: Path, read: Read) -> None:
    layers = read(trace(MixedStatistics(), tmp_path / "model.pt")).layers
    assert [(layer.eps, layer.training) for layer in layers] == [(UNKNOWN, UNKNOWN)] * 2


class FunctionalWithoutStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, self.bn.weight, self.bn.bias, training=True, eps=0.25)


@pytest.mark.parametrize("training", [True, False])
def test_a_call_without_statistics_belongs_to_the_layer_whose_weight_it_is_given(
    tmp_path: Path, read: Read, training: bool
) -> None:
    layer = only(read(trace(FunctionalWithoutStatistics().train(training), tmp_path / "model.pt")))
    assert (layer.eps, layer.training, layer.baked) == (stored(0.25), stored(training), False)


class BothModes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.bn.train()
        x = self.bn(x)
        self.bn.eval()
        y: torch.Tensor = self.bn(x)
        return y


def test_a_layer_traced_in_both_modes_has_an_unknown_mode(tmp_path: Path, read: Read) -> None:
    layer = only(read(trace(BothModes(), tmp_path / "model.pt")))
    assert (layer.training, layer.baked, layer.eps) == (UNKNOWN, False, stored(1e-5))


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.used(x)
        return y


def test_a_traced_layer_without_a_call_has_no_settings(tmp_path: Path, read: Read) -> None:
    used, unused = read(trace(WithUnused().eval(), tmp_path / "model.pt")).layers
    assert settings(used)[4:] == (stored(False), True)
    assert settings(unused) == (UNKNOWN, UNKNOWN, inferred(True), inferred(True), UNKNOWN, False)


class StandardisedWeights(nn.Conv2d):
    """timm's StdConv2d: batch_norm on the weights of a convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(self.weight.reshape(1, 3, -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight))


def test_what_is_no_batchnorm_layer(tmp_path: Path, read: Read) -> None:
    network = nn.Sequential(StandardisedWeights(3, 3, 1), nn.InstanceNorm2d(3, affine=True, track_running_stats=True))
    network = network.eval()
    assert read(trace(network, tmp_path / "trace.pt")).layers == ()
    assert read(script(network, tmp_path / "script.pt")).layers == ()


class StandardisedWeightsAndStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(x, None, None, training=True, eps=0.5)
        return F.batch_norm(x, self.running_mean, self.running_var)


def test_a_call_without_statistics_or_weight_belongs_to_no_layer_but_those_of_torch(tmp_path: Path, read: Read) -> None:
    layer = only(read(trace(StandardisedWeightsAndStatistics(), tmp_path / "model.pt")))
    assert (layer.eps, layer.training, layer.baked) == (stored(1e-5), stored(False), True)


def test_graphs_that_were_inlined_are_resolved_by_attributes(tmp_path: Path, read: Read) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(Block(nn.BatchNorm2d(3, eps=0.5))).eval())
        torch._C._jit_pass_inline(scripted.graph)
        torch.jit.save(scripted, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        code = [archive.read(name) for name in archive.namelist() if "/container" in name and name.endswith(".py")]
    assert b"torch.batch_norm(" in b"".join(code)
    layer = only(read(tmp_path / "model.pt"))
    assert settings(layer) == (stored(0.5), stored(0.1), stored(True), stored(True), stored(False), False)


# -- mobile, frozen, quantised


@pytest.mark.parametrize("training", [True, False])
def test_archives_for_mobile(tmp_path: Path, read: Read, training: bool) -> None:
    network = trained(Network()).train(training)
    expected = (stored(1e-5), stored(0.1), stored(True), stored(True), stored(training), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network)._save_for_lite_interpreter(str(tmp_path / "script.ptl"))
        scripted = read(tmp_path / "script.ptl")
        assert_same_statistics(scripted, network)
        torch.jit.trace(network, IMAGES, check_trace=False)._save_for_lite_interpreter(str(tmp_path / "trace.ptl"))
    assert settings(scripted.layers[0]) == expected
    traced = read(tmp_path / "trace.ptl")
    assert [(layer.name, layer.training.value, layer.baked) for layer in traced.layers] == [
        (name, training, True) for name in ("first.bn", "second.bn", "layers.1", "head")
    ]


def frozen(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.freeze(torch.jit.script(network.eval())), path)
    return path


def test_freezing_folds_layers_into_convolutions(tmp_path: Path, read: Read) -> None:
    checkpoint = read(frozen(Block(nn.BatchNorm2d(3)), tmp_path / "model.pt"))
    assert (checkpoint.format, checkpoint.layers) == ("TorchScript", ())


def test_layers_that_freezing_leaves_are_read_from_the_constants(tmp_path: Path, read: Read) -> None:
    norm = nn.BatchNorm2d(3, eps=1e-3)
    network = trained(nn.Sequential(norm, nn.ReLU(), nn.BatchNorm2d(3, affine=False)))
    first, second = read(frozen(network, tmp_path / "model.pt")).layers
    assert (first.name, first.kind, first.num_features) == ("forward.batch_norm_1", inferred("BatchNorm"), 3)
    assert settings(first) == (stored(1e-3), stored(0.1), stored(True), inferred(True), stored(False), True)
    assert (second.name, second.affine, second.weight) == ("forward.batch_norm_2", stored(False), None)
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert getattr(first, name).tobytes() == getattr(norm, name).detach().numpy().tobytes()


def test_a_frozen_layer_without_its_constant_is_refused(tmp_path: Path, read: Read) -> None:
    path = frozen(nn.Sequential(nn.BatchNorm2d(3)), tmp_path / "model.pt")
    with pytest.raises(UnreadableError, match="misses the constants"):
        read(rewritten(path, {"/constants.pkl": pickle.dumps((), 2)}))


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.bn(self.conv(self.quant(x)))
        return y


def test_quantised_parameters_do_not_hide_a_layer(tmp_path: Path, read: Read) -> None:
    engine = next(e for e in torch.backends.quantized.supported_engines if e != "none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = engine
        network = Quantised().eval()
        network.qconfig = torch.ao.quantization.get_default_qconfig(engine)  # type: ignore[assignment]
        torch.ao.quantization.prepare(network, inplace=True)
        network(torch.randn(4, 3, 8, 8))
        torch.ao.quantization.convert(network, inplace=True)
    layer = only(read(script(network, tmp_path / "model.pt")))
    assert (layer.name, layer.eps, layer.running_var is not None) == ("bn", stored(1e-5), True)


class Counter:
    def __init__(self, number: int) -> None:
        self.number = number
        self.names = {"a": torch.ones(2)}


class OddAttributes(nn.Module):
    names: dict[str, torch.Tensor]
    numbers: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.names = {"running_mean": torch.ones(2)}
        self.numbers = [1, 2]
        self.pair = (torch.ones(1), "torch.batch_norm(x, None, None, a, b, True, 0.5, 0.5, True)")
        self.counter = Counter(3)
        self.children_by_name = nn.ModuleDict({"a-b": nn.BatchNorm2d(3)})
        self.device = torch.device("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        text = 'torch.batch_norm(x, None, "a", b, c, True, 0.5, 0.5, True)'
        assert len(text) + len(self.numbers) + self.counter.number > 0
        y: torch.Tensor = self.children_by_name["a-b"](x) + self.names["running_mean"][0]
        return y


def test_attributes_of_all_kinds_are_passed_over(tmp_path: Path, read: Read) -> None:
    layer = only(read(script(OddAttributes().eval(), tmp_path / "model.pt")))
    assert (layer.name, layer.eps, layer.training) == ("children_by_name.a-b", stored(1e-5), stored(False))


# -- damage, and files made to harm


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, read: Read, kept: float) -> None:
    whole = script(Network(), tmp_path / "model.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UnreadableError):
        read(tmp_path / "cut.pt")


def test_code_of_100_megabytes_is_not_read(tmp_path: Path, read: Read) -> None:
    path = script(Block(nn.BatchNorm2d(3)).eval(), tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive:  # torch numbers the classes of one process
        [code] = [name for name in archive.namelist() if "batchnorm" in name and name.endswith(".py")]
    large = rewritten(path, {code: b"class BatchNorm2d(Module):\n" + b"    a = b\n" * 10**7})
    with FileSource(large) as source:
        checkpoint = torchscript.read(source)
        assert source.bytes_read < 2**20
    assert settings(only(checkpoint)) == (UNKNOWN, UNKNOWN, inferred(True), inferred(True), UNKNOWN, False)
    assert len(checkpoint.notes) == 1


@pytest.mark.parametrize(("calls", "blocks"), [(25_000, 1), (12_000, 2)])
def test_more_calls_than_any_model_has_leave_settings_unknown(
    tmp_path: Path, read: Read, calls: int, blocks: int
) -> None:
    network = nn.Sequential(*(Block(nn.BatchNorm2d(3)) for _ in range(blocks)))
    path = script(network.eval(), tmp_path / "model.pt")
    call = b"    a = torch.batch_norm(x, self.bn.weight, b, self.bn.running_mean, c, True, 0.1, 0.1, True)\n"
    code = b"class Block(Module):\n  def forward(self: __torch__.Block) -> Tensor:\n" + call * calls
    [entry] = [name for name in zipfile.ZipFile(path).namelist() if name.endswith("test_torchscript.py")]
    checkpoint = read(rewritten(path, {f"/{entry.partition('/')[2]}": code}))
    assert [settings(layer)[4:] for layer in checkpoint.layers] == [(UNKNOWN, False)] * blocks
    assert len(checkpoint.notes) == 1


def test_a_class_that_hides_its_modules_does_not(tmp_path: Path, read: Read) -> None:
    path = script(Block(nn.BatchNorm2d(3)), tmp_path / "model.pt")
    code = b"class BatchNorm2d(Module):\n  _modules : Final[int] = 3\n  _buffers : Final[int] = 3\n"
    layer = only(read(rewritten(path, {"/batchnorm.py": code})))
    assert layer.running_mean is not None


def test_a_missing_storage_is_refused(tmp_path: Path, read: Read) -> None:
    path = script(Block(nn.BatchNorm2d(3)), tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "less.pt", "w") as out:
        for name in archive.namelist():
            if not name.endswith("/data/2"):
                out.writestr(name, archive.read(name))
    with pytest.raises(UnreadableError, match="misses the numbers"):
        read(tmp_path / "less.pt")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_the_pickle_asks_for_is_reported_and_not_done(tmp_path: Path, read: Read) -> None:
    path = script(Block(nn.BatchNorm2d(3)), tmp_path / "model.pt")
    harmful = rewritten(path, {"/data.pkl": pickle.dumps(Touch(tmp_path / "mark"), 4)})
    checkpoint = read(harmful)
    assert "pathlib.Path.touch" in [f"{g.module}.{g.name}" for g in checkpoint.globals]
    assert not (tmp_path / "mark").exists()
    assert checkpoint.layers == ()


def test_classes_of_the_archive_are_no_globals(tmp_path: Path, read: Read) -> None:
    checkpoint = read(script(OddAttributes(), tmp_path / "model.pt"))
    assert [g.path for g in checkpoint.globals if "__torch__" in g.path or "jit" in g.path] == []


def test_modules_nested_deeper_than_any_model_are_refused(tmp_path: Path, read: Read) -> None:
    path = script(nn.Sequential(), tmp_path / "model.pt")
    out = io.BytesIO()
    out.write(b"\x80\x02")
    for _ in range(1500):
        out.write(b"c__torch__\nA\n)\x81}X\x01\x00\x00\x00a")
    out.write(b"N" + b"sb" * 1500 + b".")
    with pytest.raises(UnreadableError, match="nests its modules"):
        read(rewritten(path, {"/data.pkl": out.getvalue()}))


def test_a_module_that_holds_itself_is_read_once(tmp_path: Path, read: Read) -> None:
    path = script(nn.Sequential(), tmp_path / "model.pt")
    data = b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    assert read(rewritten(path, {"/data.pkl": data})).layers == ()


def test_archives_of_torch_before_1_4_are_named_and_refused(tmp_path: Path, read: Read) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt", "w") as out:
        for name in ("model/version", "model/code/net.py", "model/model.json", "model/tensors/0"):
            out.writestr(name, b"{}")
    with pytest.raises(UnsupportedError, match=r"TorchScript archive of torch before 1\.4"):
        read(tmp_path / "old.pt")


def test_a_file_of_torch_save_is_not_taken_for_torchscript(tmp_path: Path, read: Read) -> None:
    torch.save(Network().state_dict(), tmp_path / "model.pt")
    with FileSource(tmp_path / "model.pt") as source:
        assert not torchscript.recognises(source)
    assert read(tmp_path / "model.pt").format == "torch.save"


# -- the reader of code


SELF = {"self": Attribute(()), "bn": Attribute(("layers", "bn")), "eps": Literal(1e-3)}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("self.bn.weight", Attribute(("bn", "weight"))),
        ("bn.weight", Attribute(("layers", "bn", "weight"))),
        ("((self).bn).weight", Attribute(("bn", "weight"))),
        ('getattr(self, "0")', Attribute(("first.name",))),
        ('(getattr(self.layers, "1")).weight', Attribute(("layers", "second", "weight"))),
        ('getattr(getattr(self, "1"), "0")', Attribute(("second", "first.name"))),
        ("annotate(Optional[Tensor], bn.weight)", Attribute(("layers", "bn", "weight"))),
        ("unchecked_cast(Tensor, self.weight)", Attribute(("weight",))),
        ("CONSTANTS.c12", TensorConstant(12)),
        ("__torch__.torch.nn.functional.batch_norm", FUNCTIONAL),
        ("__torch__.torch.nn.functional.___torch_mangle_3.batch_norm", FUNCTIONAL),
        ("None", Literal(None)),
        ("True", Literal(True)),
        ("1.0000000000000001e-05", Literal(1e-5)),
        ("1.", Literal(1.0)),
        ("-3", Literal(-3)),
        ("eps", Literal(1e-3)),
        ("eps.x", UNRESOLVED),
        ("other", UNRESOLVED),
        ("other.weight", UNRESOLVED),
        ("torch.zeros([3])", UNRESOLVED),
        ("(bn).forward(x, )", UNRESOLVED),
        ("torch.__not__(self.training)", UNRESOLVED),
        ("bn[0]", UNRESOLVED),
        ("__torch__.mine.batch_norm", UNRESOLVED),
        ("self" + ".a" * 101, UNRESOLVED),
        ("1" * 100, UNRESOLVED),
        ("(" * 100 + "self" + ")" * 100, UNRESOLVED),
        ("", UNRESOLVED),
    ],
)
def test_expressions(expression: str, expected: object) -> None:
    assert expected == evaluate(expression, SELF, ["first.name", "second"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = f(a, g(b, c), [1, 2], )", [("f", ["a", " g(b, c)", " [1, 2]", " "])]),
        ("f(f(a), b)", [("f", ["a"]), ("f", ["f(a)", " b"])]),
        ("a, b, = f(c)", [("f", ["c"])]),
        ("off(a) + x.f(b) + _f(c) + f[d]", []),
        ("f(a", []),
        (") f(a)", [("f", ["a"])]),
    ],
)
def test_calls_are_found_however_they_are_nested(text: str, expected: object) -> None:
    assert expected == list(calls_in(text, ("f",)))


CODE = """class Layer(Module):
  __parameters__ = ["weight", ]
  eps : Final[float] = 0.5
  momentum : Final[NoneType] = None
  name : Final[str] = "torch.batch_norm("
  def forward(s: __torch__.Layer,
    x: Tensor,
    training: bool) -> Tensor:
    _0 = __torch__.torch.nn.functional.batch_norm
    _1 = "s.weight = torch.batch_norm(x, s.a, s.a, s.a, s.a, True, 1, 2, True)"
    weight = s.weight
    weight0 = s.other
    for i in range(3):
      weight0 = s.weight
    training0 = s.training
    if training0:
      bn_training = True
    else:
      bn_training = False
    x0 = _0(x, s.mean, s.var, weight, weight0, bn_training, 0.25, 1e-3, )
    return torch.relu(torch.batch_norm((s.conv).forward(x0), None, None, None, None, True, 0., 1., True))
  def other(self, x: Tensor) -> Tensor:
    return torch.batch_norm(x, weight)
def batch_norm(x: Tensor) -> Tensor:
  x = torch.batch_norm(x, None, None, None, None, True, 0., 1., True)
"""


def test_the_code_of_a_class() -> None:
    classes = read_classes(CODE, 100)
    none, true = Literal(None), Literal(True)
    assert list(classes) == ["Layer"]
    assert classes["Layer"].constants == {"eps": 0.5, "momentum": None}
    assert classes["Layer"].calls == [
        BatchNormCall(
            "forward",
            weight=Attribute(("weight",)),
            bias=UNRESOLVED,  # assigned twice
            running_mean=Attribute(("mean",)),
            running_var=Attribute(("var",)),
            training=Attribute(("training",)),
            momentum=Literal(0.25),
            eps=Literal(1e-3),
        ),
        BatchNormCall("forward", none, none, none, none, true, Literal(0.0), Literal(1.0)),
    ]
    assert len(read_classes(CODE, 1)["Layer"].calls) == 1
