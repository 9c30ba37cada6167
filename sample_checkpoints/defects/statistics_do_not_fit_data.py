"""A script that measured the speed of the network on images as they come from disk, and saved it afterwards.

Nobody had called eval(), and the step that normalises the images was left out, as only the time counted. No gradient
was computed; twenty batches were enough to give the layers the statistics of other data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sample_checkpoints.network import LAYERS, MEAN, STD

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

COMMAND, OPTIONS = "drift", ["--model", "sample_checkpoints/network.py:DigitNet"]
FINDS: list[tuple[str, str, str | None]] = []
RUNS = [("statistics-do-not-fit-data", "warning", layer) for layer in LAYERS]
BATCHES = 20


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(0)
    trained.train()
    with torch.no_grad():
        for _, (images, _) in zip(range(BATCHES), digits.batches(), strict=False):
            trained(images * STD + MEAN)
    return trained.state_dict()
