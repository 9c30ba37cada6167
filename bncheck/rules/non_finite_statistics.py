"""Running statistics or affine parameters that are NaN or infinite.

## What it checks

Every value of running_mean, running_var, weight and bias is finite.

## Why it matters

In eval mode a NaN in one channel makes that channel NaN for every input, and the next convolution spreads it to all
channels. In train mode the layer normalises by the batch instead, so that the training loss looks healthy while
validation gives NaN or constant predictions. An exponential average never forgets a NaN, and not an infinity either.

The signature of one overflowed half-precision batch is an infinite mean and a NaN variance in the same channels while
all parameters are finite: a gradient scaler skips the optimizer step of such a batch, but the forward pass has
already written the statistics.

## When it is wrong

A layer that no forward pass of the released model reaches (an auxiliary head, say) does no harm. Exclude it by name.

## What to do

If the parameters are finite, only the statistics are lost: reset them and estimate them again on training data in
train mode without an optimizer (torch.optim.swa_utils.update_bn), or copy them from an earlier checkpoint. Run the
convolution before the layer in float32 under autocast, or skip batches that are not finite.

## Seen in

pytorch/pytorch#90342 (an infinite input under autocast corrupts the state_dict), pytorch/pytorch#88474 (GradScaler
skips the step, BatchNorm does not), ultralytics/yolov5#9045, open-edge-platform/anomalib#2965,
ultralytics/ultralytics#14829 (warm-up with uninitialised memory)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import MOST_LISTED, channels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer

STATISTICS = ("running_mean", "running_var")
PARAMETERS = ("weight", "bias")


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    import numpy as np

    broken = {}
    for name in (*STATISTICS, *PARAMETERS):
        values = getattr(layer, name)
        if values is not None and not np.isfinite(values).all():
            broken[name] = np.flatnonzero(~np.isfinite(values)).tolist()
    if not broken:
        return
    affected = sorted({channel for indices in broken.values() for channel in indices})
    parameters_are_finite = not any(name in broken for name in PARAMETERS)
    names = " and ".join(broken) if len(broken) < 3 else ", ".join(broken)
    width = max(getattr(layer, name).size for name in broken)  # num_features may be unknown, or wrong
    message = f"{names} {'is' if len(broken) == 1 else 'are'} not finite in {channels(affected, width)}"
    if is_overflow(layer):
        message += ": the trace of one batch that overflowed in half precision"
    elif parameters_are_finite:
        message += " while weight and bias are finite"
    fix = (
        "Reset the statistics and estimate them again on training data; the parameters are usable."
        if parameters_are_finite
        else "Go back to the last checkpoint with finite parameters."
    )
    measured = {
        "channels": tuple(affected[:MOST_LISTED]),
        "channel_count": len(affected),
        "parameters_are_finite": parameters_are_finite,
        **{f"non_finite_{name}": len(indices) for name, indices in broken.items()},
    }
    yield Evidence(message, fix, layer, measured)


def is_overflow(layer: BatchNormLayer) -> bool:
    """Mean infinite and variance NaN in the same channels, all else finite: inf - inf while averaging squares."""
    import numpy as np

    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None or mean.shape != var.shape:
        return False
    infinite = np.isinf(mean)
    parameters = [values for values in (layer.weight, layer.bias) if values is not None]
    return bool(
        infinite.any()
        and np.array_equal(infinite, np.isnan(var))
        and np.isfinite(mean[~infinite]).all()
        and np.isfinite(var[~infinite]).all()
        and all(np.isfinite(values).all() for values in parameters)
    )


RULE = Rule(
    "non-finite-statistics",
    Severity.ERROR,
    "running_mean, running_var, weight, bias",
    __doc__,
    layer=check,
)
