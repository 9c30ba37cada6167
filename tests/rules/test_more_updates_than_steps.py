"""The count of BatchNorm updates beside the steps of the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bncheck.rules.more_updates_than_steps import RULE
from bncheck.subjects.checkpoint import Checkpoint, Group
from bncheck.subjects.layer import StatisticsUse
from tests.rules.layers import layer
from tests.rules.tables import Fires, Quiet, fires, found, left_open, quiet, warning


def saved(steps: float | str | None, *groups: dict[str, float | None]) -> Checkpoint:
    """A training checkpoint with these groups, each the counters of its layers by name."""
    made = tuple(
        Group(
            f"group{place}",
            "state_dict",
            {},
            tuple(layer(name, num_batches_tracked=value) for name, value in group.items()),
        )
        for place, group in enumerate(groups)
    )
    return Checkpoint("model.pt", "torch.save", made, facts={} if steps is None else {"optimizer_steps": steps})


QUIET: Quiet = {
    "one update a step": saved(1000, {"a": 1000, "b": 1000}),
    "no optimizer in the file": saved(None, {"a": 1000}),
    "an optimizer that made no step": saved(0, {"a": 1000}),
    "an optimizer that counts nothing whole": saved("many", {"a": 1000}),
    "a frozen network": saved(1000, {"a": 0, "b": 0}),
    "statistics that were frozen on the way": saved(1000, {"a": 600, "b": 600}),
    "pretrained weights with a long count": saved(1000, {"a": 26400, "b": 26400}),
    "pretrained weights with a short one": saved(1000, {"a": 5400, "b": 5400}),
    "pretrained weights and a new head": saved(1000, {"a": 1500, "head": 1000}),
    "a gradient scaler that skipped the first steps": saved(100, {"a": 112}),
    "and some later ones": saved(20_000, {"a": 20_026}),
    "batches that are added up by four": saved(500, {"a": 2003}),
    "added up by two, with an odd number of batches an epoch": saved(1010, {"a": 2000}),
    "added up by two": saved(1000, {"a": 2000}),
    "a layer that is called five times": saved(1000, {"a": 1000, "head": 5000}),
    "averaged weights beside": saved(1000, {"a": 1000}, {"a": 1}),
    "a generator and its critic": saved(1000, {"g": 1200}, {"d": 2200}),
    "two steps are too few to tell": saved(2, {"a": 4}),
    "counters that are no counts": saved(5, {"a": float("inf"), "b": float("nan"), "c": None, "d": -8}),
    "frozen layers count nothing": Checkpoint(
        "model.pt",
        "torch.save",
        (Group("", "module", {}, (layer("a", num_batches_tracked=8, use=StatisticsUse.FROZEN),)),),
        facts={"optimizer_steps": 5},
    ),
    "no layers": saved(5, {}),
    "no groups": saved(5),
}

FIRES: Fires = {
    "three forward passes beside five steps": (
        saved(5, {"a": 8, "b": 8}),
        warning(
            message="num_batches_tracked is 8 and the optimizer made 5 steps: 3 forward passes (37.5% of all) moved "
            "the statistics without training",
            layer="",
            group="group0",
        ),
    ),
    "validation beside batches that are added up by two": (
        saved(1000, {"a": 2400}),
        warning(
            message="num_batches_tracked is 2,400 and the optimizer made 1,000 steps of 2 forward passes each: 400 "
            "forward passes (16.7% of all) moved the statistics without training",
            layer="",
            group="group0",
        ),
    ),
    "with a frozen part, a shared head and averaged weights": (
        saved(1000, {"a": 1, "b": 1, "head": 1}, {"a": 300, "b": 1200, "head": 6000}),
        warning(
            message="num_batches_tracked is 1,200 and the optimizer made 1,000 steps: 200 forward passes (16.7% of "
            "all) moved the statistics without training",
            layer="",
            group="group1",
        ),
    ),
    "just above what is tolerated": (
        saved(2000, {"a": 2021}),
        warning(
            message="num_batches_tracked is 2,021 and the optimizer made 2,000 steps: 21 forward passes (1.0% of all) "
            "moved the statistics without training",
            layer="",
            group="group0",
        ),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


@pytest.mark.parametrize("validates_in_train_mode", [False, True], ids=["eval mode", "train mode"])
def test_a_real_loop_that_validates(
    validates_in_train_mode: bool, tmp_path: Path, read: Callable[[Path], Checkpoint]
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        torch.autograd.backward(network(torch.randn(4, 1, 8, 8)).square().mean())
        optimizer.step()
    network.train(validates_in_train_mode)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 1, 8, 8))
    path = tmp_path / "last.pt"
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, path)
    examined = read(path)
    assert left_open(RULE, examined) == []
    measured = [evidence.measured for evidence in found(RULE, examined)]
    expected = {"updates": 8, "optimizer_steps": 5, "forwards_per_step": 1, "extra": 3}
    assert ([expected] if validates_in_train_mode else []) == measured
