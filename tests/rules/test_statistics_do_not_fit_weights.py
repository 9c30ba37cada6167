"""Weights and statistics that belong to different networks, with graphs as torch writes them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.sources.local import FileSource
from bncheck.findings.rule import CannotTell
from bncheck.rules.statistics_do_not_fit_weights import FIX, NO_GRAPH, NO_PAIR, RULE, mean_of_output
from bncheck.subjects.checkpoint import Checkpoint, Connection, Group
from bncheck.subjects.layer import UNKNOWN, BatchNormLayer, StatisticsUse
from tests.checkpoints.contents.test_connections import FORMATS, Network, joined
from tests.rules.layers import fresh, layer
from tests.rules.tables import Fires, Quiet, Undecided, fires, note, quiet, said, the_one, undecided

CHANNELS = 12


def vector(*, seed: int, spread: float = 1.0) -> Any:
    return (np.random.default_rng(seed).normal(0, spread, CHANNELS)).astype(np.float32)


WEIGHT = np.random.default_rng(0).normal(0, 0.3, (CHANNELS, CHANNELS)).astype(np.float32)
SHIFT = vector(seed=1)
SCALE = vector(seed=2)


def wide(made: BatchNormLayer, **fields: Any) -> BatchNormLayer:
    """A layer with more channels than those of the other rules' tests."""
    sized = {
        part: np.resize(getattr(made, part), CHANNELS) for part in ("weight", "bias", "running_mean", "running_var")
    }
    return replace(made, **{**sized, **fields})


BEFORE = wide(layer("before"), bias=SHIFT, weight=SCALE)


def after(mean: Any, **fields: Any) -> BatchNormLayer:
    return wide(layer("after"), **{"running_mean": np.asarray(mean, np.float32), **fields})


def fitting(activation: str = "", bias: Any = 0.0) -> Any:
    return WEIGHT @ mean_of_output(np.abs(SCALE), SHIFT, activation) + bias


def connected(activation: str = "", weight: Any = WEIGHT, bias: Any = None) -> Connection:
    return Connection("before", activation, weight, bias, "after")


def file(*layers: BatchNormLayer, connection: Connection) -> Checkpoint:
    return of(Group("", "module", {}, layers, connections=lambda: (connection,)))


def of(group: Group) -> Checkpoint:
    return Checkpoint("model.pt", "TorchScript", (group,))


NOISE = vector(seed=3, spread=0.5)
HALVED = np.where(np.abs(WEIGHT) > np.median(np.abs(WEIGHT)), WEIGHT, 0)
FEW = 4

QUIET: Quiet = {
    "the mean is what bias and weight give": file(BEFORE, after(fitting()), connection=connected()),
    "with the bias of the convolution": file(BEFORE, after(fitting(bias=NOISE)), connection=connected(bias=NOISE)),
    # The file does not hold eps: the default, 1e-5, stands in for it.
    "variances far below an eps that is not known": file(
        BEFORE,
        after(1e-4 * NOISE, running_var=np.full(CHANNELS, 1e-9), eps=UNKNOWN),
        connection=connected("relu", bias=-fitting("relu")),
    ),
    "through a ReLU": file(BEFORE, after(fitting("relu")), connection=connected("relu")),
    "through a ReLU6": file(BEFORE, after(fitting("relu6")), connection=connected("relu6")),
    "through a ReLU of values that are not normally distributed": file(
        BEFORE, after(fitting("relu") + 0.3 * NOISE), connection=connected("relu")
    ),
    "a network in training lags a little": file(BEFORE, after(fitting() + 0.1 * NOISE), connection=connected()),
    "all means are 0 but for rounding, as where the bias has no gradient": file(
        replace(BEFORE, bias=SHIFT * 1e-8), after(vector(seed=4, spread=1e-7)), connection=connected()
    ),
    "neither of them has an affine part": file(
        replace(BEFORE, weight=None, bias=None),
        after(np.zeros(CHANNELS), weight=None, bias=None),
        connection=connected(),
    ),
    "a frozen layer before: its output has another mean": file(
        replace(BEFORE, use=StatisticsUse.FROZEN), after(NOISE), connection=connected()
    ),
    "a frozen layer after: it never saw its input": file(
        BEFORE, after(NOISE, use=StatisticsUse.FROZEN), connection=connected()
    ),
    "never updated has a rule of its own": file(
        BEFORE, wide(fresh("after"), num_batches_tracked=0), connection=connected()
    ),
    "NaN has a rule of its own": file(BEFORE, after([math.nan] * CHANNELS), connection=connected()),
    "infinite": file(BEFORE, after([math.inf] * CHANNELS), connection=connected()),
    "weights that are not finite": file(BEFORE, after(NOISE), connection=connected(weight=WEIGHT * math.inf)),
    "negative variances": file(BEFORE, after(NOISE, running_var=-np.ones(CHANNELS)), connection=connected()),
    "shapes that do not fit each other": file(BEFORE, after(NOISE), connection=connected(weight=WEIGHT[:5])),
    "weights for other channels than there are": file(BEFORE, after(NOISE), connection=connected(weight=WEIGHT[:, :5])),
    "statistics of different lengths": file(BEFORE, after(NOISE, running_var=np.ones(3)), connection=connected()),
    "a bias of another length": file(BEFORE, after(NOISE), connection=connected(bias=np.zeros(5))),
    "no statistics": file(BEFORE, after(NOISE, running_mean=None), connection=connected()),
    "a layer without data": file(
        replace(BEFORE, bias=None, without_data=("bias",)), after(NOISE), connection=connected()
    ),
    "few channels have no spread to explain": file(
        BEFORE, after(NOISE[:FEW], running_var=np.ones(FEW)), connection=connected(weight=WEIGHT[:FEW])
    ),
    "numbers whose squares are too large": file(
        BEFORE, after(NOISE), connection=connected(weight=WEIGHT.astype(np.float64) * 1e300)
    ),
    "layers that are not selected": file(after(NOISE), fresh("other"), connection=connected()),
    "one layer alone, and no graph": of(Group("model", "state_dict", {}, (BEFORE,))),
    "one layer alone": file(after(NOISE), connection=connected()),
    "no layer": file(connection=connected()),
}

FIRES: Fires = {
    "other statistics altogether": (file(BEFORE, after(NOISE), connection=connected()), note(layer="after")),
    "half of the weights pruned": (
        file(BEFORE, after(fitting()), connection=connected(weight=HALVED)),
        note(layer="after"),
    ),
    "a third of the way after a reset": (
        file(BEFORE, after(fitting() / 3), connection=connected()),
        note(layer="after"),
    ),
    "means set to 0 by hand": (file(BEFORE, after(np.zeros(CHANNELS)), connection=connected()), note(layer="after")),
    "the bias of the convolution is another": (
        file(BEFORE, after(fitting()), connection=connected(bias=NOISE)),
        note(layer="after"),
    ),
    "through a ReLU, a third of the way after a reset": (
        file(BEFORE, after(fitting("relu") / 3), connection=connected("relu")),
        note(layer="after"),
    ),
    "through a ReLU6, other statistics": (
        file(BEFORE, after(2 * NOISE), connection=connected("relu6")),
        note(layer="after"),
    ),
    "float64, and no affine part after it": (
        file(BEFORE, after(NOISE.astype(np.float64), weight=None, bias=None), connection=connected()),
        note(layer="after"),
    ),
}

UNPROVEN = Group("model", "state_dict", {}, (BEFORE, after(NOISE)))
UNDECIDED: Undecided = {
    "no graph": (of(UNPROVEN), CannotTell(NO_GRAPH, group="model")),
    "no pair": (of(Group("", "module", {}, (BEFORE, after(NOISE)), connections=tuple)), CannotTell(NO_PAIR, group="")),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_what_is_said_has_the_numbers() -> None:
    evidence = the_one(RULE, FIRES["a third of the way after a reset"][0])
    assert "bias of 'before' and the weights between them" in evidence.message
    assert evidence.fix == FIX
    assert evidence.measured["fed_by"] == "before"
    # What is missed is twice what is there.
    expected = 1 - 4 * np.square(fitting()).mean() / np.var(fitting())
    assert evidence.measured["r_squared"] == pytest.approx(expected, rel=1e-5)


def test_a_spread_of_0_has_no_share_that_could_be_explained() -> None:
    assert the_one(RULE, FIRES["means set to 0 by hand"][0]).measured["r_squared"] is None


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_the_mean_after_an_activation_is_that_of_many_samples(activation: str) -> None:
    shift, scale = np.array([-2.0, 0.0, 0.5, 5.0, 7.0]), np.array([1.0, 2.0, 0.0, 3.0, 1e-9])
    samples = np.random.default_rng(0).normal(shift, scale, (400_000, 5))
    expected = np.clip(samples, 0, 6 if activation == "relu6" else None).mean(0)
    assert np.allclose(mean_of_output(scale, shift, activation), expected, atol=0.01)


# -- with torch as the witness


def trained() -> nn.Module:
    """A network that has seen data since its weights last changed."""
    torch.manual_seed(0)
    network = Network()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(8):
            network(torch.randn(32, 3, 8, 8))
    return network.eval()


def weights_changed(network: nn.Module) -> None:
    """Averaged, merged, pruned: other weights, and the statistics of the old ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std())


@pytest.mark.parametrize("name", ["script", "trace", "export", "onnx"])
def test_every_format_shows_weights_that_changed_without_the_statistics(name: str, tmp_path: Path) -> None:
    network = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(joined(FORMATS[name], network, tmp_path)) == 4
        FORMATS[name](network, tmp_path / "healthy")
        weights_changed(network)
        FORMATS[name](network, tmp_path / "changed")
    assert_only(tmp_path / "healthy", [])
    assert_only(tmp_path / "changed", ["bn2", "blocks.2", "bn4", "head.4"])


def assert_only(path: Path, expected: list[str]) -> None:
    with FileSource(path) as source:
        assert expected == [name for _, name in said(RULE, read_checkpoint(source))]
