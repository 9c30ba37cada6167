"""safetensors files, written by the safetensors package."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bncheck.errors import UnreadableError
from bncheck.subjects.checkpoint import Checkpoint

Read = Callable[[Path], Checkpoint]

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_type_is_read_exactly(tmp_path: Path, read: Read, dtype: torch.dtype) -> None:
    state = {"bn.running_mean": torch.randn(5).to(dtype), "bn.running_var": torch.rand(5).to(dtype)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = read(tmp_path / "model.safetensors")
    [layer] = checkpoint.layers
    assert layer.dtype == str(dtype).removeprefix("torch.")
    assert layer.running_mean is not None
    np.testing.assert_array_equal(layer.running_mean, state["bn.running_mean"].to(torch.float64).numpy())
    assert checkpoint.facts == {"metadata.format": "pt"}


def with_header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (with_header({"a": TENSOR}, b"1234"), r"needs \d+ bytes and has"),
        (with_header({"a": TENSOR}, b"12345678", length=5000), "announces a header"),
        (with_header({"a": TENSOR, "b": {**TENSOR, "data_offsets": [4, 12]}}, b"1" * 12), "overlap"),
        (with_header({"a": {**TENSOR, "shape": [3]}}, b"12345678"), "needs 12 bytes"),
        (with_header({"a": {**TENSOR, "shape": [1]}}, b"12345678"), "do not fit its shape"),
        (with_header({"a": {**TENSOR, "shape": [-1]}}, b"12345678"), "no dtype, shape or place"),
        (with_header({"a": {**TENSOR, "shape": [2**62, 2**62]}}, b"12345678"), "needs"),
        (with_header({"a": {**TENSOR, "dtype": "F31"}}, b"12345678"), "unknown dtype"),
        (with_header({"a": 3}), "no dtype, shape or place"),
        (with_header(b"{ "), "not proper JSON"),
        (with_header(b'{"a": ' + b"[" * 100_000), "not proper JSON"),
        (with_header(b'{"a": 1, "a": 2}'), "not proper JSON"),
        (with_header({"__metadata__": 3}), "metadata that are not a table"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, read: Read, content: bytes, complaint: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UnreadableError, match=complaint):
        read(tmp_path / "model.safetensors")
