"""Builds the sample checkpoints: a healthy network in three formats, and one file for each rule that sets it off.

    python sample_checkpoints/make.py [FOLDER] [RULE...]

The network is trained on the images of digits that scikit-learn ships (1797, of 8x8 pixels in 17 shades). Of each
digit a fifth is held out and stored in `digits/<class>/<index in the data set>.png`; the healthy network reads more
than 97 % of them correctly. Defects are made the way they happen: each file in `defects/` tells the story of its own.
Seeds are fixed and one thread is used; what still varies by processor is the rounding.
"""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if __name__ == "__main__":
    # Pickled modules name their class by where it was imported from: sample_checkpoints.network, seen from the root.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sample_checkpoints.training import HELD_OUT, accuracy, load_digits, train, write_digits

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

FOLDER = Path(__file__).resolve().parent
DEFECTS: dict[str, Any] = {
    path.stem.replace("_", "-"): importlib.import_module(f"sample_checkpoints.defects.{path.stem}")
    for path in sorted((FOLDER / "defects").glob("[!_]*.py"))
}
# Stories of two checkpoints: before.pt and after.pt in a folder.
PAIRS: dict[str, Any] = {
    path.stem.replace("_", "-"): importlib.import_module(f"sample_checkpoints.pairs.{path.stem}")
    for path in sorted((FOLDER / "pairs").glob("[!_]*.py"))
}


def make(folder: Path, rules: Collection[str] = ()) -> None:
    """Writes all samples, or only those of some rules, into the folder, which need not exist."""
    from safetensors.torch import save as to_safetensors

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = load_digits()
    trained = train(training).eval()
    if not rules:
        write_digits(held_out, folder / "digits")
        torch.save(trained.state_dict(), folder / "healthy.pt")
        torch.save(trained, folder / "healthy_module.pt")
        (folder / "healthy.safetensors").write_bytes(to_safetensors(trained.state_dict()))
        torch.save(reset(copy.deepcopy(trained)).state_dict(), folder / "reset-statistics.pt")
    for rule in [rule for rule in DEFECTS if not rules or rule in rules]:
        save(DEFECTS[rule].make(copy.deepcopy(trained), training), folder / f"{rule}.pt")
    for rule in [rule for rule in PAIRS if not rules or rule in rules]:
        (folder / rule).mkdir(exist_ok=True)
        for name, made in zip(("before", "after"), PAIRS[rule].make(copy.deepcopy(trained), training), strict=True):
            save(made, folder / rule / f"{name}.pt")
    right = accuracy(trained, held_out)
    stories = len(rules or {**DEFECTS, **PAIRS})
    print(f"{stories} defects in {folder}; the healthy network reads {right:.1%} of {HELD_OUT} images")


def reset(network: torch.nn.Module) -> torch.nn.Module:
    """Puts the statistics of every BatchNorm back to 0 and 1, and the counter to 0; the weights stay."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    return network


def save(made: object, path: Path) -> None:
    """A graph as torch.jit saves it, anything else as torch.save does."""
    if isinstance(made, torch.jit.ScriptModule):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is old, and still released
            torch.jit.save(made, path)
    else:
        torch.save(made, path)


def main(arguments: Sequence[str]) -> None:
    rules = [argument for argument in arguments if argument in {**DEFECTS, **PAIRS}]
    folders = [Path(argument) for argument in arguments if argument not in rules]
    make(folders[0] if folders else FOLDER, rules)


if __name__ == "__main__":
    main(sys.argv[1:])
