"""Opens a file of arrays, .npy, .npz, .pt or .safetensors: each array a column of samples that is read in parts.

.npy, .safetensors and .pt are mapped into memory, .npz is unpacked as it is read. No file can run code: object arrays
are refused, and torch.load reads with `weights_only`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bncheck.errors import DAMAGED_HINT, BncheckError, UnreadableError, UnsupportedError
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# The key of the array in a file that holds only one.
ALONE = ""
NUMBERS = "fiubc"  # numpy's kinds that are numbers


@dataclass(frozen=True, slots=True)
class Column:
    """One array of an open file; `read(start, stop)` gives samples and is called in ascending order only."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], torch.Tensor]


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
    loaded = load_tensors(path, name)
    if isinstance(loaded, torch.Tensor):
        loaded = {ALONE: loaded}
    elif isinstance(loaded, (tuple, list)) and len(loaded) == 2:
        loaded = dict(zip(("inputs", "labels"), loaded, strict=True))
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UnsupportedError(
            f"{quoted(name)} holds a {type(loaded).__name__} that is no tensor, (inputs, labels) or dict of tensors",
            "Save a tensor or a dict of tensors, the first dimension counting samples.",
        )
    for tensor in loaded.values():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError("it holds sparse, quantized or meta tensors")

    def column(tensor: torch.Tensor) -> Column:
        def read(start: int, stop: int) -> torch.Tensor:
            return tensor[start:stop].detach()

        return Column(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)

    return {str(key): column(loaded[key]) for key in sorted(loaded, key=str)}


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
