"""Averaged weights and whose statistics they carry."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import bncheck
from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose, diagnose_pair
from bncheck.pairing.groups import pair_of
from bncheck.rules import DIFF_RULES, RULES
from bncheck.rules.stale_averaged_statistics import RULE
from bncheck.subjects.checkpoint import Checkpoint, Group, Tensor
from bncheck.subjects.layer import BatchNormLayer, StatisticsUse
from bncheck.subjects.pair import CheckpointPair
from tests.rules.layers import fresh, layer
from tests.rules.tables import Fires, Quiet, error, fires, left_open, quiet, said, warning


def group(name: str, *layers: BatchNormLayer, **tensors: Any) -> Group:
    """A state_dict with these layers and other parameters; `__` in their names stands for a dot."""
    held = {
        key.replace("__", "."): Tensor("float32", np.shape(value), lambda value=value: np.asarray(value, np.float32))
        for key, value in tensors.items()
    }
    return Group(name, "state_dict", held, tuple(replace(one, group=name) for one in layers))


def file(*groups: Group, steps: int | None = None) -> Checkpoint:
    return Checkpoint("model.pt", "torch.save", groups, facts={} if steps is None else {"optimizer_steps": steps})


MOVED = {"weight": [1.1, 0.8, 1.0, 0.75], "bias": [0.1, 0.1, -0.1, 0.3]}
OWN = {"running_mean": [0.2, -0.1, 0.3, 0.1], "running_var": [0.6, 1.4, 2.1, 1.0]}
HALF = {"running_mean": np.float16([0.1, -0.2, 0.3, 0.0]), "running_var": np.float16([0.5, 1.5, 2.0, 1.0])}
MODEL = group("model", layer("a"), layer("b"))

QUIET: Quiet = {
    "one set of weights": file(MODEL),
    "an average with buffers of its own": file(
        MODEL, group("ema", layer("a", **MOVED, **OWN), layer("b", **MOVED, **OWN))
    ),
    "an average that has just started": file(MODEL, group("ema", layer("a"), layer("b"))),
    "the same weights in half precision": file(
        MODEL, group("ema", *(layer(n, dtype="float16", **HALF, weight=np.float16([1.0, 0.9, 1.1, 0.7])) for n in "ab"))
    ),
    "an average in half precision, as Ultralytics saves it": file(
        MODEL, group("ema", *(layer(n, **MOVED, **OWN, dtype="float16", num_batches_tracked=1) for n in "ab"))
    ),
    "a frozen backbone below an average that is right": file(
        MODEL, group("ema", layer("a", weight=[1, 1, 1, 1]), layer("b", **MOVED, **OWN))
    ),
    "BatchNorm that was in eval mode from the start": file(
        group("model", layer("a", num_batches_tracked=0)), group("ema", layer("a", num_batches_tracked=0, **MOVED))
    ),
    "BatchNorm that counts less than the optimizer": file(
        group("model", layer("a")), group("ema", layer("a", **MOVED)), steps=2000
    ),
    "frozen layers": file(
        group("model", layer("a", use=StatisticsUse.FROZEN)),
        group("ema", layer("a", use=StatisticsUse.FROZEN, **MOVED)),
    ),
    "another network": file(MODEL, group("ema", layer("x", **MOVED), layer("b", **MOVED))),
    "another width": file(
        group("model", layer("a")),
        group("ema", replace(layer("a"), running_mean=np.ones(2, np.float32), running_var=np.ones(2, np.float32))),
    ),
    "statistics that are not finite": file(
        group("model", layer("a", running_var=np.nan)), group("ema", layer("a", running_var=np.nan, **MOVED))
    ),
    "no statistics": file(
        group("model", layer("a", running_mean=None, running_var=None)), group("ema", layer("a", **MOVED))
    ),
    "both are new": file(group("model", fresh("a")), group("ema", fresh("a"))),
    "two sets without a name: weights before training": file(MODEL, group("start", fresh("a"), fresh("b"))),
    "two trained networks": file(MODEL, group("best", layer("a", **MOVED, **OWN), layer("b", **MOVED, **OWN))),
    "three of them": file(MODEL, group("fold1", layer("a"), layer("b")), group("fold2", layer("a"), layer("b"))),
    "a branch that pools": file(group("model", layer("branch1.conv.bn"), layer("branch_avg.conv.bn", **MOVED))),
    "no groups": file(),
}

COPIED = "statistics are equal to theirs, in every bit: they were copied, and belong to other weights"

FIRES: Fires = {
    "copied buffers": (
        file(MODEL, group("ema", layer("a", **MOVED), layer("b", **MOVED))),
        warning(
            message=f"the parameters of ema differ by 12.13% from those of model, but in 2 layers the {COPIED}",
            layer="",
            group="ema",
        ),
    ),
    "copied to half precision": (
        file(MODEL, group("ema", *(layer(n, dtype="float16", **HALF, **MOVED) for n in "ab"))),
        warning(
            message=f"the parameters of ema differ by 12.11% from those of model, but in 2 layers the {COPIED}",
            layer="",
            group="ema",
        ),
    ),
    "layers without parameters: the convolutions tell": (
        file(
            group("net", layer("a", weight=None, bias=None), conv__weight=np.ones((2, 2))),
            group("net_ema", layer("a", weight=None, bias=None), conv__weight=np.full((2, 2), 1.01)),
        ),
        warning(
            message=f"the parameters of net_ema differ by 1.00% from those of net, but in 1 layer the {COPIED}",
            layer="",
            group="net_ema",
        ),
    ),
    "AveragedModel, by its count": (
        file(MODEL, group("second", layer("a", **MOVED), layer("b", **MOVED), n_averaged=3)),
        warning(
            message=f"the parameters of second differ by 12.13% from those of model, but in 2 layers the {COPIED}",
            layer="",
            group="second",
        ),
    ),
    "below a prefix": (
        file(MODEL, group("swa", layer("net.a", **MOVED), layer("net.b", **MOVED))),
        warning(
            message=f"the parameters of swa differ by 12.13% from those of model, but in 2 layers the {COPIED}",
            layer="",
            group="swa",
        ),
    ),
    "with a frozen part": (
        file(
            group("model", layer("a", num_batches_tracked=0), layer("b")),
            group("ema", layer("a", num_batches_tracked=0), layer("b", **MOVED)),
        ),
        warning(
            message=f"the parameters of ema differ by 8.57% from those of model, but in 1 layer the {COPIED}",
            layer="",
            group="ema",
        ),
    ),
    "as modules of one state_dict, as Lightning saves them": (
        file(
            group(
                "state_dict",
                *(layer(f"model.{n}") for n in ("x.a", "y.b")),
                *(layer(f"ema_model.module.{n}", **MOVED) for n in ("x.a", "y.b")),
            )
        ),
        warning(
            message="the parameters of state_dict.ema_model differ by 12.13% from those of state_dict, but in 2 layers "
            f"the {COPIED}",
            layer="",
            group="state_dict",
        ),
    ),
    "a teacher beside a student and its head": (
        file(
            group(
                "state_dict",
                *(layer(f"{branch}.{n}") for branch in ("student", "student_head") for n in ("x.a", "y.b")),
                *(layer(f"teacher.{n}", **MOVED) for n in ("x.a", "y.b")),
            )
        ),
        warning(
            message="the parameters of state_dict.teacher differ by 12.13% from those of state_dict, but in 2 layers "
            f"the {COPIED}",
            layer="",
            group="state_dict",
        ),
    ),
    "two sets whose names say nothing": (
        file(MODEL, group("model2", layer("a", **MOVED), layer("b", **MOVED))),
        warning(
            message="the parameters of model2 differ by 12.13% from those of model, but in 2 layers the statistics are "
            "equal, in every bit: they cannot belong to both",
            layer="",
            group="model2",
        ),
    ),
    "an average of parameters only": (
        file(MODEL, group("ema", fresh("a", **MOVED), fresh("b", **MOVED))),
        [
            error(
                message="running_mean is 0 and running_var is 1 in every channel, while model has statistics: the "
                "average never took them over",
                layer="a",
                group="ema",
            ),
            error(layer="b", group="ema"),
        ],
    ),
    "an average that was made and forgotten": (
        file(MODEL, group("ema", fresh("a"), fresh("b"))),
        [
            error(
                message="running_mean is 0 and running_var is 1 in every channel, while model has statistics: the "
                "average never took them over",
                layer="a",
                group="ema",
            ),
            error(layer="b", group="ema"),
        ],
    ),
    "in the first group, under another name": (
        file(group("g", fresh("a", **MOVED), fresh("b", **MOVED)), group("h", layer("a"), layer("b"))),
        [
            error(
                message="running_mean is 0 and running_var is 1 in every channel, while h has statistics: the average "
                "never took them over",
                layer="a",
                group="g",
            ),
            error(layer="b", group="g"),
        ],
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)


def test_that_an_average_has_initial_statistics_is_told_once() -> None:
    examined, _ = FIRES["an average of parameters only"]
    assert isinstance(examined, Checkpoint)
    report = diagnose(examined, Severity.ERROR, RULES)
    errors = [finding.rule for finding in report.findings if finding.severity is Severity.ERROR]
    assert errors == ["stale-averaged-statistics"] * 2


# -- averages as torch makes them


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 1, 7, 7, generator=generator) + 1 for _ in range(12)]


def trained(average: Callable[[nn.Module], nn.Module], update: Callable[[Any, nn.Module], None]) -> dict[str, Any]:
    """What a training loop saves that keeps an average of its weights."""
    torch.manual_seed(0)
    net = Net()
    averaged = average(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for images in batches():
        optimizer.zero_grad()
        torch.autograd.backward(net(images).relu().square().mean())
        optimizer.step()
        update(averaged, net)
    return {"model": net.state_dict(), "ema": averaged.state_dict(), "averaged": averaged}


def averaged_model(**options: Any) -> dict[str, Any]:
    return trained(
        lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), **options),
        lambda averaged, net: averaged.update_parameters(net),
    )


@torch.no_grad()
def average_entries(averaged: nn.Module, net: nn.Module, entries: Callable[[nn.Module], Any]) -> None:
    for own, new in zip(entries(averaged), entries(net), strict=True):
        if own.is_floating_point():
            own.lerp_(new, 0.1)
        else:
            own.copy_(new)


@pytest.fixture
def told(tmp_path: Path) -> Callable[[dict[str, Any]], list[str]]:
    def tell(saved: dict[str, Any]) -> list[str]:
        saved.pop("averaged", None)
        torch.save(saved, tmp_path / "last.pt")
        with FileSource(tmp_path / "last.pt") as source:  # the rule reads convolutions when it needs them
            examined = read_checkpoint(source)
            assert left_open(RULE, examined) == []
            return [severity for severity, _ in said(RULE, examined)]

    return tell


def test_averaged_model_copies_the_buffers(told: Callable[[dict[str, Any]], list[str]]) -> None:
    assert told(averaged_model()) == ["warning"]


def test_averaged_model_with_use_buffers_is_right(told: Callable[[dict[str, Any]], list[str]]) -> None:
    assert told(averaged_model(use_buffers=True)) == []


def test_update_bn_repairs_it(told: Callable[[dict[str, Any]], list[str]]) -> None:
    saved = averaged_model()
    update_bn(batches(), saved["averaged"])
    saved["ema"] = saved["averaged"].state_dict()
    assert told(saved) == []


def test_an_average_of_parameters_only_keeps_initial_statistics(told: Callable[[dict[str, Any]], list[str]]) -> None:
    saved = trained(copy.deepcopy, lambda own, net: average_entries(own, net, lambda module: module.parameters()))
    assert told(saved) == ["error"] * 2


def test_an_average_of_the_whole_state_dict_is_right(told: Callable[[dict[str, Any]], list[str]]) -> None:
    """As timm has it."""
    saved = trained(copy.deepcopy, lambda own, net: average_entries(own, net, lambda m: m.state_dict().values()))
    assert told(saved) == []


def test_one_network_at_two_places_is_quiet(told: Callable[[dict[str, Any]], list[str]]) -> None:
    net = Net()
    net(batches()[0])
    assert told({"model": net.state_dict(), "ema": net.state_dict()}) == []
    assert told({"model": net.state_dict(), "ema": copy.deepcopy(net).half().state_dict()}) == []
    assert told({"model": net.state_dict(), "ema": copy.deepcopy(net).bfloat16().state_dict()}) == []


# -- two files, as `bncheck diff` compares them


def sources(first: str, second: str, **fields: Any) -> CheckpointPair:
    """Two files of these names; the second has other parameters, and what `fields` say."""
    before = replace(file(group("", layer("a"), layer("b"))), source=first)
    after = replace(file(group("", layer("a", **MOVED, **fields), layer("b", **MOVED, **fields))), source=second)
    return pair_of(before, after)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("last.pt", "model_ema.pt"),
        ("swa/last.pt", "swa.pt"),
        ("a.pt", "runs/merged.safetensors"),
        ("a.pt", "soup-of-5.pt"),
        ("ema.pt", "last.pt"),
    ],
)
def test_of_two_files_the_name_tells_which_holds_the_average(first: str, second: str) -> None:
    assert said(RULE, sources(first, second)) == [("warning", "")]
    new = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    expected = [("error", "a"), ("error", "b")] if first != "ema.pt" else []
    assert expected == said(RULE, sources(first, second, **new))


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        ("epoch1.pt", "epoch2.pt", {}),  # BatchNorm frozen while the rest is trained
        ("ema1.pt", "ema2.pt", {}),
        ("ema/1.pt", "ema/2.pt", {}),
        ("emerged.pt", "schema.pt", {}),
        ("last.pt", "ema.pt", OWN),
    ],
)
def test_two_files_that_are_no_average_and_its_source_are_quiet(first: str, second: str, fields: Any) -> None:
    assert said(RULE, sources(first, second, **fields)) == []


def test_an_average_without_statistics_is_told_once() -> None:
    new = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    report = diagnose_pair(sources("last.pt", "ema.pt", **new), Severity.ERROR, DIFF_RULES)
    assert {"stale-averaged-statistics"} == {finding.rule for finding in report.findings}


def test_averaged_model_is_known_by_its_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(9):
        net(torch.randn(8, 1, 5, 5)).pow(3).mean().backward()
        optimizer.step()
        average.update_parameters(net)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    torch.save(average.state_dict(), tmp_path / "b.pt")
    report = bncheck.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert [(one.rule, one.layer) for one in report.findings] == [("stale-averaged-statistics", None)]
