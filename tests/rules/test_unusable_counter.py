"""Counters that are missing or count nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bncheck.rules.unusable_counter import RULE
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse
from tests.rules.layers import of_state_dict
from tests.rules.tables import Fires, Quiet, fires, note, quiet, said, warning

Read = Callable[[Path], Checkpoint]


def counted(value: float | None, dtype: str | None = "int64", **fields: object) -> BatchNormLayer:
    return of_state_dict(num_batches_tracked=value, counter_dtype=dtype, **fields)


MISSING = {"num_batches_tracked": None, "counter_dtype": None}

QUIET: Quiet = {
    "a counter": counted(1000, version=2),
    "0, as averaged weights have it": counted(0, version=2),
    "a missing one, without metadata": of_state_dict(**MISSING),
    "a missing one of torch 0.4": of_state_dict(version=1, **MISSING),
    "a missing one of detectron2's FrozenBatchNorm2d": of_state_dict(version=3, **MISSING),
    "a missing one of a frozen layer": of_state_dict(version=2, use=StatisticsUse.FROZEN, **MISSING),
    "no statistics": of_state_dict(version=2, running_mean=None, running_var=None, **MISSING),
    "a tensor on the meta device": counted(
        None, running_mean=None, running_var=None, without_data=("running_mean", "running_var")
    ),
}

FIRES: Fires = {
    "missing, with version 2": (of_state_dict(version=2, **MISSING), warning("fails with strict=True")),
    "not one number": (counted(None), warning("not one number")),
    "negative": (counted(-1), warning("-1, which counts nothing")),
    "NaN": (counted(float("nan"), "float32"), warning("nan, which counts nothing")),
    "overflowed in half precision": (counted(float("inf"), "float16"), warning("inf, which counts nothing")),
    "averaged": (counted(1000.5, "float32"), warning("not a whole number")),
    "stuck in float16": (counted(2048.0, "float16"), warning("2,048 in float16, which cannot count beyond 2,048")),
    "stuck in bfloat16": (counted(256.0, "bfloat16"), warning("which cannot count beyond 256")),
    "stuck in float32": (counted(2.0**24, "float32"), warning("which cannot count beyond 16,777,216")),
    "cast along with the rest, low enough": (counted(1.0, "float16"), note("dtype float16, not int64")),
    "in float64": (counted(1e6, "float64"), note("dtype float64, not int64")),
    "in int32": (counted(1000, "int32"), note("dtype int32, not int64")),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_a_missing_counter_is_reported_where_torch_refuses_to_load(
    tmp_path: Path, read: Read, keeps_metadata: bool
) -> None:
    state = torch.nn.Sequential(torch.nn.BatchNorm2d(4)).state_dict()
    del state["0.num_batches_tracked"]
    if not keeps_metadata:
        state = dict(state)  # type: ignore[assignment]
    torch.save(state, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    refused = False
    try:
        torch.nn.Sequential(torch.nn.BatchNorm2d(4)).load_state_dict(loaded)
    except RuntimeError as error:
        refused = "Missing key" in str(error)
    assert refused == keeps_metadata
    assert bool(said(RULE, read(tmp_path / "model.pt").layers)) == refused


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 2048), ("bfloat16", 256), ("float32", 2**24)])
def test_torch_counts_no_further_than_the_limit(dtype: str, limit: int) -> None:
    counter = torch.tensor(limit - 1, dtype=getattr(torch, dtype))
    counter += 1
    assert limit == counter
    counter += 1
    assert limit == counter


def test_a_file_cast_to_half_precision_by_hand(tmp_path: Path, read: Read) -> None:
    bn = torch.nn.BatchNorm2d(4)
    bn.num_batches_tracked.fill_(100_000)
    state = {f"bn.{name}": value.half() for name, value in bn.state_dict().items()}
    torch.save(state, tmp_path / "half.pt")
    assert said(RULE, read(tmp_path / "half.pt").layers) == [("warning", "bn")]
    again = torch.nn.BatchNorm2d(4)
    again.load_state_dict({name.removeprefix("bn."): value for name, value in state.items()})
    assert torch.iinfo(torch.int64).min == again.num_batches_tracked
