"""One raw image in a fine-tuning in half precision.

The stem and the block are frozen, so the rest sees whatever comes in at its full size. One image of 16 bits a
pixel slips in without being scaled, and the first convolution after the block leaves the range of float16. The
gradient scaler skips the optimizer step, so all parameters stay finite; the forward pass has written the
statistics already, and the clean batches that follow never repair them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import MEAN, STD

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

# The frozen parts count fewer updates than the rest.
FINDS = [
    *(("non-finite-statistics", "error", layer) for layer in ("reduce.1", "top.1")),
    ("uneven-counters", "note", None),
]


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(1)
    network = copy.deepcopy(trained)
    network.train()
    for frozen in (network.stem, network.block):
        frozen.eval().requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.001)
    scaler = torch.amp.GradScaler("cpu")
    for number, (images, labels) in enumerate(digits.batches()):
        if number == 2:
            images[0] = (images[0] * STD + MEAN) * torch.iinfo(torch.int16).max
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            scores = network(images)
        torch.autograd.backward(scaler.scale(nn.functional.cross_entropy(scores.float(), labels)))
        scaler.step(optimizer)
        scaler.update()
    return network.state_dict()
