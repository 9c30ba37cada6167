"""Running statistics that an evaluation rewrites, because a BatchNorm is in train mode while it runs.

## What it checks

The values of every running_mean and running_var before and after the evaluation, as the artefact ships or as the
user's own function does it. Any bit that changed is an error. It says how many updates were made
(num_batches_tracked), how far the statistics went in standard deviations of the layer, and which layers were in train
mode. A layer that ran in train mode with track_running_stats switched off normalises by the batch as well and leaves no
trace: a warning. A layer whose counter moved alone (momentum 0) counts as a note.

## Why it matters

In train mode a BatchNorm normalises by the batch, so that results depend on which images stand together, and every
forward moves the statistics that the released model will use: without an optimizer, under torch.no_grad(), and with
requires_grad=False as well. Running the evaluation twice does not show it: on the same batches the outputs are equal
bit for bit. On a ResNet-18 one accidental pass over 32 images changed 44 % of the predictions.

## When it is wrong

Statistics that are adapted on purpose, to a new domain or at test time (AdaBN, TENT). Recalibration, which is training
in this respect, belongs into a step of its own.

## What to do

Call model.eval() at the start of every evaluation, and after every model.train(). A part that is frozen needs eval() as
well as requires_grad=False; override train() so that it stays there. A graph with its mode built in (traced, exported)
must be made again from a model in eval mode. Then take the statistics from a checkpoint before the evaluation, or
estimate them again.

## Seen in

pytorch/vision#2079 (one forward in train mode changes later predictions), yaodongyu/TRADES#3 (published results that
depend on the batch), Lightning-AI/pytorch-lightning#18813, princeton-vl/pytorch_stacked_hourglass#44 (a validation loop
in train mode), pytorch/pytorch#86590 (frozen layers whose statistics move)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import count, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.evaluation import EvaluatedLayer, Evaluation

PROBE = "moved in evaluation"


def check(evaluation: Evaluation) -> Iterator[Evidence | CannotTell]:
    if evaluation.watched is None:
        if evaluation.layers:
            yield CannotTell(evaluation.unable.get(PROBE, "no evaluation was watched"))
        return
    for evaluated in evaluation.layers:
        if evaluated.moved:
            yield moved(evaluated, evaluation.watched)
        elif evaluated.updates:
            yield counted_only(evaluated)
        elif evaluated.untracked and evaluated.layer.has("running_mean"):
            yield untracked(evaluated, evaluation.watched)


def moved(evaluated: EvaluatedLayer, watched: str) -> Evidence:
    layer = evaluated.layer
    updates = f" in {count(evaluated.updates, 'update')}" if evaluated.updates and evaluated.updates > 0 else ""
    message = f"the statistics moved{updates} during evaluation ({watched})"
    if evaluated.as_shipped is None:
        message = f"evaluation ({watched}) took the running statistics away, and normalised by the batch from then on"
    measured: dict[str, object] = {"updates": evaluated.updates, "training": evaluated.training}
    if evaluated.as_shipped is not None:
        far = {
            "mean_shift": largest(evaluated.as_shipped.mean),
            "variance_shift": largest(evaluated.as_shipped.variance),
        }
        measured.update(far)
        message += f": mean by up to {number(far['mean_shift'])} standard deviations"
    if evaluated.broken:
        message += f", and {count(evaluated.broken, 'channel')} became NaN or infinite"
        measured["broken_channels"] = evaluated.broken
    if layer.baked:
        fix = "Train mode is part of the graph: call model.eval() and trace or export again."
    else:
        fix = "Call model.eval() before evaluating, on frozen parts too, and restore the statistics of before."
    return Evidence(message, fix, layer, measured)


def untracked(evaluated: EvaluatedLayer, watched: str) -> Evidence:
    return Evidence(
        f"it ran in train mode with track_running_stats off during evaluation ({watched}), so that it normalised by "
        "the batch, and its statistics were neither read nor moved",
        "Call model.eval() before evaluating, and leave track_running_stats as it was.",
        evaluated.layer,
        {"updates": evaluated.updates, "training": evaluated.training},
        Severity.WARNING,
    )


def counted_only(evaluated: EvaluatedLayer) -> Evidence:
    assert evaluated.updates is not None
    forth = f"counted {count(evaluated.updates, 'batch')}"
    counted = forth if evaluated.updates > 0 else f"went back by {-evaluated.updates:,}"
    return Evidence(
        f"num_batches_tracked {counted} during evaluation while the statistics stayed: train mode with momentum 0, "
        "or a forward that failed",
        "Call model.eval() before evaluating.",
        evaluated.layer,
        {"updates": evaluated.updates, "training": evaluated.training},
        Severity.NOTE,
    )


def largest(values: object) -> float:
    import numpy as np

    array = np.asarray(values, dtype=float)
    return float(array.max()) if array.size else 0.0


RULE = Rule(
    "changed-in-evaluation",
    Severity.ERROR,
    "drift: the modes of a pickled module or a graph, or --evaluator",
    __doc__,
    evaluation=check,
    headline="evaluation rewrites the statistics of {layers}",
    all_clear="evaluation moves no statistics",
)
