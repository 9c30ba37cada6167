"""Running statistics that still consist of their initial values to a noticeable part.

## What it checks

Each update keeps 1 - momentum of what was there, so that after n of them r = (1 - momentum)^n of the initial mean 0 and
variance 1 is left. Reported are r >= 0.05 (error) and r >= 0.001 (warning), where the counter can be believed. Where
the file does not hold momentum, 0.1 is assumed; momentum=None (a plain average) leaves nothing of the initial values.

num_batches_tracked is often not the history of the statistics, so it needs evidence. All layers with the same counter
and momentum are judged together:

- no update subtracts anything, so running_var >= r holds in every channel of every layer; otherwise the counter is
  not the history, and the rule is silent;
- the initial value must show: in a quarter of the channels running_var is below 2.5 r, so that the initial variance is
  more than 40 % of it. Where the parameters are untrained, update_bn is the likelier story: then it must be below
  1.25 r where r < 0.55, and below r = 0.3 nothing shows;
- or the optimizer in the file made as many steps as the counter says.

Where running_var >= r holds but nothing else speaks for the counter, it is a note.

## Why it matters

The stored variance is r + (1 - r) v instead of v, too large by r (1 - v) / v of itself: by 10 % at r = 0.001 and by
495 % at r = 0.05 for a channel with a variance of 0.01. Eval mode is worse than train mode for a reason that no look at
the loss shows. Measured on the sample network, trained from scratch with momentum 0.1, accuracy in eval mode and
with statistics that were estimated anew:

- 5 updates, r = 0.59: 0.19 and 0.49;
- 10 updates, r = 0.35: 0.33 and 0.75;
- 20 updates, r = 0.12: 0.53 and 0.89;
- 30 updates, r = 0.042: 0.84 and 0.96;
- 40 updates, r = 0.015: 0.96 and 0.97.

## When it is wrong

A counter that an average of weights froze at 0 or 1 (released models often have that) fails running_var >= r: of
69 networks, released and fresh, only two with variances above 12 pass it with any counter up to 20, and those do not
show the initial value. More pass with 21 to 65, the length of a short update_bn whose momentum was put back. The
separation, as the lower quartile of running_var / r:

- 69 networks whose counter was set to any number from 1 to 65 and that pass: 2.9 at least;
- the same 69 after n updates from the initial values: below 2.5 in 97 % (n = 5), 94 % (10), 52 % (20), 17 % (40), those
  in which the error matters most;
- 90 untrained chains of 2 to 5 convolutions, all of one width and with Kaiming's initial weights, after update_bn on n
  batches: none passes with n = 3 to 5 (r = 0.59), 3 with 6, 34 with 8 (0.43), 62 with 11 (0.31), at 1.23 at least;
- 37 small families of networks, untrained, after 1 to 11 updates from the initial values: below 2.5 in all of 518
  cases, below 1.25 in 84 %;
- 18 trained networks of 2 to 5 layers after update_bn on 1 to 65 batches: below 2.5 in 7 of 1,170 cases.

## What to do

Train on, or estimate the statistics on training data: torch.optim.swa_utils.update_bn, PreciseBN of fvcore. With
momentum 0.1 it takes 66 updates to get below r = 0.001, with 0.03 227, with 0.01 688, with 0.001 6905.

## Seen in

facebookresearch/schedule_free#60 (20 to 50 batches are needed), pytorch/pytorch#4741, torch/nn#308
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import Array, BatchNormLayer

LEAST_MOMENTUM = 1e-9  # far below any in use (3e-4); smaller ones leave nothing to divide by
# r, the part of the initial values that is left. A variance of 0.01 is too large by r (1 - v) / v:
CONVERGED = 1e-3  # by 10 %
FAR_FROM_CONVERGED = 0.05  # by 495 %
# Rounding in float32, and in a copy in float16, stays below this share of r.
ROUNDING = 1e-3
# The initial value shows where the lower quartile of running_var is below this multiple of r; see the explanation.
QUARTILE = 25
SHOWS_BELOW = 2.5
# Without trained parameters: plain networks of one width have variances so much alike that with statistics by update_bn
# they pass the test of the quartile: 0 of 270 above this r, 220 of 540 below.
TELLS_ALONE = 0.55
# There the initial value must show more clearly: 1 of the 540 has a quartile below this multiple of r. Still lower, at
# the second limit, networks with more kinds of layers pass by chance, too.
CLEARLY_SHOWS_BELOW = 1.25
TELLS_CLEARLY = 0.3
# Above that, running_var may be r times anything: a channel without variance, but for rounding.
MOST_TIMES = 1000


@dataclass(frozen=True, slots=True)
class History:
    """What the counter claims of some layers."""

    updates: float
    momentum: float

    @property
    def remaining(self) -> float:
        """r, how much of the initial values is left."""
        return float((1 - self.momentum) ** self.updates)

    @property
    def missing(self) -> int:
        """Updates until less than CONVERGED is left."""
        return math.ceil(math.log(CONVERGED) / math.log1p(-self.momentum) - self.updates)


def check(checkpoint: Checkpoint) -> Iterator[Evidence | CannotTell]:
    for group in checkpoint.groups:
        yield from check_group(group, checkpoint.optimizer_steps)


def check_group(group: Group, optimizer_steps: int | None) -> Iterator[Evidence | CannotTell]:
    updated = [layer for layer in group.layers if is_updated(layer)]
    yield from without_counter([layer for layer in updated if layer.num_batches_tracked is None])
    together: defaultdict[History, list[BatchNormLayer]] = defaultdict(list)
    for layer in updated:
        history = history_of(layer)
        if history is not None and history.remaining >= CONVERGED:
            together[history].append(layer)
    trained = any(varies(layer.bias) for layer in group.layers)
    for history, layers in together.items():
        yield from judge(history, layers, trained=trained, confirmed=history.updates == optimizer_steps)


def judge(
    history: History, layers: Sequence[BatchNormLayer], *, trained: bool, confirmed: bool
) -> Iterator[Evidence | CannotTell]:
    """What to say about layers with the same counter and momentum."""
    import numpy as np

    remaining = history.remaining
    variances = np.concatenate([layer.running_var.ravel() for layer in layers if layer.running_var is not None])
    lowest = float(variances.min())
    if lowest < remaining * (1 - ROUNDING):
        return
    quartile = float(np.percentile(variances, QUARTILE))
    believed = confirmed or quartile < shows_below(remaining, trained=trained) * remaining
    if not believed and quartile >= 1:
        return  # and the initial 1 would not make the variances too large
    times = too_large(lowest, remaining)
    assumed = "" if layers[0].momentum.is_known else " (assumed: the file does not hold it)"
    counted = f"num_batches_tracked counts {count(int(history.updates), 'update')}"
    share = f"{number(100 * remaining)} % of the running statistics {{}} the initial values, with momentum "
    share += f"{history.momentum:g}{assumed}"
    fix = f"Run {count(history.missing, 'more update')} in train mode or estimate the statistics on training data."
    for layer in layers:
        measured = {
            "num_batches_tracked": layer.num_batches_tracked,
            "momentum": layer.momentum.value,
            "momentum_is_assumed": not layer.momentum.is_known,
            "initial_share": remaining,
            "updates_missing": history.missing,
            "lower_quartile_over_initial_share": quartile / remaining,
            "confirmed_by_optimizer": confirmed,
        }
        if believed:
            yield Evidence(
                f"{counted}: {share.format('still are')}, and running_var is up to {times} times too large",
                fix,
                layer,
                measured,
                Severity.ERROR if remaining >= FAR_FROM_CONVERGED else Severity.WARNING,
            )
        else:
            yield Evidence(
                f"{counted}; if there were no others, {share.format('are')}",
                f"None, if the statistics were estimated with momentum=None (update_bn). Otherwise: {fix}",
                layer,
                measured,
                Severity.NOTE,
            )


def shows_below(remaining: float, *, trained: bool) -> float:
    """The multiple of r below which the lower quartile shows the initial value; 0 where it cannot."""
    if trained or remaining >= TELLS_ALONE:
        return SHOWS_BELOW
    return CLEARLY_SHOWS_BELOW if remaining >= TELLS_CLEARLY else 0.0


def too_large(variance: float, remaining: float) -> str:
    """How many times the variance of the data a stored variance is, from variance = r + (1 - r) v."""
    of_data = (variance - remaining) / (1 - remaining)
    times = variance / of_data if of_data > variance / MOST_TIMES else math.inf
    return number(max(times, 1.0)) if times < MOST_TIMES else f"more than {MOST_TIMES:,}"


def without_counter(layers: Sequence[BatchNormLayer]) -> Iterator[CannotTell]:
    """Undecided, unless the smallest variance shows that less than CONVERGED of the initial 1 can be left."""
    if layers and min(smallest(layer.running_var) for layer in layers) >= CONVERGED:
        for layer in layers:
            yield CannotTell("the file does not hold the counter", layer)


def is_updated(layer: BatchNormLayer) -> bool:
    """Whether there are finite statistics that are not the initial ones, in a layer that is made to update them."""
    import numpy as np

    mean, var = layer.running_mean, layer.running_var
    if layer.use is StatisticsUse.FROZEN or mean is None or var is None or not var.size or not mean.size:
        return False
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        return False
    return bool((mean != 0).any() or (var != 1).any())


def history_of(layer: BatchNormLayer) -> History | None:
    """What the counter claims; None where it claims nothing: 0, invalid, or a momentum that keeps all or nothing."""
    updates = layer.num_batches_tracked
    momentum = layer.assumed_momentum
    if updates is None or momentum is None or not 1 <= updates < math.inf or not LEAST_MOMENTUM < momentum < 1:
        return None
    return History(updates, momentum)


def smallest(values: Array | None) -> float:
    return math.inf if values is None else float(values.min())


def varies(values: Array | None) -> bool:
    """Whether a bias is trained: the channels differ, which no initialisation does."""
    return values is not None and values.size > 1 and bool((values != values[0]).any())


RULE = Rule(
    "under-converged-statistics",
    Severity.ERROR,
    "running_var and num_batches_tracked of all layers; momentum and optimizer steps where the file holds them",
    __doc__,
    checkpoint=check,
)
