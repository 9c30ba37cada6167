"""The digits, and how the healthy network is trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sample_checkpoints.network import MEAN, STD, DigitNet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

HELD_OUT = 360
BATCH_SIZE = 64
EPOCHS = 20
HIGHEST_LEARNING_RATE = 0.02
SHADES = 16  # pixels of the data set lie between 0 and this


@dataclass(frozen=True, slots=True)
class Digits:
    """Normalised images (N, 1, 8, 8), their labels (N,), and where they are in the data set (N,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def batches(self, size: int = BATCH_SIZE) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of equal size; a smaller rest is left out."""
        order = torch.randperm(len(self.labels))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield self.images[chosen], self.labels[chosen]

    def part(self, chosen: Tensor) -> Digits:
        return Digits(self.images[chosen], self.labels[chosen], self.indices[chosen])


# -- the images


def load_digits() -> tuple[Digits, Digits]:
    """The images to train on, and those held out: the same fifth of each digit every time."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    shades, labels = load(return_X_y=True)
    everything = Digits(
        normalise(to_pixels(shades.reshape(-1, 8, 8))), torch.from_numpy(labels), torch.arange(len(labels))
    )
    training, held_out = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0)
    return everything.part(torch.from_numpy(training)), everything.part(torch.from_numpy(np.sort(held_out)))


def to_pixels(shades: NDArray[np.float64]) -> Tensor:
    """Shades from 0 to 16 as pixels from 0 to 255, shape (N, 1, 8, 8), as an 8-bit image holds them."""
    return torch.from_numpy(np.round(shades * (255 / SHADES)).astype(np.uint8))[:, None]


def normalise(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - MEAN) / STD


def write_digits(digits: Digits, folder: Path) -> None:
    """Stores the images as `<class>/<index>.png`, 8x8 and gray."""
    pixels = ((digits.images * STD + MEAN) * 255).round().to(torch.uint8)
    for image, label, index in zip(pixels, digits.labels.tolist(), digits.indices.tolist(), strict=True):
        path = folder / str(label) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)


def read_digits(folder: Path) -> Digits:
    """The images that `write_digits` stored."""
    paths = sorted(folder.glob("*/*.png"))
    pixels = np.stack([read_image(path) for path in paths])
    labels = torch.tensor([int(path.parent.name) for path in paths])
    indices = torch.tensor([int(path.stem) for path in paths])
    return Digits(normalise(torch.from_numpy(pixels)[:, None]), labels, indices)


def read_image(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


# -- the healthy network


def train(digits: Digits, epochs: int = EPOCHS, *, track_running_stats: bool = True) -> DigitNet:
    """Trains a new network and leaves it in train mode.

    The learning rate ends near 0, so that the running statistics belong to the parameters that are saved. float64 is
    used on the way, for the initial values as well: the rounding of float32 differs by processor, and training turns
    a difference of 1e-8 into another network.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    network = DigitNet(track_running_stats=track_running_stats)
    torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = epochs * (len(digits.labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HIGHEST_LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for images, labels in digits.batches():
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images.double()), labels))
            optimizer.step()
            schedule.step()
    return network.float()


def accuracy(network: DigitNet, digits: Digits) -> float:
    """The share of the images that the network reads correctly, in the mode that it is in."""
    with torch.inference_mode():
        return float((network(digits.images).argmax(1) == digits.labels).double().mean())
