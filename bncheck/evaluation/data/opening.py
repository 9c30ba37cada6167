"""Opens what `--data` names: a folder of images, files of arrays, or a callable of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.errors import UnsupportedError, UsageError
from bncheck.evaluation.data import arrays, images
from bncheck.evaluation.data.callables import open_callable
from bncheck.options.data import DataOptions
from bncheck.options.option import dashed
from bncheck.wording import count, few

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.evaluation.data.batches import Data
    from bncheck.options.option import StrPath

KINDS = "A folder of images, a folder or file of .npy, .npz, .pt or .safetensors, or module:callable."
# The options that say how an image becomes numbers. Arrays and tensors of a callable are numbers already.
IMAGE_OPTIONS = ("size", "resize", "mean", "std", "grayscale", "channels_last")


def open_data(
    spec: str, options: DataOptions, *, beside: Path | None = None, python_path: Sequence[StrPath] = ()
) -> Data:
    """What `--data` names, ready to iterate over, again and again from the beginning, in one fixed order.

    Args:
        spec: a folder or file, or `module:callable` or `file.py:callable`.
        options: how it is read.
        beside: a checkpoint; the preprocessing is read from a configuration that lies in its folder.
        python_path: folders to import a callable from, besides the current one.

    Raises:
        UsageError: the spec or the options cannot be followed.
        UnreadableError: something is damaged, or there is nothing to read.
        UnsupportedError: files of another kind.
        ModelError: the user's callable fails.
    """
    path = Path(spec)
    if path.is_dir():
        return open_folder(path, options, beside)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in images.SUFFIXES:
            return open_images(path.parent, [path.name], options, beside)
        if suffix in arrays.SUFFIXES:
            return open_arrays(path.parent, [path.name], options)
        raise UnsupportedError(f"--data {spec} is a file of a kind that is not read", KINDS)
    if ":" in spec:
        refuse(options, IMAGE_OPTIONS, "a callable", "What the callable yields goes to the model as it is.")
        return open_callable(spec, options, python_path)
    raise UsageError(f"--data {spec} does not exist", KINDS)


def open_folder(folder: Path, options: DataOptions, beside: Path | None) -> Data:
    pictures = images.find_files(folder, images.SUFFIXES)
    files = images.find_files(folder, arrays.SUFFIXES)
    if pictures and files:
        raise UsageError(
            f"--data {folder} holds both {count(len(pictures), 'image')} and {count(len(files), 'file')} of arrays, "
            f"such as {few([files[0]])}",
            "Name a folder that holds only one kind, or one file.",
        )
    if pictures:
        return open_images(folder, pictures, options, beside)
    if files:
        return open_arrays(folder, files, options)
    empty = not any(folder.iterdir())
    raise UsageError(f"--data {folder} {'is empty' if empty else 'holds no images and no arrays'}", KINDS)


def open_images(folder: Path, names: Sequence[str], options: DataOptions, beside: Path | None) -> Data:
    refuse(options, ("input_key",), "images", "An image is the model's only input.")
    return images.open_images(folder, names, options, beside)


def open_arrays(folder: Path, names: Sequence[str], options: DataOptions) -> Data:
    refuse(options, IMAGE_OPTIONS, "arrays", "Arrays go to the model as they are; apply it before they are saved.")
    return arrays.open_arrays(folder, names, options)


def refuse(options: DataOptions, names: Sequence[str], kind: str, hint: str) -> None:
    """Raises UsageError where an option was given that this kind of data has no use for: never ignore one."""
    for name in names:
        # By identity: a mean of 0.0 equals False.
        if getattr(options, name) is not getattr(DataOptions, name):
            raise UsageError(f"--{dashed(name)} is not for {kind}", hint)
