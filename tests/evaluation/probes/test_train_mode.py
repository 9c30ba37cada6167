"""What train mode would do to the statistics is what PyTorch does, to a part in a million."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.models.runnable import live_runnable
from bncheck.evaluation.probes.drift import Drift
from bncheck.evaluation.probes.train_mode import TrainModeTrial
from bncheck.evaluation.restoring import restored
from bncheck.evaluation.statistics import Statistics, batchnorm_layers, snapshot
from tests.evaluation.networks import BATCH, NETWORKS, data, images, trained

# 40 samples: five batches of 8, or six with a last one of 5.
SIZES = {"equal batches": BATCH, "a smaller last batch": 7}


class Twice(nn.Module):
    """One BatchNorm that is called for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(self.conv(x))
        second = self.norm(self.conv(2 * x + 1))
        result: Tensor = self.head((first + second).relu().mean((2, 3)))
        return result


class MovesInTrainMode(nn.Module):
    """A buffer of another layer than BatchNorm that train mode moves and eval mode reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale *= 2  # type: ignore[operator]
        return x * self.scale  # type: ignore[operator]


def norms(network: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


def measured(network: nn.Module, source: Data) -> Drift:
    """The second pass of drift alone."""
    drift = Drift(live_runnable(network), source, lambda samples: None)
    with restored(network):
        drift.measure()
    return drift


def trial_of(network: nn.Module, source: Data) -> TrainModeTrial:
    trial = measured(network, source).trial
    assert trial is not None
    return trial


def by_pytorch(network: nn.Module, source: Data, batches: int | None = None) -> dict[str, Statistics]:
    """The statistics after the same batches, or the first of them, in train mode."""
    other = copy.deepcopy(network).train()
    with torch.no_grad():
        for number, batch in enumerate(source):
            if batches is None or number < batches:
                other(batch.inputs)
    return snapshot(batchnorm_layers(other))


def assert_alike(expected: dict[str, Statistics], found: dict[str, Statistics]) -> None:
    assert sorted(expected) == sorted(found)
    for name, one in expected.items():
        other = found[name]
        for first, second in ((one.mean, other.mean), (one.var, other.var)):
            assert first is not None
            assert second is not None
            assert first.dtype == second.dtype
            torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-6, msg=name)
        assert (one.counter is None) == (other.counter is None)
        assert one.counter is None or int(one.counter) == int(other.counter)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, 0.0, None])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_statistics_are_those_that_pytorch_makes(kind: str, momentum: float | None, size: str) -> None:
    network = trained(kind)
    for layer in norms(network):
        layer.momentum = momentum
    source = data(batch=SIZES[size])
    assert_alike(by_pytorch(network, source), trial_of(network, source).statistics())


@pytest.mark.parametrize("counter", [0, 3, 100_000])
def test_a_cumulative_average_goes_on_from_its_counter(counter: int) -> None:
    network = trained("plain")
    for layer in norms(network):
        layer.momentum = None
        layer.num_batches_tracked.fill_(counter)  # type: ignore[union-attr]
    assert_alike(by_pytorch(network, data()), trial_of(network, data()).statistics())


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_layer_that_is_called_twice_is_updated_twice(momentum: float | None) -> None:
    torch.manual_seed(0)
    network = Twice()
    network.norm.momentum = momentum
    with torch.no_grad():
        network(images(1))
    network.eval()
    trial = trial_of(network, data())
    assert_alike(by_pytorch(network, data()), trial.statistics())
    assert trial.followed["norm"].counter == 2 + 2 * 5


def test_in_double_precision_nothing_is_lost() -> None:
    network = trained("plain").double()
    source = data(images().double())
    expected, found = by_pytorch(network, source), trial_of(network, source).statistics()
    for name, one in expected.items():
        assert one.mean is not None
        torch.testing.assert_close(found[name].mean, one.mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(found[name].var, one.var, rtol=1e-13, atol=1e-13)


def test_sync_batchnorm_on_the_cpu_is_followed() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(trained("plain"))
    assert_alike(by_pytorch(network, data()), trial_of(network, data()).statistics())


def test_layers_that_train_mode_does_not_move_stay() -> None:
    network = trained("plain")
    network.bn1.track_running_stats = False  # type: ignore[union-attr]
    network.bn2.num_batches_tracked = None  # type: ignore[union-attr] # as in files of torch 0.4.0
    trial = trial_of(network, data())
    assert_alike(by_pytorch(network, data()), trial.statistics())
    torch.testing.assert_close(trial.statistics()["bn1"].mean, network.bn1.running_mean)  # type: ignore[union-attr]


def test_a_train_that_keeps_layers_in_eval_mode_has_its_way() -> None:
    class Frozen(type(trained("plain"))):  # type: ignore[misc]
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.bn1.eval()
            return self

    network = trained("plain")
    network.__class__ = Frozen
    trial = trial_of(network, data())
    assert_alike(by_pytorch(network, data()), trial.statistics())
    assert trial.followed["bn1"].counter == 60
    assert trial.followed["bn2"].counter == 65


def test_a_layer_with_a_forward_of_its_own_keeps_what_it_reads() -> None:
    class Fixed(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    class Renamed(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    network = trained("plain")
    network.bn1.__class__, network.bn2.__class__ = Fixed, Renamed
    trial = trial_of(network, data())
    assert_alike(by_pytorch(network, data()), trial.statistics())
    assert (trial.followed["bn1"].counter, trial.followed["bn2"].counter) == (60, 65)
    assert set(trial.recalibrated()) == {"bn2"}


def test_the_steps_after_1_2_and_4_batches_are_those_of_pytorch() -> None:
    network = trained("residual")
    found = trial_of(network, data()).by_batches
    assert list(found) == [1, 2, 4]
    for batches, statistics in found.items():
        assert_alike(by_pytorch(network, data(), batches), statistics)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_recalibrated_statistics_are_the_average_of_those_of_the_batches(momentum: float | None) -> None:
    network = trained("plain")
    for layer in norms(network):
        layer.momentum = momentum
    source = data(batch=7)
    seen: list[tuple[int, Tensor]] = []
    other = copy.deepcopy(network).train()
    other.bn2.register_forward_pre_hook(lambda _, args: seen.append((len(args[0]), args[0].double())))  # type: ignore[union-attr]
    with torch.no_grad():
        for batch in source:
            other(batch.inputs)
    weights = np.array([size for size, _ in seen]) / 40
    mean = sum(w * values.mean((0, 2, 3)) for w, (_, values) in zip(weights, seen, strict=True))
    var = sum(w * values.var((0, 2, 3), correction=1) for w, (_, values) in zip(weights, seen, strict=True))
    found = trial_of(network, source).recalibrated()["bn2"]
    torch.testing.assert_close(found.mean, mean.float(), rtol=1e-6, atol=1e-6)  # type: ignore[union-attr]
    torch.testing.assert_close(found.var, var.float(), rtol=1e-6, atol=1e-6)  # type: ignore[union-attr]


def test_with_momentum_0_there_is_nothing_to_recalibrate() -> None:
    network = trained("plain")
    for layer in norms(network):
        layer.momentum = 0.0
    trial = trial_of(network, data())
    assert trial.recalibrated() == {}
    assert trial.followed["bn1"].counter == 65


def test_a_last_batch_of_one_sample_is_left_out_where_train_mode_refuses_it() -> None:
    network = trained("perceptron")
    source = data(images(samples=33))
    trial = trial_of(network, source)
    assert (trial.batches, trial.refused) == (4, 1)
    assert "more than 1 value per channel" in (trial.refusal or "")
    # PyTorch counts the batch before it refuses it, in the first layer that does.
    assert_alike(by_pytorch(network, data(images(samples=33)[:32])), trial.statistics())


def test_where_train_mode_refuses_every_batch_its_cost_is_not_known() -> None:
    drift = measured(trained("perceptron"), data(batch=1))
    assert drift.trial is None
    assert "more than 1 value per channel" in drift.unable["cost of train mode"]


def test_buffers_of_other_layers_are_put_back_after_each_batch() -> None:
    network = trained("plain", MovesInTrainMode())
    network.first.scale.fill_(1.0)  # type: ignore[operator,union-attr]
    drift = Drift(live_runnable(network), data(), lambda samples: None)
    drift.measure()
    assert float(network.first.scale) == 1.0  # type: ignore[arg-type,union-attr]


def test_the_statistics_of_the_model_are_not_touched() -> None:
    network = trained("plain")
    before = snapshot(batchnorm_layers(network))
    during: list[dict[str, Statistics]] = []

    def start() -> Iterator[Batch]:
        for batch in data():
            during.append(snapshot(batchnorm_layers(network)))
            yield batch

    measured(network, Data(start, {}))  # type: ignore[arg-type]
    for statistics in (*during, snapshot(batchnorm_layers(network))):
        for name, one in before.items():
            assert torch.equal(one.mean, statistics[name].mean)  # type: ignore[arg-type]
            assert torch.equal(one.var, statistics[name].var)  # type: ignore[arg-type]
            assert torch.equal(one.counter, statistics[name].counter)  # type: ignore[arg-type]
