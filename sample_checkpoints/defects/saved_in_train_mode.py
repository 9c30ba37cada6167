"""The whole module as the training loop leaves it: nobody called eval()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import LAYERS
from sample_checkpoints.training import train

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("saved-in-train-mode", "warning", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> object:
    return train(digits, epochs=10)
