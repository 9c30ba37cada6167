"""Layers of trained networks that give out zeros."""

import copy

import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.rules.zero_scale import RULE
from tests.rules.layers import fresh, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, asked, fires, note, quiet, said, warning

ZERO = {"weight": 0, "bias": 0}

QUIET: Quiet = {
    "a trained network": [layer("bn1"), layer("bn2")],
    "a fresh zero_init_residual": [fresh("bn1"), fresh("bn2", weight=0)],
    "a fresh one whose statistics were estimated": [
        layer("bn1", weight=1, bias=0),
        layer("bn2", **ZERO),
    ],
    "a layer that never ran: another rule speaks": [layer("bn1"), fresh("bn2", weight=0)],
    "single weights of 0: pruned": [layer("bn1", weight=[0, 0, 0, 1])],
    "L1 slimming leaves tiny weights": [layer("bn1"), layer("bn2", weight=1e-9)],
    "NaN is not 0": [layer("bn1"), layer("bn2", weight=float("nan"))],
    "no weight": [layer("bn1"), layer("bn2", weight=None, bias=None)],
    "no statistics": [layer("bn1"), layer("bn2", **ZERO, running_mean=None, running_var=None)],
}

FIRES: Fires = {
    "weight and bias are 0 in a trained network": ([layer("other"), layer("bn", **ZERO)], warning()),
    "in a state_dict": ([of_state_dict("other"), of_state_dict("bn", **ZERO)], warning()),
    "the counter was not kept": ([layer("other"), layer("bn", **ZERO, num_batches_tracked=None)], warning()),
    "without a bias": ([layer("other"), layer("bn", weight=0, bias=None)], warning()),
    "the bias was trained: set to 0 on purpose": ([layer("other"), layer("bn", weight=0)], note()),
    "other layers have single zeros: pruned": ([layer("other", weight=[0, 1, 2, 3]), layer("bn", **ZERO)], note()),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 2)
        nn.init.zeros_(self.branch[1].weight)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        scores: torch.Tensor = self.head((features + self.branch(features)).mean((2, 3)))
        return scores


def trained_for_one_step(module: Block, *, frozen: bool) -> Block:
    module = copy.deepcopy(module)
    module.branch.requires_grad_(not frozen)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    torch.autograd.backward(nn.functional.cross_entropy(module(torch.randn(8, 3, 6, 6)), torch.arange(8) % 2))
    optimizer.step()
    return module


def test_one_step_of_torch_moves_the_weight_away_from_0_unless_it_is_frozen() -> None:
    torch.manual_seed(0)
    block = Block()
    assert asked(RULE, live_group(block).layers) == []
    assert asked(RULE, live_group(trained_for_one_step(block, frozen=False)).layers) == []
    assert said(RULE, live_group(trained_for_one_step(block, frozen=True)).layers) == [("warning", "branch.1")]
