"""Batches from a folder of images, decoded ahead by threads, in a fixed order."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bncheck.errors import UnreadableError, UsageError
from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.data.pixels import Picture, read_image
from bncheck.evaluation.data.preprocessing import find_preprocessing
from bncheck.wording import count, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from bncheck.evaluation.data.preprocessing import Preprocessing
    from bncheck.options.data import DataOptions

SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
# Folders of this name hold parts of a data set, not classes.
SPLITS = {"train", "training", "val", "valid", "validation", "eval", "dev", "test", "testing"}
# Written by macOS into archives; the files in it are named like the images.
JUNK = "__MACOSX"


def open_images(root: Path, names: Sequence[str], options: DataOptions, beside: Path | None = None) -> Data:
    """The images of a folder, or one image.

    Args:
        root: the folder.
        names: the images in it, as `find_files` gives them.
        options: how they are read.
        beside: a checkpoint, in whose folder a configuration of the preprocessing may lie.
    """
    preprocessing = find_preprocessing(options, beside)
    classes = class_names(names)
    skipped: list[str] = []
    description = {
        "kind": "images",
        "path": str(root),
        "files": len(names),
        "layout": "NHWC" if options.channels_last else "NCHW",
        **preprocessing.describe(),
    }
    names = spread_first(names, options.limit)
    start = partial(read_batches, root, names, classes, preprocessing, options, skipped)
    samples = len(names) if options.limit is None else min(len(names), options.limit)
    return Data(start, description, samples, classes, skipped)


def find_files(root: Path, suffixes: Iterable[str]) -> list[str]:
    """Names below a folder, with slashes, of files with these suffixes: the same order on every system.

    Hidden files and folders are left out. Links are followed, into each folder once.
    """
    wanted = set(suffixes)
    seen: set[str] = set()
    names: list[tuple[str, ...]] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != JUNK)
        parts = Path(folder).relative_to(root).parts
        names += [
            (*parts, name) for name in files if not name.startswith(".") and os.path.splitext(name)[1].lower() in wanted
        ]
    return ["/".join(parts) for parts in sorted(names)]


def spread_first(names: Sequence[str], limit: int | None) -> Sequence[str]:
    """The names with evenly spread ones first, as many as are read: the first of a folder are often of one class."""
    if limit is None or limit >= len(names):
        return names
    chosen = [names[place * len(names) // limit] for place in range(limit)]
    taken = set(chosen)
    return [*chosen, *(name for name in names if name not in taken)]


def class_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """The sorted sub-folders, as torchvision's ImageFolder has them; None where they are no classes.

    They are none if an image lies outside of them, if there is only one, or if they are parts such as train and test.
    """
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    if "" in tops or len(tops) < 2 or {top.lower() for top in tops} <= SPLITS:
        return None
    return tuple(sorted(tops))


def read_batches(
    root: Path,
    names: Sequence[str],
    classes: tuple[str, ...] | None,
    preprocessing: Preprocessing,
    options: DataOptions,
    skipped: list[str],
) -> Generator[Batch, None, None]:
    """One pass: batches of shape (N, C, H, W), or (N, H, W, C), float32, with labels where there are classes."""
    indices = {name: index for index, name in enumerate(classes or ())}
    pictures = (Picture(str(root / name), name, indices.get(name.partition("/")[0])) for name in names)
    decode = partial(read_image, preprocessing=preprocessing, channels_last=options.channels_last)
    left = options.limit if options.limit is not None else len(names)
    first: tuple[str, tuple[int, ...]] | None = None
    batch: list[NDArray[np.float32]] = []
    labels: list[int] = []
    # Read ahead by a batch, so that the next is ready when the model is done with this one; and never by more.
    ahead = min(options.batch_size + options.workers, left)
    for picture, decoded in in_order(decode, pictures, options.workers, ahead):
        try:
            pixels = decoded()
        except UnreadableError:
            if not options.skip_unreadable:
                raise
            if picture.name not in skipped:
                skipped.append(picture.name)
            continue
        first = first or (picture.name, pixels.shape)
        if pixels.shape != first[1]:
            raise different_sizes(first, (picture.name, pixels.shape), options.channels_last)
        batch.append(pixels)
        if picture.label is not None:
            labels.append(picture.label)
        left -= 1
        if len(batch) == options.batch_size or not left:
            yield batch_of(batch, labels)
            batch, labels = [], []
        if not left:
            return
    if batch:
        yield batch_of(batch, labels)
    elif first is None:
        raise UnreadableError(
            f"{root} holds {count(len(names), 'image')}, of which none can be read",
            "Open one of them to see why, or name another folder.",
        )


def in_order(
    decode: Callable[[Picture], NDArray[np.float32]], pictures: Iterable[Picture], workers: int, ahead: int
) -> Iterator[tuple[Picture, Callable[[], NDArray[np.float32]]]]:
    """Each picture with a function that gives its pixels or raises; at most `ahead` are decoded early."""
    if not workers:
        for picture in pictures:
            yield picture, partial(decode, picture)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="bncheck-images")
    waiting: deque[tuple[Picture, Future[NDArray[np.float32]]]] = deque()
    try:
        for picture in pictures:
            waiting.append((picture, pool.submit(decode, picture)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result
    finally:  # after an exception, Ctrl-C or an early end too
        pool.shutdown(wait=True, cancel_futures=True)


def batch_of(pixels: list[NDArray[np.float32]], labels: list[int]) -> Batch:
    return Batch(torch.from_numpy(np.stack(pixels)), torch.tensor(labels) if labels else None, len(pixels))


def different_sizes(
    one: tuple[str, tuple[int, ...]], other: tuple[str, tuple[int, ...]], channels_last: bool
) -> UsageError:
    place = 0 if channels_last else 1
    sizes = [f"{quoted(name)} has {shape[place]}x{shape[place + 1]}" for name, shape in (one, other)]
    return UsageError(
        f"images of different sizes: {sizes[0]} and {sizes[1]} pixels (height x width)",
        "Give --resize N --size HxW to cut out the center, or --size HxW alone to stretch them.",
    )
