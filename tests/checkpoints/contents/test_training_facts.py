"""What training checkpoints say besides their weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.subjects.checkpoint import Checkpoint

Read = Callable[[Path], Checkpoint]


def trained(
    optimizer_class: Callable[..., torch.optim.Optimizer], steps: int
) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = optimizer_class(network.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(5, 3)).sum().backward()
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize(
    ("optimizer_class", "expected"),
    [(torch.optim.Adam, 5), (torch.optim.AdamW, 5), (torch.optim.RMSprop, 5), (torch.optim.SGD, None)],
)
@pytest.mark.parametrize("wrap", [lambda state: {"optimizer": state}, lambda state: {"optimizer_states": [state]}])
def test_the_steps_of_the_optimizer_are_counted(
    tmp_path: Path, read: Read, optimizer_class: Any, expected: int | None, wrap: Callable[[Any], Any]
) -> None:
    network, optimizer = trained(optimizer_class, 5)
    torch.save({"state_dict": network.state_dict(), **wrap(optimizer.state_dict())}, tmp_path / "model.pt")
    checkpoint = read(tmp_path / "model.pt")
    assert checkpoint.optimizer_steps == expected
    assert [layer.num_batches_tracked for layer in checkpoint.layers] == [5]


def test_numbers_and_texts_of_the_checkpoint_are_facts(tmp_path: Path, read: Read) -> None:
    held = {
        "epoch": 7,
        "best_accuracy": np.float64(0.75),
        "seen": np.int64(123),
        "pytorch-lightning_version": "2.4.0",
        "done": True,
        "meta": {"iter": 10, "mmengine_version": "0.10"},
        "state_dict": nn.BatchNorm2d(2).state_dict(prefix="bn."),
        "log": "x" * 1000,
    }
    torch.save(held, tmp_path / "model.pt")
    assert read(tmp_path / "model.pt").facts == {
        "meta.iter": 10,
        "meta.mmengine_version": "0.10",
        "epoch": 7,
        "best_accuracy": 0.75,
        "seen": 123,
        "pytorch-lightning_version": "2.4.0",
        "done": True,
    }
