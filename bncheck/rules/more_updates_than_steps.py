"""BatchNorm layers that made more updates than the optimizer made steps.

## What it checks

In a training checkpoint, num_batches_tracked against the step count of the optimizer. With one forward pass for each
step the two are equal; with two (gradients added up over two batches, SAM, siamese networks) the counter is twice the
steps. What remains after the best of the two multiples, (n - k * steps) / n, was updated without training: forward
passes in train mode that no optimizer step followed. It is told above a share of 1 %, and above 16 updates or a
quarter of the counter, whichever is less: a gradient scaler skips the first steps of a run, a last batch is not
stepped on.

- validation in eval mode, one or two batches a step: 0 %;
- validation in train mode on the digits of the samples, five batches after each 16 steps: 23.8 %;
- three forward passes in train mode beside five steps: 37.5 %.

The smallest counter that is not below the steps is looked at, in the group that counts most: layers that were frozen
count less, averaged weights not at all.

## Why it matters

Validation in train mode is the mistake behind most of such files. Its batches flow into the running statistics, so
that the model has seen the data that it is measured on, and the figures depend on the batch; when the validation data
differ from the training data, the statistics belong to neither.

## When it is wrong

The counter may have started above 0: from pretrained weights that count, or from a checkpoint that was resumed with a
new optimizer. To keep such files quiet, nothing is said above three times the steps, near a whole multiple, where
some layer counts exactly the steps, or where the file holds several networks. A network that is trained by two
optimizers of different pace (a generator and its critic in one state_dict) counts the steps of both.

## What to do

Call model.eval() before validation and model.train() after it. Look for other forward passes in between: a learning
rate finder, a summary or a profiler of the model, an export. Then estimate the statistics again on training data.

## Seen in

princeton-vl/pytorch_stacked_hourglass#44 (the validation loop ran in train mode). The comparison with the optimizer
was measured, not reported: Adam at step 5, counters at 8, three validation batches in train mode.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.checkpoint import Checkpoint, Group

# Forward passes for each step that are told from extra ones. With more, a start from pretrained weights is likelier.
MOST_FORWARDS_PER_STEP = 2
# Extra updates up to this share of all, or this many if that is more, come with training: the gradient scaler skips
# a dozen steps at first and one in 2,000 later, the last batches of an epoch wait for a step that never comes.
TOLERATED_SHARE = 0.01
TOLERATED_UPDATES = 16
# But no more than this share, so that short runs are judged, 3 of 8 updates being a finding, and at least so many.
LARGEST_TOLERATED_SHARE = 0.25
LEAST_TOLERATED = 2
# This near below the next multiple of the steps, batches are added up, and the last of an epoch are stepped on early.
NEAR_NEXT_MULTIPLE = 0.05


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    steps = checkpoint.optimizer_steps
    if not steps or steps < 0:
        return
    counted = [(group, counters_of(group)) for group in checkpoint.groups]
    counted = [(group, counters) for group, counters in counted if counters]
    if not counted or is_of_several_networks([group for group, _ in counted]):
        return
    group, counters = max(counted, key=lambda one: max(one[1]))
    updates = min((counter for counter in counters if counter >= steps), default=0)
    forwards, extra = without_training(updates, steps)
    if not extra:
        return
    per_step = "" if forwards == 1 else f" of {forwards} forward passes each"
    yield Evidence(
        f"num_batches_tracked is {updates:,} and the optimizer made {count(steps, 'step')}{per_step}: "
        f"{extra:,} forward passes ({extra / updates:.1%} of all) moved the statistics without training",
        "Call model.eval() before validation and any other pass that is not training.",
        measured={"updates": updates, "optimizer_steps": steps, "forwards_per_step": forwards, "extra": extra},
        group=group.name,
    )


def counters_of(group: Group) -> list[int]:
    """The counts of the layers that make any."""
    return [
        int(layer.num_batches_tracked)
        for layer in group.layers
        if layer.use is not StatisticsUse.FROZEN
        and layer.num_batches_tracked is not None
        and math.isfinite(layer.num_batches_tracked)
        and layer.num_batches_tracked > 0
    ]


def is_of_several_networks(groups: list[Group]) -> bool:
    """Whether the groups are not one network and its copies: the steps may be those of another."""
    return len({frozenset(layer.name for layer in group.layers) for group in groups}) > 1


def without_training(updates: int, steps: int) -> tuple[int, int]:
    """Forward passes for each step, and how many updates remain that training does not explain; 0 for none."""
    forwards = updates // steps
    extra = updates - forwards * steps
    few = min(TOLERATED_UPDATES, LARGEST_TOLERATED_SHARE * updates)
    tolerated = max(LEAST_TOLERATED, few, TOLERATED_SHARE * updates)
    near_next = (forwards + 1) * steps - updates < NEAR_NEXT_MULTIPLE * updates
    if not 1 <= forwards <= MOST_FORWARDS_PER_STEP or extra <= tolerated or near_next:
        return forwards, 0
    return forwards, extra


RULE = Rule(
    "more-updates-than-steps",
    Severity.WARNING,
    "num_batches_tracked of all layers, and an optimizer in the file",
    __doc__,
    checkpoint=check,
)
