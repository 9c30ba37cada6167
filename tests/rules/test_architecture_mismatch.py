"""What keeps the tensors of a file from being loaded into the architecture that --model names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bncheck.evaluation.models.architecture import architecture
from bncheck.evaluation.models.live import live_group
from bncheck.options.model import Architecture
from bncheck.rules.architecture_mismatch import RULE
from bncheck.subjects.checkpoint import Checkpoint, Group
from tests.rules.layers import layer
from tests.rules.tables import Found, asked, assert_found, error, the_one

NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=2, channels=4, norm=nn.BatchNorm2d):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        self.neck = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(2)
        self.embed, self.out = nn.Linear(3, 3), nn.Linear(3, 3)
        self.out.weight = self.embed.weight
        self.again = self.bn
        self.register_buffer("grid", torch.zeros(3), persistent=False)

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Net()

class WithHead(Wrapped):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(4, 2)

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.fc = nn.LazyBatchNorm2d(), nn.LazyLinear(2)

class Made(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 2)

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.scale = nn.BatchNorm2d(3), nn.Parameter(torch.tensor(1.0))

class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = FrozenBatchNorm2d()

class FrozenBatchNorm2d(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(3))
    def _load_from_state_dict(self, state_dict, prefix, *rest):
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

class Thawed(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
"""
State = dict[str, torch.Tensor]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes one of the networks above, which stand in networks.py of the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("networks.py").write_text(NETWORKS)
    namespace: dict[str, Any] = {}
    exec(NETWORKS, namespace)
    return lambda name, **arguments: namespace[name](**arguments)


class Saved:
    """A live module stands for its saved file: the classes of the tests cannot be imported."""

    def __init__(self, group: Group) -> None:
        self.group = group


@pytest.fixture
def beside(made: Callable[..., Any], read: Callable[[Path], Checkpoint]) -> Callable[..., Checkpoint]:
    """Saves an object and reads it beside the architecture of this name."""

    def examine(saved: object, name: str, save: Callable[..., None] = torch.save) -> Checkpoint:
        complete = architecture(Architecture(model=f"networks.py:{name}"))
        if isinstance(saved, Saved):
            return complete(Checkpoint("", "", (saved.group,)))
        save(saved, "model.pt")
        return complete(read(Path("model.pt")))

    return examine


def below(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def without(state: Mapping[str, torch.Tensor], part: str) -> State:
    return {key: value for key, value in state.items() if part not in key}


def renamed(state: Mapping[str, torch.Tensor], old: str, new: str) -> State:
    return {key.replace(old, new): value for key, value in state.items()}


def strict_load(made: Callable[..., Any], name: str, state: State) -> bool:
    """Whether torch loads it, without the prefixes that bncheck takes away as well."""
    try:
        made(name).load_state_dict(state, strict=True)
    except RuntimeError:
        return False
    return True


# What is saved, from a network and into which it is to be loaded.
QUIET: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "its own state_dict": ("Net", lambda net: net.state_dict(), "Net"),
    "no counters, as before torch 0.4.1": ("Net", lambda net: without(net.state_dict(), "num_batches"), "Net"),
    "scalars as arrays of one number": (
        "Scaled",
        lambda net: {k: v.reshape(1) if v.dim() == 0 else v for k, v in net.state_dict().items()},
        "Scaled",
    ),
    "tied weights and a layer that is used twice": ("Tied", lambda net: net.state_dict(), "Tied"),
    "tied weights under one name": ("Tied", lambda net: without(without(net.state_dict(), "again"), "out.w"), "Tied"),
    "a frozen layer that drops the counter": ("Thawed", lambda net: net.state_dict(), "Frozen"),
    "lazy layers take what comes": ("Made", lambda net: net.state_dict(), "Lazy"),
    "lazy layers that never saw an input": ("Lazy", lambda net: net.state_dict(), "Made"),
    "DataParallel": ("Net", lambda net: nn.DataParallel(net).state_dict(), "Net"),
    "torch.compile": ("Net", lambda net: below("_orig_mod.", net.state_dict()), "Net"),
    "AveragedModel": ("Net", lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(), "Net"),
    "a module, whose buffers are not all saved": ("Tied", lambda net: Saved(live_group(net)), "Tied"),
    "a module with another head": ("Net", lambda net: Saved(live_group(net)), "Net"),
    "beside another network": (
        "Net",
        lambda net: {"net": net.state_dict(), "critic": {"a.weight": torch.ones(2)}},
        "Net",
    ),
    "beside another network with BatchNorm": (
        "Net",
        lambda net: {"net": net.state_dict(), "critic": below("d", nn.BatchNorm2d(5).state_dict())},
        "Net",
    ),
}

# The severity and the message of the one finding besides.
FIRES: dict[str, tuple[str, Callable[[Any], object], str, str, str]] = {
    "another head": (
        "Net",
        lambda net: {**net.state_dict(), "head.weight": torch.ones(10, 4), "head.bias": torch.ones(10)},
        "Net",
        "error",
        "it does not fit the architecture: of another shape: head.weight ((10, 4) in the file and (2, 4) in the "
        "architecture), head.bias ((10,) in the file and (2,) in the architecture); no BatchNorm layer is concerned",
    ),
    "a layer under another name": (
        "Net",
        lambda net: renamed(net.state_dict(), "neck", "neck_bn"),
        "Net",
        "error",
        "it does not fit the architecture: missing in the file: 1 BatchNorm layer (neck); unknown to the architecture: "
        "1 BatchNorm layer (neck_bn)",
    ),
    "only the parameters were saved": (
        "Net",
        lambda net: dict(net.named_parameters()),
        "Net",
        "error",
        "it does not fit the architecture: missing in the file: 4 tensors of BatchNorm layers (body.1.running_mean, "
        "body.1.running_var, neck.running_mean and 1 more)",
    ),
    "another width": (
        "Net",
        lambda net: {**net.state_dict(), **below("neck.", nn.BatchNorm2d(8).state_dict())},
        "Net",
        "error",
        "it does not fit the architecture: of another shape: neck (8 channels in the file and 4 in the architecture)",
    ),
    "below the prefix of Lightning": (
        "Net",
        lambda net: {"state_dict": below("model.", net.state_dict())},
        "Net",
        "warning",
        "every tensor of the architecture is in the file, below 'model.'",
    ),
    "below a prefix, beside the weights of a loss": (
        "Net",
        lambda net: {**below("model.", net.state_dict()), "loss.weight": torch.ones(2)},
        "Net",
        "warning",
        "every tensor of the architecture is in the file, below 'model.'; beside them 1 tensor of something else",
    ),
    "without the prefix of the architecture": (
        "Net",
        lambda net: net.state_dict(),
        "Wrapped",
        "warning",
        "every tensor of the architecture is in the file, without 'backbone.'",
    ),
    "a backbone for a whole network": (
        "Net",
        lambda net: net.state_dict(),
        "WithHead",
        "error",
        "it does not fit the architecture (below 'backbone.'): missing in the file: 2 other tensors "
        "(classifier.weight, classifier.bias); no BatchNorm layer is concerned",
    ),
    "below a prefix, with another head": (
        "Net",
        lambda net: below("model.", {**net.state_dict(), "head.bias": torch.ones(10)}),
        "Net",
        "error",
        "it does not fit the architecture (below 'model.'): of another shape: model.head.bias ((10,) in the file and "
        "(2,) in the architecture); no BatchNorm layer is concerned",
    ),
    "a network that has a part of the same name": (
        "Net",
        lambda net: {
            **below("some.", nn.ModuleDict({"neck": net.neck}).state_dict()),
            **below("a.", net.body[0].state_dict()),
            **below("b.", nn.BatchNorm2d(2).state_dict()),
        },
        "Net",
        "error",
        "it does not fit the architecture: missing in the file: 2 BatchNorm layers (body.1, neck) and 4 other tensors "
        "(body.0.weight, body.0.bias, head.weight and 1 more); unknown to the architecture: 2 BatchNorm layers "
        "(some.neck, b) and 2 other tensors (a.weight, a.bias)",
    ),
    "another network altogether": (
        "Made",
        lambda net: net.state_dict(),
        "Net",
        "error",
        "it does not fit the architecture: missing in the file: 2 BatchNorm layers (body.1, neck) and 4 other tensors "
        "(body.0.weight, body.0.bias, head.weight and 1 more); unknown to the architecture: 1 BatchNorm layer (bn) and "
        "2 other tensors (fc.weight, fc.bias)",
    ),
    "a module of another network": (
        "Made",
        lambda net: Saved(live_group(net)),
        "Net",
        "error",
        "it does not fit the architecture: missing in the file: 2 BatchNorm layers (body.1, neck); unknown to the "
        "architecture: 1 BatchNorm layer (bn)",
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str, made: Callable[..., Any], beside: Callable[..., Checkpoint]) -> None:
    source, saved_as, target = QUIET[name]
    assert asked(RULE, beside(saved_as(made(source)), target)) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str, made: Callable[..., Any], beside: Callable[..., Checkpoint]) -> None:
    source, saved_as, target, severity, message = FIRES[name]
    saved = saved_as(made(source))
    assert_found(RULE, beside(saved, target), Found(severity, message=message, layer=""))
    if isinstance(saved, dict) and "state_dict" not in saved:
        assert not strict_load(made, target, saved)


def test_without_an_architecture_nothing_is_said() -> None:
    assert asked(RULE, layer()) == []


def test_safetensors_without_the_second_name_of_a_tensor_fits(
    made: Callable[..., Any], beside: Callable[..., Checkpoint]
) -> None:
    state = without(without(made("Tied").state_dict(), "again."), "out.weight")
    assert asked(RULE, beside(state, "Tied", save=save_file)) == []


def test_averaged_weights_are_compared_beside_the_raw_ones(
    made: Callable[..., Any], beside: Callable[..., Checkpoint]
) -> None:
    net = made("Net")
    broken = renamed(net.state_dict(), "neck", "neck_bn")
    expected = (
        "it does not fit the architecture: missing in the file: 1 BatchNorm layer (neck); unknown to the architecture: "
        "1 BatchNorm layer (neck_bn)"
    )
    examined = beside({"model": net.state_dict(), "ema": broken}, "Net")
    assert_found(RULE, examined, error(message=expected, layer="", group="ema"))


def test_what_is_measured_names_every_tensor(made: Callable[..., Any]) -> None:
    group = live_group(made("Net", classes=3))
    expected = live_group(made("Net", channels=5)).tensors
    examined = Checkpoint("", "", (replace(group, contents="state_dict", expected=expected),))
    one = the_one(RULE, examined)
    assert one.measured["of_another_shape_count"] == len(group.tensors) - 2
    assert ("body.1.running_var", (4,), (5,)) in one.measured["of_another_shape"]  # type: ignore[operator]
    assert one.measured["batchnorm_is_concerned"] is True
