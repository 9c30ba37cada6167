"""Federated averaging with momentum on the server, which takes the buffers for parameters.

In the first rounds the variances fall from their initial 1 to what the images have. The momentum of the server
carries that movement on, through 0. Training goes on as if nothing were wrong, since train mode does not read
the buffers.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from sample_checkpoints.network import LAYERS, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("negative-variance", "error", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> object:
    torch.manual_seed(2)
    server = DigitNet()
    clients = [digits.part(chosen) for chosen in torch.randperm(len(digits.labels)).chunk(4)]
    velocity = {name: torch.zeros_like(value) for name, value in server.state_dict().items()}
    for _ in range(3):
        updated = [train_client(copy.deepcopy(server), client).state_dict() for client in clients]
        state = server.state_dict()
        for name, old in state.items():
            if not old.is_floating_point():
                state[name] = updated[0][name]  # the counter, which all clients agree on
                continue
            average = torch.stack([client[name] for client in updated]).mean(0)
            velocity[name] = 0.9 * velocity[name] + (average - old)
            state[name] = old + velocity[name]
        server.load_state_dict(state)
    return server.state_dict()


def train_client(network: DigitNet, digits: Digits) -> DigitNet:
    """One epoch on the images of one client."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for images, labels in digits.batches(32):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
        optimizer.step()
    return network
