"""Batches from files of arrays: .npy, .npz, .pt and .safetensors, one file after another.

The first dimension of every array counts samples. Nothing is held but the batch in the making.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bncheck.errors import UnreadableError, UnsupportedError, UsageError
from bncheck.evaluation.data.batches import LABEL_KEYS, Batch, Data
from bncheck.evaluation.data.columns import ALONE, columns_of, damage_of
from bncheck.wording import few, quoted

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from bncheck.evaluation.data.columns import Column
    from bncheck.options.data import DataOptions

SUFFIXES = {".npy", ".npz", ".pt", ".pth", ".safetensors"}
NAMED_KEYS = 8
# Stored as pixels, spectra or sounds, never as indices: a network takes them as floating numbers. int32 and int64 may
# be indices of an embedding and stay as they are.
NARROW = {torch.uint8, torch.int8, torch.int16, torch.uint16}
UNSIGNED = {torch.uint32, torch.uint64}  # torch can do next to nothing with them


@dataclass(frozen=True, slots=True)
class Layout:
    """Which arrays of a file are inputs, which is the labels, and what one sample looks like."""

    inputs: tuple[str, ...]
    labels: str | None
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    samples: int


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """A file that was opened once, and what it holds."""

    path: Path
    name: str
    layout: Layout


def open_arrays(root: Path, names: Sequence[str], options: DataOptions) -> Data:
    """The arrays of a folder, or of one file.

    Args:
        root: the folder.
        names: the files in it, in the order in which they are read.
        options: how they are read.

    Raises:
        UsageError: a key is missing or unclear, or files do not fit together.
        UnreadableError: a file is damaged and may not be skipped, or none can be read.
        UnsupportedError: a file holds something else than arrays of numbers.
    """
    files: list[ArrayFile] = []
    skipped: list[str] = []
    for name in names:
        try:
            with columns_of(root / name, name) as columns:
                layout = layout_of(name, columns, options.input_key)
        except UnreadableError:
            if not options.skip_unreadable:
                raise
            skipped.append(name)
            continue
        if files:
            check_same(files[0], name, layout)
        files.append(ArrayFile(root / name, name, layout))
    total = sum(file.layout.samples for file in files)
    if not total:
        raise UnreadableError(
            f"no samples in {root / names[0] if len(names) == 1 else root}",
            "Name arrays whose first dimension counts samples.",
        )
    samples = total if options.limit is None else min(total, options.limit)
    description = {"kind": "arrays", "path": str(root), "files": len(files), **describe(files[0].layout)}
    return Data(partial(read_batches, files, options.batch_size, samples), description, samples, None, skipped)


def describe(layout: Layout) -> dict[str, Any]:
    inputs = {
        key or "(the only array)": {
            "sample_shape": list(layout.shapes[key]),
            "stored": layout.dtypes[key],
            "given": str(as_input(torch.empty(0, dtype=torch_type(layout.dtypes[key]))).dtype).removeprefix("torch."),
            "scaled": False,
        }
        for key in layout.inputs
    }
    return {"inputs": inputs, "labels": layout.labels}


def torch_type(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def layout_of(name: str, columns: Mapping[str, Column], input_keys: Sequence[str]) -> Layout:
    """Which array is what.

    Without `--input-key` the input is the only array that is not called labels, label, targets, target or y.
    """
    for key in input_keys:
        if key not in columns:
            raise UsageError(
                f"--input-key {key} is not in {quoted(name)}",
                f"It holds {few(sorted(columns), NAMED_KEYS)}." if ALONE not in columns else "It holds one array.",
            )
    labels = next((key for key in LABEL_KEYS if key in columns and key not in input_keys and len(columns) > 1), None)
    inputs = tuple(input_keys) or tuple(key for key in columns if key != labels)
    if not inputs:
        raise UnsupportedError(f"{quoted(name)} holds no arrays", "Save tensors or arrays, samples first.")
    if len(inputs) > 1 and not input_keys:
        raise UsageError(
            f"{quoted(name)} holds several arrays: {few(sorted(inputs), NAMED_KEYS)}",
            "Name the model's input with --input-key, several times if it has several.",
        )
    used = (*inputs, *([labels] if labels else []))
    for key in used:
        if not columns[key].shape:
            raise UnsupportedError(
                f"{described(key, name)} is a single number", "The first dimension of an array counts samples."
            )
    lengths = {key: columns[key].shape[0] for key in used}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{length:,} of {key}" for key, length in lengths.items())
        raise UsageError(
            f"{quoted(name)} has unequal numbers of samples: {said}", "The first dimension counts samples."
        )
    return Layout(
        inputs,
        labels,
        {key: columns[key].shape[1:] for key in used},
        {key: columns[key].dtype for key in used},
        columns[inputs[0]].shape[0],
    )


def described(key: str, name: str) -> str:
    return f"{key!r} of {quoted(name)}" if key else quoted(name)


def check_same(first: ArrayFile, name: str, layout: Layout) -> None:
    """Raises UsageError where samples of two files cannot be in one batch."""
    known = first.layout
    if (known.inputs, known.labels) != (layout.inputs, layout.labels):
        raise UsageError(
            f"{quoted(first.name)} and {quoted(name)} hold arrays of different names",
            "All files of a folder must hold the same arrays; inputs and labels belong into one .npz.",
        )
    for key, shape in known.shapes.items():
        if shape != layout.shapes[key]:
            raise UsageError(
                f"samples of different shapes: {described(key, first.name)} has {shape}, "
                f"{described(key, name)} has {layout.shapes[key]}",
                "The first dimension counts samples, the others must agree; inputs and labels belong into one .npz.",
            )


def read_batches(files: Sequence[ArrayFile], batch_size: int, samples: int) -> Generator[Batch, None, None]:
    """One pass. Batches run on from one file into the next."""
    layout = files[0].layout
    parts: list[dict[str, torch.Tensor]] = []  # of the batch in the making
    size = 0
    for file in files:
        with columns_of(file.path, file.name) as columns:
            start = 0
            while start < file.layout.samples and samples:
                stop = start + min(batch_size - size, file.layout.samples - start, samples)
                parts.append({key: read_part(file, columns, key, start, stop) for key in layout.shapes})
                size += stop - start
                samples -= stop - start
                start = stop
                if size == batch_size or not samples:
                    yield joined(parts, layout, size)
                    parts, size = [], 0
        if not samples:
            return
    if parts:
        yield joined(parts, layout, size)


def read_part(file: ArrayFile, columns: Mapping[str, Column], key: str, start: int, stop: int) -> torch.Tensor:
    with damage_of(file.name):
        return columns[key].read(start, stop)


def joined(parts: Sequence[Mapping[str, torch.Tensor]], layout: Layout, size: int) -> Batch:
    # torch.cat copies, one part alone too: a model that works in place writes into no file.
    whole = {key: torch.cat([part[key] for part in parts]) for key in layout.shapes}
    inputs = {key: as_input(whole[key]) for key in layout.inputs}
    alone = inputs[layout.inputs[0]] if len(inputs) == 1 else None
    return Batch(
        inputs if alone is None else alone, None if layout.labels is None else as_labels(whole[layout.labels]), size
    )


def as_input(stored: torch.Tensor) -> torch.Tensor:
    """What a float32 network takes: all floating types and narrow integers as float32, never scaled; the rest as is."""
    if stored.dtype in NARROW or stored.is_floating_point():
        return stored.to(torch.float32)
    return stored.to(torch.int64) if stored.dtype in UNSIGNED else stored


def as_labels(stored: torch.Tensor) -> torch.Tensor:
    return stored.to(torch.float32) if stored.is_floating_point() else stored.to(torch.int64)
