"""Two ranks of a distributed training with broadcast_buffers=False, whose sampler does not shuffle.

The data is sorted by digit: the first rank sees 0 to 4, the second 5 to 9. Gradients are averaged and the optimizers
make the same step, so that the weights stay equal in every bit. The statistics are those of five digits each.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

# Deeper layers tell the digits apart, and differ more.
FINDS = [("ranks-disagree", "warning", layer) for layer in ("reduce.1", "top.1")]


def make(trained: DigitNet, digits: Digits) -> tuple[object, object]:
    torch.manual_seed(8)
    ranks = [trained.train(), copy.deepcopy(trained)]
    shards = [digits.part(digits.labels < 5), digits.part(digits.labels >= 5)]
    optimizers = [torch.optim.SGD(rank.parameters(), lr=0.001) for rank in ranks]
    for _ in range(3):
        for batches in zip(*(shard.batches(32) for shard in shards), strict=False):
            for rank, (images, labels) in zip(ranks, batches, strict=True):
                rank.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(rank(images), labels))
            all_reduce(ranks)
            for optimizer in optimizers:
                optimizer.step()
    return ranks[0].state_dict(), ranks[1].state_dict()


def all_reduce(ranks: list[DigitNet]) -> None:
    """Gives every rank the mean of the gradients, as DistributedDataParallel does."""
    for parameters in zip(*(rank.parameters() for rank in ranks), strict=True):
        mean = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None]).mean(0)
        for parameter in parameters:
            parameter.grad = mean.clone()
