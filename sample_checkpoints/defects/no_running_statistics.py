"""A network that was trained with track_running_stats=False, saved as a whole and in eval mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import LAYERS
from sample_checkpoints.training import train

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("no-running-statistics", "warning", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> object:
    return train(digits, epochs=5, track_running_stats=False).eval()
