"""Pruning that goes over parameters() and so forgets the buffers.

The four channels with the smallest weights are cut out of the first BatchNorm of the block, together with the filters
before it and what reads them behind it. running_mean and running_var are no parameters, and keep all twelve.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("unusable-buffers", "error", "block.bn1")]
PRUNED = 4


def make(trained: DigitNet, digits: Digits) -> object:
    network = copy.deepcopy(trained)
    block = network.block
    kept = block.bn1.weight.detach().abs().argsort()[PRUNED:].sort().values
    for name, parameter in list(block.named_parameters()):
        module = block.get_submodule(name.rpartition(".")[0])
        axis = 1 if module is block.conv2 else 0
        if module is not block.bn2:
            setattr(module, name.rpartition(".")[2], nn.Parameter(cut(parameter, axis, kept)))
    return network.state_dict()


def cut(parameter: Tensor, axis: int, kept: Tensor) -> Tensor:
    return parameter.detach().index_select(axis, kept)
