"""Which layer feeds which, proven by the graphs of TorchScript, torch.export and ONNX files that torch wrote."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bncheck.checkpoints.contents import connections as connections_module
from bncheck.checkpoints.contents.connections import Joined, Trail, is_linear, is_pointwise
from bncheck.checkpoints.formats.torchscript import flow as torchscript_flow
from bncheck.checkpoints.formats.torchscript import read as read_torchscript
from bncheck.checkpoints.formats.torchscript.flow import methods_of
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError
from bncheck.subjects.checkpoint import Connection, Tensor
from tests.checkpoints.formats.test_torchscript import rewritten

IMAGES = torch.zeros(2, 3, 6, 6)


def script(network: nn.Module, path: Path, example: torch.Tensor = IMAGES) -> None:
    torch.jit.save(torch.jit.script(network), path)


def trace(network: nn.Module, path: Path, example: torch.Tensor = IMAGES) -> None:
    torch.jit.save(torch.jit.trace(network, example, check_trace=False), path)


def export(network: nn.Module, path: Path, example: torch.Tensor = IMAGES) -> None:
    torch.export.save(torch.export.export(network, (example,)), path)


def decompose(network: nn.Module, path: Path, example: torch.Tensor = IMAGES) -> None:
    torch.export.save(torch.export.export(network, (example,)).run_decompositions(), path)


def onnx(network: nn.Module, path: Path, example: torch.Tensor = IMAGES) -> None:
    keep = torch.onnx.TrainingMode.PRESERVE  # the mode of each layer, and so BatchNorm as nodes of their own
    torch.onnx.export(network, (example,), path, dynamo=False, training=keep, do_constant_folding=False)


Save = Callable[..., None]
FORMATS: dict[str, Save] = {"script": script, "trace": trace, "export": export, "decompose": decompose, "onnx": onnx}


def joined(save: Save, network: nn.Module, folder: Path, example: torch.Tensor = IMAGES) -> tuple[Connection, ...]:
    """What the reader finds in the file that torch writes."""
    from bncheck.checkpoints import read_checkpoint

    path = folder / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates two of the formats
        save(network, path, example)
    with FileSource(path) as source:
        [group] = read_checkpoint(source).groups
        assert group.connections is not None
        return group.connections()


def names(found: tuple[Connection, ...]) -> list[tuple[str, str, str]]:
    return [(connection.before, connection.activation, connection.after) for connection in found]


class Network(nn.Module):
    """Four pairs: direct, through ReLU, through ReLU6, and of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.bn1 = nn.BatchNorm2d(12)
        self.direct = nn.Conv2d(12, 9, 1)
        self.bn2 = nn.BatchNorm2d(9)
        self.blocks = nn.Sequential(
            nn.ReLU(inplace=True), nn.Conv2d(9, 8, 1, bias=False), nn.BatchNorm2d(8, affine=False)
        )
        self.relu6 = nn.ReLU6()
        self.last = nn.Conv2d(8, 10, 1)
        self.bn4 = nn.BatchNorm2d(10)
        self.head = nn.Sequential(nn.Linear(10, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 8), nn.BatchNorm1d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(self.direct(self.bn1(self.stem(x))))
        x = self.bn4(self.last(self.relu6(self.blocks(x))))
        y: torch.Tensor = self.head(x.mean((2, 3)))
        return y


DIRECT = ("bn1", "", "bn2")
PAIRS = [DIRECT, ("bn2", "relu", "blocks.2"), ("blocks.2", "relu6", "bn4"), ("head.1", "relu", "head.4")]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_proves_the_same_pairs(name: str, mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network().train(mode == "train")
    found = joined(FORMATS[name], network, tmp_path)
    # Decomposed, a linear layer is three operators, which are not followed.
    assert (PAIRS[:3] if name == "decompose" else PAIRS) == names(found)
    layers = [network.direct, network.blocks[1], network.last, network.head[3]]
    for connection, layer in zip(found, layers, strict=False):
        assert np.array_equal(layer.weight.detach().numpy().reshape(connection.weight.shape), connection.weight)
        expected = None if layer.bias is None else layer.bias.detach().numpy().tolist()
        assert expected == (None if connection.bias is None else connection.bias.tolist())


class Between(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: nn.Module, channels: int = 9) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.between = between
        self.after = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.after(self.between(self.before(x)))
        return y


class FlattenedRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 9, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = F.hardtanh(self.conv(F.relu(x)), 0.0, 6.0)
        return y


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(3, 9, **{"kernel_size": 1, **options})


NOT_PROVEN: dict[str, Callable[[], nn.Module]] = {
    "a larger kernel": lambda: conv(kernel_size=3),
    "a kernel of one row": lambda: conv(kernel_size=(1, 3)),
    "padding adds zeros": lambda: conv(padding=1),
    "padding by name": lambda: conv(kernel_size=3, padding="same"),
    "a stride leaves places out": lambda: conv(stride=2),
    "groups": lambda: conv(groups=3),
    "transposed": lambda: nn.ConvTranspose2d(3, 9, 1),
    "two convolutions": lambda: nn.Sequential(conv(), nn.Conv2d(9, 9, 1)),
    "a sigmoid": lambda: nn.Sequential(nn.Sigmoid(), conv()),
    "a leaky ReLU": lambda: nn.Sequential(nn.LeakyReLU(), conv()),
    "another ceiling": lambda: nn.Sequential(nn.Hardtanh(0.0, 1.0), conv()),
    "two activations": lambda: nn.Sequential(nn.ReLU(), nn.ReLU6(), conv()),
    "pooling": lambda: nn.Sequential(nn.MaxPool2d(2), conv()),
    "an activation after the convolution": lambda: nn.Sequential(conv(), nn.ReLU()),
    "activations on both sides": FlattenedRelu,
    "channels put elsewhere": lambda: nn.Sequential(nn.PixelShuffle(1), conv()),
}


@pytest.mark.parametrize("what", NOT_PROVEN)
@pytest.mark.parametrize("name", ["trace", "export", "onnx"])
def test_no_pair_with_anything_else_between(name: str, what: str, tmp_path: Path) -> None:
    assert joined(FORMATS[name], Between(NOT_PROVEN[what]()).eval(), tmp_path) == ()


class Changed(nn.Module):
    """The output of `before` is another by the time that the convolution sees it, or is not what it is given."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.before = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 9, 1)
        self.after = nn.BatchNorm2d(9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        if self.how == "in place":
            y.add_(1)
        elif self.how == "through a view":
            y.view(-1).mul_(2)
        elif self.how == "through a slice":
            y[:, :1] += 1
        elif self.how == "activated in place, unused":
            F.relu(y, inplace=True)
        elif self.how == "a sum":
            y = y + x
        elif self.how == "called again on data":
            x = x + self.after(self.conv(x)).mean()
        elif self.how == "the convolution is given the input":
            y = x
        z: torch.Tensor = self.after(self.conv(y))
        return z + x.mean()


CHANGES = [
    "in place",
    "through a slice",
    "a sum",
    "called again on data",
    "the convolution is given the input",
]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ["script", "trace", "export", "onnx"])
def test_no_pair_where_the_value_is_another(name: str, how: str, tmp_path: Path) -> None:
    assert joined(FORMATS[name], Changed(how).eval(), tmp_path) == ()


@pytest.mark.parametrize("name", ["script", "trace", "export"])
def test_no_pair_where_a_view_was_changed(name: str, tmp_path: Path) -> None:
    """The export to ONNX leaves the change out, so that its graph is right without."""
    assert joined(FORMATS[name], Changed("through a view").eval(), tmp_path) == ()


@pytest.mark.parametrize("name", ["script", "trace", "export", "onnx"])
def test_an_activation_in_place_is_one_for_those_who_use_its_argument_too(name: str, tmp_path: Path) -> None:
    """The tracers know that; in code, where the argument keeps its name, it proves nothing."""
    found = joined(FORMATS[name], Changed("activated in place, unused").eval(), tmp_path)
    expected = [] if name == "script" else [("before", "relu", "after")]
    assert expected == names(found)


@pytest.mark.parametrize("name", ["script", "trace", "export", "onnx"])
def test_what_happens_to_copies_does_not_matter(name: str, tmp_path: Path) -> None:
    assert names(joined(FORMATS[name], Changed("not at all").eval(), tmp_path)) == [("before", "", "after")]
    assert names(joined(FORMATS[name], UsedTwice().eval(), tmp_path)) == [("before", "", "after")]


class UsedTwice(Changed):
    """The output goes into a skip connection as well, as in a MobileNetV2."""

    def __init__(self) -> None:
        super().__init__("")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        z: torch.Tensor = self.after(self.conv(y)).mean() + torch.cat([y, torch.sigmoid(y)], 1)
        return z


class Branching(nn.Module):
    """An attribute decides, as in torchvision's InvertedResidual; or the data does."""

    def __init__(self, adds: bool, *, looks: bool = False) -> None:
        super().__init__()
        self.adds = adds
        self.looks = looks
        self.before = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1)
        self.after = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        if self.adds:
            y = x + y
        if self.looks and bool(x.sum() > 0):
            y = y + 1
        for _ in range(2):
            x = x + 1
        z: torch.Tensor = self.after(self.conv(y))
        return z


def test_a_branch_is_followed_if_an_attribute_decides(tmp_path: Path) -> None:
    assert names(joined(script, Branching(adds=False), tmp_path)) == [("before", "", "after")]
    assert joined(script, Branching(adds=True), tmp_path) == ()
    assert joined(script, Branching(adds=False, looks=True), tmp_path) == ()


class Mixer(nn.Module):
    """The linear layer mixes the last dimension, the BatchNorm normalises the second, and both have five."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm1d(5)
        self.mix = nn.Linear(5, 5)
        self.after = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.after(self.mix(self.before(x)))
        return y


@pytest.mark.parametrize("name", ["script", "trace", "export", "onnx"])
def test_a_linear_layer_must_mix_the_channels(name: str, tmp_path: Path) -> None:
    assert joined(FORMATS[name], Mixer().eval(), tmp_path, torch.zeros(2, 5, 5)) == ()


@pytest.mark.parametrize(("name", "known"), [("script", False), ("trace", False), ("export", True), ("onnx", True)])
def test_a_square_linear_layer_needs_a_graph_with_shapes(name: str, known: bool, tmp_path: Path) -> None:
    expected = [("before", "", "after")] if known else []
    assert expected == names(joined(FORMATS[name], Mixer().eval(), tmp_path, torch.zeros(2, 5)))


class Functional(nn.Module):
    """The calls stand in the forward of the network, and the layers are called in other orders than they are held."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.BatchNorm2d(9)
        self.conv = nn.Conv2d(3, 9, 1)
        self.before = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bn = self.before
        y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, 1e-5)
        y = F.conv2d(F.relu6(y), self.conv.weight, self.conv.bias)
        return self.after(y), x


@pytest.mark.parametrize("name", ["script", "trace", "export", "onnx"])
def test_functional_calls_are_followed(name: str, tmp_path: Path) -> None:
    assert names(joined(FORMATS[name], Functional().eval(), tmp_path)) == [("before", "relu6", "after")]


class Standardised(Functional):
    """The layer is given another weight than its own, so that the mean of its output is not its bias."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bn = self.before
        y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.bias, bn.weight, False, 0.1, 1e-5)
        return self.after(F.conv2d(y, self.conv.weight, self.conv.bias)), x


@pytest.mark.parametrize("name", ["script", "trace"])
def test_a_layer_must_be_given_its_own_tensors(name: str, tmp_path: Path) -> None:
    assert joined(FORMATS[name], Standardised().eval(), tmp_path) == ()


def test_a_state_dict_has_no_graph(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "model.pt"
    torch.save(Network().state_dict(), path)
    [group] = read(path).groups
    assert group.connections is None


# -- limits


def code_of(path: Path, old: str, new: str) -> Path:
    """The archive with other code in the one class that has the old."""
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    [entry] = [name for name, text in texts.items() if old in text]
    return rewritten(path, {entry: texts[entry].replace(old, new).encode()})


HOSTILE = {
    "expressions that nest": "y = " + "torch.relu(" * 150 + "x" + ")" * 150,
    "a statement that is too long": "y = " + "-" * 5000 + "x",
    "a method that calls itself": "y = (self).forward(x, )",
    "no Python": "y = )(",
    "a number of many digits": "y = torch.relu(" + "9" * 4000 + ")",
    "an unknown escape": 'y = "\\d"',
    "a return among the statements": "while x:\n      return x",
    "a name that is nothing": "y = nothing.at.all",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_code_that_torch_does_not_write_proves_nothing_and_breaks_nothing(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script(Between(conv()).eval(), path)
    assert joined_in(path) == [("before", "", "after")]
    hostile = code_of(path, "before = self.before\n", f"before = self.before\n    {HOSTILE[what]}\n")
    assert joined_in(hostile) in ([], [("before", "", "after")])


def joined_in(path: Path) -> list[tuple[str, str, str]]:
    with FileSource(path) as source:
        [group] = read_torchscript(source).groups
        assert group.connections
        return names(group.connections())


def test_a_walk_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script(Network().eval(), path)
    assert joined_in(path) == PAIRS
    monkeypatch.setattr(torchscript_flow, "MAX_STEPS", 20)
    assert joined_in(path) == []


def test_methods_are_found_by_class_and_name() -> None:
    text = "class A(Module):\n  x : int\n  def f(self: A,\n    x: Tensor) -> Tensor:\n    y = x\n    return y\n"
    [(name, method)] = methods_of(text + "def g(x: Tensor) -> Tensor:\n  return x\n")["A"].items()
    assert (name, method.arguments, method.lines) == ("f", ("self", "x"), ("    y = x", "    return y"))


def weight_of(shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    return Tensor(dtype, shape, lambda: np.ones(shape, np.float32))


def pair(weight: Tensor, bias: Tensor | None = None) -> Joined:
    found = Joined("model.pt")
    found.normalised(Trail("a").mixed(weight, bias), "b")
    return found


def test_more_weights_than_any_model_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "MAX_WEIGHTS", 10)
    assert len(pair(weight_of((2, 5))).connections()) == 1
    with pytest.raises(UnreadableError, match="more than 10 numbers between"):
        pair(weight_of((3, 5))).connections()


def test_weights_that_cannot_be_read_make_no_pair() -> None:
    assert pair(Tensor("float32", (2, 5), None)).connections() == ()
    assert pair(weight_of((2, 5), "qint8")).connections() == ()
    assert pair(weight_of((2, 5)), Tensor("float32", (2,), None)).connections() == ()
    assert pair(weight_of((2**11, 2**11))).connections() == ()
    assert pair(weight_of((0, 5))).connections() == ()


def test_what_is_left_out_of_a_convolution_is_the_default() -> None:
    assert is_pointwise(weight_of((2, 5, 1, 1)), {})
    assert not is_pointwise(weight_of((2, 5, 1, 1)), {"padding": "same"})
    assert not is_pointwise(weight_of((2, 5)), {})
    assert is_linear(weight_of((2, 5)), two_dimensional=False)
    assert not is_linear(weight_of((5, 5)), two_dimensional=False)
