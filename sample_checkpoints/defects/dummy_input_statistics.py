"""Weights without buffers, loaded into a network that was probed with zeros.

A tool finds the strides of a new network by running two images of zeros through it, in the train mode in which every
module starts. The weights come from a file that holds parameters() only, so that the traces of the probe stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sample_checkpoints.network import LAYERS, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("dummy-input-statistics", "error", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(4)
    network = DigitNet()
    for size in (8, 16):
        network(torch.zeros(1, 1, size, size))
    network.load_state_dict(dict(trained.named_parameters()), strict=False)
    return network.state_dict()
