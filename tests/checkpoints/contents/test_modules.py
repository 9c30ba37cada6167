"""Pickled modules whose classes cannot be imported when they are read."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.rules import RULES
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, Known, Normalises, StatisticsUse, stored

Read = Callable[[Path], Checkpoint]
Save = Callable[..., Path]

NETWORK = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
        self.alias = self.bn
    class Inner(nn.Module):
        pass
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.BatchNorm2d(3, affine=False)
        self.blocks = nn.ModuleList([Block(3), Block(3)])
        self.head = nn.BatchNorm1d(5, momentum=None)
        self.inner = Block.Inner()
        self.nothing = None
        self.register_module("gone", None)
        self.hook = self.stem.register_forward_hook(hook)
def hook(module, inputs, output):
    return output
"""


def only(checkpoint: Checkpoint) -> BatchNormLayer:
    [layer] = checkpoint.layers
    return layer


def test_every_setting_is_known_as_stored_although_no_class_is_installed(save_vanishing: Save, read: Read) -> None:
    checkpoint = read(save_vanishing(NETWORK, "Net().eval()"))
    assert "vanished_package" not in sys.modules
    assert [(group.name, group.contents) for group in checkpoint.groups] == [("", "module")]
    assert [
        (layer.name, layer.kind, layer.eps.value, layer.momentum, layer.affine.value, layer.training)
        for layer in checkpoint.layers
    ] == [
        ("stem", stored("BatchNorm2d"), 1e-5, stored(0.1), False, stored(False)),
        ("blocks.0.bn", stored("BatchNorm2d"), 1e-3, stored(0.01), True, stored(False)),
        ("blocks.1.bn", stored("BatchNorm2d"), 1e-3, stored(0.01), True, stored(False)),
        ("head", stored("BatchNorm1d"), 1e-5, stored(None), True, stored(False)),
    ]


@pytest.mark.parametrize("protocol", [2, 4])
def test_modules_inside_dicts_are_groups(save_vanishing: Save, read: Read, protocol: int) -> None:
    path = save_vanishing(
        NETWORK,
        "{'epoch': 1, 'model': Net(), 'ema': Net().half(), 'train_args': {'lr': 0.1}}",
        pickle_protocol=protocol,
    )
    checkpoint = read(path)
    assert [group.name for group in checkpoint.groups] == ["model", "ema"]
    assert {(layer.group, layer.dtype) for layer in checkpoint.layers} == {("model", "float32"), ("ema", "float16")}
    assert {layer.training.value for layer in checkpoint.layers} == {True}


def test_the_layers_are_those_of_named_modules_in_their_order(tmp_path: Path, read: Read) -> None:
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4)
    network = nn.ModuleDict(
        {
            "b": nn.Sequential(nn.Conv2d(3, 4, 1), shared),
            "a": shared,
            "c": nn.Sequential(nn.BatchNorm3d(2), nn.SyncBatchNorm(3)),
        }
    )
    torch.save(network, tmp_path / "m.pt")
    expected = [
        (name, type(module).__name__)
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    assert [(layer.name, layer.kind.value) for layer in read(tmp_path / "m.pt").layers] == expected


def test_a_module_that_contains_itself_is_read_once(tmp_path: Path, read: Read) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4))
    network._modules["loop"] = network
    torch.save(network, tmp_path / "m.pt")
    assert [layer.name for layer in read(tmp_path / "m.pt").layers] == ["0"]


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda module: torch.compile(module, backend="eager")],
)
def test_wrappers_leave_no_mark_on_the_names(tmp_path: Path, read: Read, wrap: Callable[[nn.Module], Any]) -> None:
    torch.save(wrap(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), tmp_path / "m.pt")
    assert [layer.name for layer in read(tmp_path / "m.pt").layers] == ["1"]


@pytest.mark.parametrize("cls", [nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d])
def test_a_lazy_layer_that_never_ran_has_buffers_without_numbers(
    tmp_path: Path, read: Read, cls: type[nn.Module]
) -> None:
    torch.save(cls(), tmp_path / "m.pt")
    layer = only(read(tmp_path / "m.pt"))
    assert layer.kind == stored(cls.__name__)
    assert layer.without_data == ("weight", "bias", "running_mean", "running_var")
    assert layer.behaviour.normalises_with is Normalises.BATCH


def test_a_layer_without_running_statistics_is_found(tmp_path: Path, read: Read) -> None:
    torch.save(nn.BatchNorm2d(4, affine=False, track_running_stats=False), tmp_path / "m.pt")
    layer = only(read(tmp_path / "m.pt"))
    assert (layer.kind, layer.num_features, layer.track_running_stats) == (stored("BatchNorm2d"), 4, stored(False))
    assert (layer.running_mean, layer.weight, layer.dtype) == (None, None, None)


@pytest.mark.parametrize("tracks", [True, False])
def test_instance_norm_is_no_batch_norm(tmp_path: Path, read: Read, tracks: bool) -> None:
    torch.save(nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=tracks)), tmp_path / "m.pt")
    assert read(tmp_path / "m.pt").layers == ()


def test_a_layer_on_the_meta_device_has_no_numbers(tmp_path: Path, read: Read) -> None:
    with torch.device("meta"):
        torch.save(nn.BatchNorm2d(4), tmp_path / "m.pt")
    layer = only(read(tmp_path / "m.pt"))
    assert (layer.num_features, layer.without_data) == (4, ("weight", "bias", "running_mean", "running_var"))


# Look-alikes of other packages, with the attributes and buffers that these give them. The classes are written anew
# here, since what a file holds is the dict of an object, and the class is only a name.
FROZEN = """
import torch
from torch import nn
class FrozenBatchNorm2d(nn.Module):
    def __init__(self, n, **attributes):
        super().__init__()
        vars(self).update(attributes)
        self.register_buffer("weight", torch.ones(n)); self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.randn(n)); self.register_buffer("running_var", torch.rand(n))
class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    def __init__(self, n, **attributes):
        super().__init__(n, **attributes)
        self.drop = nn.Identity(); self.act = nn.ReLU()
"""


@pytest.mark.parametrize(
    ("expression", "eps"),
    [
        ("FrozenBatchNorm2d(4, eps=0.0)", 0.0),  # torchvision's detection models
        ("FrozenBatchNorm2d(4, eps=1e-5, num_features=4)", 1e-5),  # detectron2
        ("FrozenBatchNormAct2d(4, eps=1e-3, num_features=4)", 1e-3),  # timm
        ("FrozenBatchNorm2d(4)", None),  # DETR has eps in its forward
    ],
)
def test_frozen_layers_never_update(save_vanishing: Save, read: Read, expression: str, eps: float | None) -> None:
    layer = only(read(save_vanishing(FROZEN, expression)))
    assert (layer.use, layer.eps.value, layer.num_features) == (StatisticsUse.FROZEN, eps, 4)
    assert layer.eps.is_known == (eps is not None)
    assert not layer.momentum.is_known
    assert layer.behaviour.normalises_with is Normalises.RUNNING
    assert [answer for rule in RULES if rule.layer for answer in rule.layer(layer)] == []


ABN = """
import torch
from torch import nn
class ABN(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.num_features, self.affine, self.eps, self.momentum, self.activation = n, True, 1e-5, 0.1, "leaky_relu"
        self.weight = nn.Parameter(torch.ones(n)); self.bias = nn.Parameter(torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n)); self.register_buffer("running_var", torch.ones(n))
class InPlaceABN(ABN):
    pass
class BatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, n):
        super().__init__(n)
        self.drop = nn.Identity(); self.act = nn.ReLU()
class Norm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.eps, self.momentum = 1e-5, 0.1
        self.register_buffer("running_mean", None); self.register_buffer("running_var", None)
"""


@pytest.mark.parametrize("name", ["InPlaceABN", "BatchNormAct2d"])
def test_relatives_are_recognised_by_what_they_hold(save_vanishing: Save, read: Read, name: str) -> None:
    layer = only(read(save_vanishing(ABN, f"nn.Sequential(nn.Conv2d(3, 4, 1), {name}(4))")))
    assert (layer.name, layer.kind, layer.momentum, layer.eps.value) == ("1", stored(name), stored(0.1), 1e-5)
    assert layer.behaviour.updates_statistics is True


def test_an_unknown_class_without_statistics_may_be_either_norm(save_vanishing: Save, read: Read) -> None:
    layer = only(read(save_vanishing(ABN, "Norm(4)")))
    assert (layer.kind.value, layer.kind.known) == ("BatchNorm or InstanceNorm", Known.INFERRED)


def test_quantisation_aware_layers_are_found_below_their_convolution(tmp_path: Path, read: Read) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces another home for quantisation
        from torch.ao.nn.intrinsic.qat import ConvBn2d
        from torch.ao.quantization import get_default_qat_qconfig

        layer = ConvBn2d(3, 4, 3, qconfig=get_default_qat_qconfig("x86"))
        torch.save({"module": nn.Sequential(layer), "state_dict": nn.Sequential(layer).state_dict()}, tmp_path / "m.pt")
    layers = read(tmp_path / "m.pt").layers
    assert [(layer.group, layer.name, layer.kind.value) for layer in layers] == [
        ("module", "0.bn", "BatchNorm2d"),
        ("state_dict", "0.bn", "BatchNorm2d"),
    ]


def test_a_graph_module_of_torch_fx_is_read(tmp_path: Path, read: Read) -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    torch.save(traced, tmp_path / "m.pt")
    layer = only(read(tmp_path / "m.pt"))
    assert (layer.name, layer.training) == ("1", stored(False))


def test_a_module_that_another_object_holds_is_found(save_vanishing: Save, read: Read) -> None:
    source = NETWORK + "class Trainer:\n    def __init__(self): self.parts = [Net(), 3]\n"
    assert [group.name for group in read(save_vanishing(source, "Trainer()")).groups] == ["parts.0"]
