"""A num_batches_tracked that is missing although loading asks for it, or that holds no count.

## What it checks

The counter of a layer with running statistics is one non-negative whole number of dtype int64.

- It is missing while the `_metadata` of the state_dict says version 2, that of layers with a counter: a warning, since
  load_state_dict with strict=True fails.
- It is negative, NaN, infinite or not whole: a warning.
- It stands at or above the number to which its dtype can count: a warning. Adding 1 changes nothing any more from
  2,048 in float16, 256 in bfloat16, and 16,777,216 in float32.
- It is a plausible number of another dtype than int64: a note, since loading converts it.

## Why it matters

With momentum=None each batch is weighted by one over the counter, so that a wrong one spoils the next training. With a
number as momentum nothing reads it but people and tools, to whom it tells how long the statistics were trained. An
infinite float16 becomes -9223372036854775808 when it is loaded.

## When it is wrong

Files of torch before 0.4.1, FrozenBatchNorm2d, and state dicts that lost their `_metadata` (safetensors, a rewritten
dict) have no counter or no version, and load without one: nothing is reported. A whole number in float16 or float32 is
what a cast of the complete state_dict, or averaging it, leaves behind.

## What to do

Write torch.tensor(count) under the missing name, or load with strict=False and see that nothing else is missing. Leave
integer tensors alone when a state_dict is cast or averaged.

## Seen in

pytorch/pytorch#8430, pytorch/pytorch#8481 (the missing key), mapillary/inplace_abn#130, pytorch/pytorch#5881;
flwrlabs/flower#1060 (averaging treats all entries alike). Counters in half precision were measured, not reported.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer

# torch.nn.modules.batchnorm._NormBase._version: since 2, strict loading asks for the counter.
VERSION_WITH_COUNTER = 2
COUNTER_DTYPE = "int64"
# From here on, n + 1 is rounded to n: 2 to the number of bits of the significand.
COUNTS_TO = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}
CAST_BACK = "Store it as an int64 tensor with the number of batches; cast and average only what is floating point."


class Problem(NamedTuple):
    """What is wrong with a counter, what to do, and how bad it is."""

    message: str
    fix: str
    severity: Severity = Severity.WARNING


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    if layer.use is StatisticsUse.FROZEN or (layer.running_mean is None and layer.running_var is None):
        return
    problem = problem_of(layer)
    if problem:
        measured = {"num_batches_tracked": layer.num_batches_tracked, "dtype": layer.counter_dtype}
        yield Evidence(problem.message, problem.fix, layer, measured, problem.severity)


def problem_of(layer: BatchNormLayer) -> Problem | None:
    dtype, value = layer.counter_dtype, layer.num_batches_tracked
    if dtype is None:
        if layer.version != VERSION_WITH_COUNTER:
            return None
        return Problem(
            "num_batches_tracked is missing, and _metadata has version 2: load_state_dict fails with strict=True",
            "Add num_batches_tracked as torch.tensor(count), or load with strict=False and check what else is missing.",
        )
    if value is None:
        return Problem(f"num_batches_tracked (of dtype {dtype}) is not one number that can be read", CAST_BACK)
    if not math.isfinite(value) or value < 0:
        return Problem(f"num_batches_tracked is {number(value)}, which counts nothing", CAST_BACK)
    if value != int(value):
        return Problem(f"num_batches_tracked is {number(value)}, not a whole number: it was averaged", CAST_BACK)
    limit = COUNTS_TO.get(dtype)
    if limit is not None and value >= limit:
        return Problem(
            f"num_batches_tracked is {int(value):,} in {dtype}, which cannot count beyond {limit:,} by ones", CAST_BACK
        )
    if dtype != COUNTER_DTYPE:
        return Problem(f"num_batches_tracked has dtype {dtype}, not {COUNTER_DTYPE}", CAST_BACK, Severity.NOTE)
    return None


RULE = Rule(
    "unusable-counter",
    Severity.WARNING,
    "num_batches_tracked; that it is missing only with _metadata",
    __doc__,
    layer=check,
)
