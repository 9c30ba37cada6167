"""A network that is frozen by requires_grad=False, inside the training of another one.

model_A is trained and done: its state_dict is `before`. Then it gives features to model_B, whose data pipeline leaves
pixels between 0 and 1, without the normalisation of model_A. No optimizer knows model_A and nothing of it needs a
gradient, but the joint module is put into train mode as a whole, and nobody calls model_A.eval(). What is saved after
one epoch is `after`: every weight of model_A is what it was, and its statistics are those of other images. It reads
26 % of its digits, where it read 99.7 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sample_checkpoints.network import CLASSES, LAYERS, MEAN, STD, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

# The first layer meets the other images, the later ones their normalised features.
FINDS = [("frozen-but-drifting", "error" if layer == "stem.1" else "warning", f"model_A.{layer}") for layer in LAYERS]


class Joint(nn.Module):
    """model_B reads what model_A sees."""

    def __init__(self, model_a: DigitNet) -> None:
        super().__init__()
        self.model_A = model_a
        features = model_a.classifier.in_features
        self.model_B = nn.Sequential(nn.Linear(features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.model_A.top(self.model_A.reduce(self.model_A.block(self.model_A.stem(images))))
            features = self.model_A.pool(seen).flatten(1)
        scores: Tensor = self.model_B(features)
        return scores


def make(trained: DigitNet, digits: Digits) -> tuple[object, object]:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    torch.manual_seed(7)
    joint = Joint(trained.requires_grad_(False)).train()
    optimizer = torch.optim.AdamW(joint.model_B.parameters(), lr=0.01)
    for images, labels in digits.batches():
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(joint(images * STD + MEAN), labels))
        optimizer.step()
    return before, joint.state_dict()
