"""A block that was renamed after training: `top` was called `head` when the weights were saved.

The code of today finds nothing for its last BatchNorm, and with strict=False it does not say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

# With the architecture: bncheck inspect --model sample_checkpoints/network.py:DigitNet
MODEL = "sample_checkpoints/network.py:DigitNet"
FINDS = [("architecture-mismatch", "error", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    return {name.replace("top.", "head."): value for name, value in trained.state_dict().items()}
