"""Batches from files of arrays: .npy, .npz, .pt and .safetensors, one file after another.

The first dimension of every array counts samples. Nothing is held but the batch in the making: .npy, .safetensors and
.pt are mapped into memory, .npz is unpacked as it is read. No file can run code: object arrays are refused, and
torch.load reads with `weights_only`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bncheck.errors import DAMAGED_HINT, BncheckError, UnreadableError, UnsupportedError, UsageError
from bncheck.evaluation.data.batches import LABEL_KEYS, Batch, Data
from bncheck.wording import few, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from bncheck.options.data import DataOptions

SUFFIXES = {".npy", ".npz", ".pt", ".pth", ".safetensors"}
# The key of the array in a file that holds only one.
ALONE = ""
NAMED_KEYS = 8
# Stored as pixels, spectra or sounds, never as indices: a network takes them as floating numbers. int32 and int64 may
# be indices of an embedding and stay as they are.
NARROW = {torch.uint8, torch.int8, torch.int16, torch.uint16}
UNSIGNED = {torch.uint32, torch.uint64}  # torch can do next to nothing with them
NUMBERS = "fiubc"  # numpy's kinds that are numbers


@dataclass(frozen=True, slots=True)
class Column:
    """One array of an open file; `read(start, stop)` gives samples and is called in ascending order only."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], torch.Tensor]


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
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else torch.float32


# -- what a file holds


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


# -- reading


def read_batches(files: Sequence[ArrayFile], batch_size: int, samples: int) -> Generator[Batch, None, None]:
    """One pass. Batches run on from one file into the next."""
    layout = files[0].layout
    held: list[dict[str, torch.Tensor]] = []
    size = 0
    for file in files:
        with columns_of(file.path, file.name) as columns:
            start = 0
            while start < file.layout.samples and samples:
                stop = start + min(batch_size - size, file.layout.samples - start, samples)
                held.append({key: read_part(file, columns, key, start, stop) for key in layout.shapes})
                size += stop - start
                samples -= stop - start
                start = stop
                if size == batch_size or not samples:
                    yield joined(held, layout, size)
                    held, size = [], 0
        if not samples:
            return
    if held:
        yield joined(held, layout, size)


def read_part(file: ArrayFile, columns: Mapping[str, Column], key: str, start: int, stop: int) -> torch.Tensor:
    with damage_of(file.name):
        return columns[key].read(start, stop)


def joined(held: Sequence[Mapping[str, torch.Tensor]], layout: Layout, size: int) -> Batch:
    # torch.cat copies, one part alone too: a model that works in place writes into no file.
    parts = {key: torch.cat([part[key] for part in held]) for key in layout.shapes}
    inputs = {key: as_input(parts[key]) for key in layout.inputs}
    alone = inputs[layout.inputs[0]] if len(inputs) == 1 else None
    return Batch(
        inputs if alone is None else alone, None if layout.labels is None else as_labels(parts[layout.labels]), size
    )


def as_input(stored: torch.Tensor) -> torch.Tensor:
    """What a float32 network takes: all floating types and narrow integers as float32, never scaled; the rest as is."""
    if stored.dtype in NARROW or stored.is_floating_point():
        return stored.to(torch.float32)
    return stored.to(torch.int64) if stored.dtype in UNSIGNED else stored


def as_labels(stored: torch.Tensor) -> torch.Tensor:
    return stored.to(torch.float32) if stored.is_floating_point() else stored.to(torch.int64)


# -- the formats


@contextlib.contextmanager
def columns_of(path: Path, name: str) -> Iterator[dict[str, Column]]:
    """Opens a file: its arrays by key, in a fixed order."""
    with contextlib.ExitStack() as opened:
        with damage_of(name):
            match path.suffix.lower():
                case ".npy":
                    columns = {ALONE: npy_column(path)}
                case ".npz":
                    columns = npz_columns(opened.enter_context(zipfile.ZipFile(path)), name, opened)
                case ".safetensors":
                    columns = safetensors_columns(path, opened)
                case _:
                    columns = torch_columns(path, name)
        yield columns


@contextlib.contextmanager
def damage_of(name: str) -> Iterator[None]:
    """Turns what the formats' readers raise on damaged files into an error that names the file."""
    try:
        yield
    except BncheckError:
        raise
    except Exception as error:  # zipfile, numpy, safetensors and torch raise some twenty kinds between them
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UnreadableError(f"{quoted(name)} cannot be read: {said}", DAMAGED_HINT) from error


def npy_column(path: Path) -> Column:
    if path.stat().st_size == 0:
        raise ValueError("it is empty")
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(mapped, np.ndarray):
        raise ValueError("it is no .npy file")  # numpy goes by the content, not by the name
    check_numbers(mapped.dtype)
    return Column(mapped.shape, mapped.dtype.name, lambda start, stop: from_numpy(mapped[start:stop]))


def npz_columns(archive: zipfile.ZipFile, name: str, opened: contextlib.ExitStack) -> dict[str, Column]:
    members = sorted(member for member in archive.namelist() if member.endswith(".npy"))
    return {member.removesuffix(".npy"): npz_column(archive, member, opened) for member in members}


def npz_column(archive: zipfile.ZipFile, member: str, opened: contextlib.ExitStack) -> Column:
    """An array that is unpacked as far as it is read: what is read is given back in order, once."""
    from numpy.lib import format as npy

    stream = opened.enter_context(archive.open(member))
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{member} is of version {version[0]}.{version[1]} of its format")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read_header(stream)
    check_numbers(dtype)

    def read_rows(start: int, stop: int) -> torch.Tensor:
        rows = (stop - start, *shape[1:])
        wanted = math.prod(rows) * dtype.itemsize
        data = stream.read(wanted)
        if len(data) < wanted:
            raise ValueError(f"{member} ends early")
        return from_numpy(np.frombuffer(data, dtype).reshape(rows))

    def read_columns(start: int, stop: int) -> torch.Tensor:
        # Fortran order: the first sample ends near the end of the file, there is no reading it in parts.
        if not whole:
            whole.append(np.frombuffer(stream.read(), dtype).reshape(shape, order="F"))
        return from_numpy(whole[0][start:stop])

    whole: list[Any] = []
    return Column(shape, dtype.name, read_columns if by_columns and len(shape) > 1 else read_rows)


def check_numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in NUMBERS:
        raise ValueError(f"it holds {dtype}, which are no numbers")


def from_numpy(part: Any) -> torch.Tensor:
    """A tensor of its own memory, in the byte order of this machine."""
    return torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("="), order="C"))


def safetensors_columns(path: Path, opened: contextlib.ExitStack) -> dict[str, Column]:
    from safetensors import safe_open

    file = opened.enter_context(safe_open(path, framework="pt"))

    def column(key: str) -> Column:
        view = file.get_slice(key)
        shape = tuple(view.get_shape())
        dtype = file.get_tensor(key).dtype if not shape else view[:0].dtype
        return Column(shape, str(dtype).removeprefix("torch."), lambda start, stop: view[start:stop])

    return {key: column(key) for key in sorted(file.keys())}


def torch_columns(path: Path, name: str) -> dict[str, Column]:
    found = load_tensors(path, name)
    if isinstance(found, torch.Tensor):
        found = {ALONE: found}
    elif isinstance(found, (tuple, list)) and len(found) == 2:
        found = dict(zip(("inputs", "labels"), found, strict=True))
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UnsupportedError(
            f"{quoted(name)} holds a {type(found).__name__} that is no tensor, (inputs, labels) or dict of tensors",
            "Save a tensor or a dict of tensors, the first dimension counting samples.",
        )
    for tensor in found.values():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError("it holds sparse, quantized or meta tensors")

    def column(tensor: torch.Tensor) -> Column:
        def read(start: int, stop: int) -> torch.Tensor:
            return tensor[start:stop].detach()

        return Column(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)

    return {str(key): column(found[key]) for key in sorted(found, key=str)}


def load_tensors(path: Path, name: str) -> Any:
    """What a file of torch.save holds, mapped where it is a zip; tensors and plain containers only."""
    import pickle  # noqa: TID251 - only for the name of the error

    load = partial(torch.load, map_location="cpu", weights_only=True)  # noqa: TID251 - weights_only runs nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders at damaged files before it refuses them
            return load(path, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UnsupportedError(
            f"{quoted(name)} holds more than tensors, or is no file of torch.save",
            "Save a tensor or a dict of tensors: data files are read with weights_only.",
        ) from error
