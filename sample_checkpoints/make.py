"""Builds the sample checkpoints: a healthy network in three formats, and one file for each rule that sets it off.

    python sample_checkpoints/make.py [FOLDER]

The network is trained on the images of digits that scikit-learn ships (1797, of 8x8 pixels in 17 shades). Of each
digit a fifth is held out and stored in `digits/<class>/<index in the data set>.png`; the healthy network reads more
than 97 % of them correctly. Defects are made the way they happen: each function below tells the story of its file.
Seeds are fixed and one thread is used; what still varies by processor is the rounding.
"""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

if __name__ == "__main__":
    # Pickled modules name their class by where it was imported from: sample_checkpoints.network, seen from the root.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sample_checkpoints.network import MEAN, STD, DigitNet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent
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


# -- the defects: each takes the trained network and the images, and gives what torch.save stores


def non_finite_statistics(trained: DigitNet, digits: Digits) -> object:
    """One raw image in a fine-tuning in half precision.

    The stem and the block are frozen, so the rest sees whatever comes in at its full size. One image of 16 bits a
    pixel slips in without being scaled, and the first convolution after the block leaves the range of float16. The
    gradient scaler skips the optimizer step, so all parameters stay finite; the forward pass has written the
    statistics already, and the clean batches that follow never repair them.
    """
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


def negative_variance(trained: DigitNet, digits: Digits) -> object:
    """Federated averaging with momentum on the server, which takes the buffers for parameters.

    In the first rounds the variances fall from their initial 1 to what the images have. The momentum of the server
    carries that movement on, through 0. Training goes on as if nothing were wrong, since train mode does not read
    the buffers.
    """
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


def never_updated_statistics(trained: DigitNet, digits: Digits) -> object:
    """A load with strict=False that skips a part.

    One part was spread over several GPUs in training, so its keys read `block.module.bn1...`. The network that loads
    them has no such names, says nothing, and is saved again with a block that knows nothing.
    """
    torch.manual_seed(3)
    parallel: nn.Module = copy.deepcopy(trained)
    parallel.block = nn.DataParallel(copy.deepcopy(trained.block))  # which may move what it is given
    network = DigitNet()
    network.load_state_dict(parallel.state_dict(), strict=False)
    return network.state_dict()


def no_running_statistics(trained: DigitNet, digits: Digits) -> object:
    """A network that was trained with track_running_stats=False, saved as a whole and in eval mode."""
    return train(digits, epochs=5, track_running_stats=False).eval()


def saved_in_train_mode(trained: DigitNet, digits: Digits) -> object:
    """The whole module as the training loop leaves it: nobody called eval()."""
    return train(digits, epochs=10)


def unexpected_globals(trained: DigitNet, digits: Digits) -> object:
    """A training checkpoint into which somebody has put an object that runs code when it is loaded.

    Here it reads an environment variable, which does no harm; it could as well be a shell command.
    """
    return {"epoch": EPOCHS, "state_dict": trained.state_dict(), "config": RunsWhenLoaded()}


class RunsWhenLoaded:
    def __reduce__(self) -> tuple[Callable[[str], str | None], tuple[str]]:
        return os.getenv, ("HOME",)


DEFECTS: dict[str, Callable[[DigitNet, Digits], object]] = {
    "non-finite-statistics": non_finite_statistics,
    "negative-variance": negative_variance,
    "never-updated-statistics": never_updated_statistics,
    "no-running-statistics": no_running_statistics,
    "saved-in-train-mode": saved_in_train_mode,
    "unexpected-globals": unexpected_globals,
}


def make(folder: Path) -> None:
    """Writes all samples into the folder, which need not exist."""
    from safetensors.torch import save

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training, held_out = load_digits()
    write_digits(held_out, folder / "digits")
    trained = train(training).eval()
    torch.save(trained.state_dict(), folder / "healthy.pt")
    torch.save(trained, folder / "healthy_module.pt")
    (folder / "healthy.safetensors").write_bytes(save(trained.state_dict()))
    for rule, defect in DEFECTS.items():
        torch.save(defect(trained, training), folder / f"{rule}.pt")
    right = accuracy(trained, read_digits(folder / "digits"))
    print(
        f"{len(DEFECTS) + 3} samples in {folder}; the healthy network reads {right:.1%} of {HELD_OUT} images correctly"
    )


def main(arguments: Sequence[str]) -> None:
    make(Path(arguments[0]) if arguments else FOLDER)


if __name__ == "__main__":
    main(sys.argv[1:])
