"""Which kind of BatchNorm a state_dict holds, compared with the networks that wrote it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bncheck.subjects.checkpoint import Checkpoint

Read = Callable[[Path], Checkpoint]


class PreActivation(nn.Module):
    """BatchNorm before its convolution, channels concatenated, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 4, 1)
        self.norm2 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 4, 1)


class Listed(nn.Module):
    """All convolutions first, then all BatchNorms, as PointNet++ has it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(3, 8, 1), nn.Conv1d(8, 16, 1)])
        self.bns = nn.ModuleList([nn.BatchNorm1d(8), nn.BatchNorm1d(16)])


class Squeeze(nn.Module):
    """Linear layers of the same width beside the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.se = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8))
        self.head = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5))


FAMILIES = {
    "vgg": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    ),
    "mlp": lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)),
    "sequence": lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)),
    "video": lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8)),
    "generator": lambda: nn.Sequential(
        nn.ConvTranspose2d(16, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4), nn.BatchNorm2d(3)
    ),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 24, 1), nn.BatchNorm2d(24)
    ),
    "pre-activation": PreActivation,
    "listed": Listed,
    "squeeze": Squeeze,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sorted_keys", [False, True])
def test_the_kind_is_inferred_or_left_open_but_never_wrong(
    tmp_path: Path, read: Read, name: str, sorted_keys: bool
) -> None:
    network = FAMILIES[name]()
    if sorted_keys:
        save_file(network.state_dict(), tmp_path / "model")
    else:
        torch.save(network.state_dict(), tmp_path / "model")
    modules = dict(network.named_modules())
    told = {
        layer.name: (layer.kind.value, type(modules[layer.name]).__name__) for layer in read(tmp_path / "model").layers
    }
    assert told
    assert all(ours in (theirs, "BatchNorm") for ours, theirs in told.values())
    assert all(ours == theirs for ours, theirs in told.values()) or sorted_keys


def test_what_feeds_and_what_is_fed_must_agree(tmp_path: Path, read: Read) -> None:
    """The neck of re-identification: convolutions, a pooling that leaves no trace, BatchNorm1d, a classifier."""
    network = nn.ModuleDict(
        {
            "base": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
            "bottleneck": nn.BatchNorm1d(8),
            "classifier": nn.Linear(8, 5),
        }
    )
    torch.save(network.state_dict(), tmp_path / "model")
    assert [layer.kind.value for layer in read(tmp_path / "model").layers] == ["BatchNorm2d", "BatchNorm"]


def test_without_weights_the_kind_is_not_told(tmp_path: Path, read: Read) -> None:
    torch.save(nn.Sequential(nn.BatchNorm2d(8)).state_dict(), tmp_path / "model")
    assert [layer.kind.value for layer in read(tmp_path / "model").layers] == ["BatchNorm"]
