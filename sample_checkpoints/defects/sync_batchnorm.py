"""A network converted for training on several GPUs, and saved as it was."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from sample_checkpoints.network import LAYERS

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("sync-batchnorm", "warning", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> object:
    network: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(trained))
    return network.eval()
