"""Whether two tensors hold the same numbers, however they are read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bncheck
from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.findings.measurements import as_json
from bncheck.pairing.equality import PIECE, equal_tensors, statistics_equal
from bncheck.subjects.checkpoint import Tensor
from tests.rules.layers import layer


def test_large_tensors_are_compared_in_pieces_up_to_the_first_difference() -> None:
    read: list[tuple[int, int]] = []
    values = np.zeros(PIECE * 3 + 5, np.float32)

    def part(start: int, stop: int) -> Any:
        read.append((start, stop))
        return values[start:stop]

    def refuse() -> Any:
        pytest.fail("it is read as a whole")

    own = Tensor("float32", values.shape, refuse, part)
    assert equal_tensors(own, own)
    assert read[::2] == [(0, PIECE), (PIECE, 2 * PIECE), (2 * PIECE, 3 * PIECE), (3 * PIECE, 3 * PIECE + 5)]
    other_values = values.copy()
    other_values[PIECE + 3] = 1
    read.clear()
    other = Tensor("float32", values.shape, refuse, lambda start, stop: other_values[start:stop])
    assert not equal_tensors(own, other)
    assert read == [(0, PIECE), (PIECE, 2 * PIECE)]


def test_what_cannot_be_read_in_pieces_and_is_large_is_not_known() -> None:
    whole = Tensor("float32", (2**20 + 1,), lambda: pytest.fail("too large"))
    assert equal_tensors(whole, whole) is None
    assert equal_tensors(Tensor("qint8", (2,), None), Tensor("qint8", (2,), None)) is None
    assert equal_tensors(Tensor("float32", (2,), None), Tensor("float32", (3,), None)) is False


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "expanded", "a slice"])
def test_pieces_of_any_layout_are_those_of_the_whole(layout: str, tmp_path: Path) -> None:
    whole = torch.randn(6, 5, 3, 3)
    made = {
        "contiguous": whole,
        "channels last": whole.to(memory_format=torch.channels_last),
        "expanded": whole[:1].expand(6, 5, 3, 3),
        "a slice": torch.randn(6, 9, 3, 3)[:, 2:7],
    }[layout]
    torch.save({"w": made, "bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)}, tmp_path / "m.pt")
    flat = made.numpy().reshape(-1)
    with FileSource(tmp_path / "m.pt") as source:
        part = read_checkpoint(source).groups[0].tensors["w"].part
        if layout == "expanded":  # a few bytes could describe any shape
            assert part is None
            return
        assert part is not None
        for start, stop in ((0, 270), (0, 1), (44, 46), (45, 90), (100, 269), (269, 270)):
            assert flat[start:stop].tolist() == part(start, stop).tolist(), (start, stop)


def test_comparing_large_convolutions_takes_little_memory(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(512, 1024, 3, bias=False), nn.BatchNorm2d(1024))  # 18 MiB
    for name in ("a.pt", "b.pt"):
        torch.save(net.state_dict(), tmp_path / name)
    bncheck.diff(tmp_path / "a.pt", tmp_path / "b.pt")  # imports are no part of it
    tracemalloc.start()
    try:
        report = bncheck.diff(tmp_path / "a.pt", tmp_path / "b.pt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    measured: Any = as_json(report.measurements)["layers"]
    assert measured["1"]["fed_by"] == ("0.weight",)
    assert peak < 12 * 2**20


def test_damage_in_a_large_tensor_is_not_taken_for_equality(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-8])
    with pytest.raises(bncheck.BncheckError):
        bncheck.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


# -- layers


def test_statistics_are_equal_in_every_bit_or_as_far_as_the_coarser_dtype_tells() -> None:
    half = {"running_mean": np.float16([0.1, -0.2, 0.3, 0.0]), "running_var": np.float16([0.5, 1.5, 2.0, 1.0])}
    assert statistics_equal(layer(), layer(**half, dtype="float16")) is True
    assert statistics_equal(layer(), layer(**half)) is False
    assert statistics_equal(layer(running_mean=0.0), layer(running_mean=-0.0)) is False
    assert statistics_equal(layer(), layer(running_var=None)) is None
