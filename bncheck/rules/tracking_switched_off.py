"""A BatchNorm whose tracking was switched off while its running statistics are still there.

## What it checks

track_running_stats is False, yet the layer holds running_mean or running_var: somebody set the attribute after the
layer was made, since a layer that is made with False has no such buffers.

## Why it matters

What eval mode does with such a layer depends on who runs it. torch 1.6 and later look at the buffers and use them;
torch 1.5 and earlier look at the flag, normalise by the batch, and rewrite the buffers even in eval mode. Some
exporters follow the flag, too, and write a BatchNorm in training mode. In train mode the flag holds everywhere: the
layer normalises by the batch, and its statistics stand still.

The switch is often thrown as a cure for bad results in eval mode. Since torch 1.6 it cures nothing there.

## When it is wrong

Callbacks that freeze layers, Lightning's among them, switch tracking off so that frozen statistics stand still while
the rest of the network trains. Then the flag is meant, and eval mode of torch 1.6 and later uses the frozen
statistics; switch it on again for a release. A state_dict does not hold the flag, and so cannot have this defect.

## What to do

If the statistics are to be used, set track_running_stats back to True. If the layer is to normalise by the batch, make
it with track_running_stats=False, so that it has no buffers, and says so to every version and exporter.

## Seen in

pytorch/pytorch#37823, pytorch/pytorch#20967, pytorch/pytorch#38084 (what the flag does differs between versions),
Trusted-AI/adversarial-robustness-toolbox#484 (switched off as a remedy); meant so in
Lightning-AI/pytorch-lightning#15063
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.subjects.layer import StatisticsUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bncheck.subjects.layer import BatchNormLayer


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    held = [name for name in ("running_mean", "running_var") if layer.has(name)]
    # A FrozenBatchNorm has no such flag, and a flag that only follows from the buffers is True where they are.
    if layer.use is StatisticsUse.FROZEN or not held or layer.track_running_stats.value is not False:
        return
    yield Evidence(
        f"track_running_stats is False, yet {' and '.join(held)} {'is' if len(held) == 1 else 'are'} there: eval mode "
        "uses them in torch 1.6 and later, but not in earlier versions and some exporters",
        "Set track_running_stats back to True; or make the layer without statistics, if the batch is to be used.",
        layer,
        {"buffers": tuple(held), "training": layer.training.value},
    )


RULE = Rule("tracking-switched-off", Severity.WARNING, "a pickled module, or --model", __doc__, layer=check)
