"""A training that was meant to resume and began anew: the path of the checkpoint was wrong, and nothing said so.

`before` is the file of the twentieth epoch, `after` what the second run saved after two epochs of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import LAYERS, DigitNet
from sample_checkpoints.training import train

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("impossible-lineage", "warning", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> tuple[object, object]:
    return trained.state_dict(), train(digits, epochs=2).state_dict()
