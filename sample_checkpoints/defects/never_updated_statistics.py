"""A load with strict=False that skips a part.

One part was spread over several GPUs in training, so its keys read `block.module.bn1...`. The network that loads
them has no such names, says nothing, and is saved again with a block that knows nothing.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("never-updated-statistics", "error", layer) for layer in ("block.bn1", "block.bn2")]


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(3)
    parallel: nn.Module = copy.deepcopy(trained)
    parallel.block = nn.DataParallel(copy.deepcopy(trained.block))  # which may move what it is given
    network = DigitNet()
    network.load_state_dict(parallel.state_dict(), strict=False)
    return network.state_dict()
