"""A fine-tuning loop whose train() undid the freezing, and a release script that trusts in the freezing.

The first blocks were frozen before the loop: no gradients, and eval() once. Each epoch then began with train() on the
whole network. The script that saves it puts the parts into eval mode that were trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FROZEN, TRAINED = ("stem", "block"), ("reduce", "top", "classifier")
MOVED = ("stem.1", "block.bn1", "block.bn2")
COMMAND, OPTIONS = "drift", ["--trust-pickle"]
FINDS: list[tuple[str, str, str | None]] = [("mixed-modes", "warning", layer) for layer in MOVED]
RUNS = [("changed-in-evaluation", "error", layer) for layer in MOVED]
EPOCHS, LEARNING_RATE = 2, 1e-4


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(0)
    for part in FROZEN:
        trained.get_submodule(part).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], LEARNING_RATE)
    for _ in range(EPOCHS):
        trained.train()
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(trained(images), labels))
            optimizer.step()
    for part in TRAINED:
        trained.get_submodule(part).eval()
    return trained
