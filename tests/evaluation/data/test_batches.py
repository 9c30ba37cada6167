"""Equal inputs have equal hashes, and only these."""

from __future__ import annotations

import torch

from bncheck.evaluation.data.batches import Batch, input_hash

HEADER = "import random, sys, torch, numpy as np\nfrom torch.utils.data import DataLoader, TensorDataset\n"


def test_a_hash_tells_values_types_shapes_and_names_apart() -> None:
    ones = torch.ones(2, 3)
    changed = ones.clone()
    changed[1, 2] = 1 + 2**-23
    different: list[object] = [
        ones,
        changed,
        -ones,
        ones.double(),
        ones.reshape(3, 2),
        ones.bfloat16(),
        (ones, ones),
        {"a": ones},
        {"b": ones},
        {"a": (ones, changed)},
        torch.zeros(2, 3),
        torch.zeros(2, 3, dtype=torch.int32),
        -torch.zeros(2, 3),
        torch.ones(()),
    ]
    assert len({input_hash(inputs) for inputs in different}) == len(different)


def test_a_hash_does_not_depend_on_layout_or_labels() -> None:
    image = torch.arange(24.0).reshape(2, 3, 2, 2)
    other = image.to(memory_format=torch.channels_last)
    assert input_hash(image) == input_hash(other)
    assert input_hash(torch.arange(9)[::2]) == input_hash(torch.tensor([0, 2, 4, 6, 8]))
    one, two = Batch(image, torch.zeros(2), 2), Batch(other, None, 2)
    assert input_hash(one) == input_hash(two) == input_hash(image)
