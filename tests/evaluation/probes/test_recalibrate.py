"""New statistics equal those of float64 over all data, and the model is given back as it came."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bncheck.checkpoints.rewriting.plan import NewStatistics
from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.models.runnable import live_runnable
from bncheck.evaluation.probes.recalibrate import (
    FROZEN_CLASS,
    HELD_IN_EVAL,
    NEVER_CALLED,
    NO_STATISTICS,
    Recalibration,
    RecalibrationOptions,
    apply,
    recalibrate,
)
from bncheck.evaluation.restoring import fingerprint
from bncheck.options.probing import Method, Variance

LAYERS = ("1", "4", "7")
POOLED = RecalibrationOptions(variance=Variance.POOLED)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5),
    )  # fmt: skip


def batches(*sizes: int) -> list[Tensor]:
    """Images with another mean and spread in each batch."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 1, 9, 9, generator=generator) * (1 + n) + 3 * n for n, size in enumerate(sizes)]


def data_of(inputs: Sequence[Tensor]) -> Data:
    return Data(lambda: (Batch(batch, None, len(batch)) for batch in inputs), {})


def recalibrated(
    module: nn.Module, inputs: Sequence[Tensor], options: RecalibrationOptions | None = None
) -> Recalibration:
    before = fingerprint(module)
    found = recalibrate(live_runnable(module), data_of(inputs), options or RecalibrationOptions())
    assert before == fingerprint(module)
    return found


def assert_close(expected: Any, actual: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def inputs_of(module: nn.Module, inputs: Sequence[Tensor], name: str) -> list[Tensor]:
    """What enters a layer, in float64, batch by batch: shape (channels, samples)."""
    found: list[Tensor] = []
    handle = module.get_submodule(name).register_forward_pre_hook(
        lambda _layer, args: found.append(args[0].transpose(0, 1).flatten(1))
    )
    with torch.no_grad():
        for batch in inputs:
            module(batch.double())
    handle.remove()
    return found


def reference(seen: Sequence[Tensor], variance: Variance) -> NewStatistics:
    pooled = torch.cat(list(seen), 1)
    sizes = [part.shape[1] for part in seen]
    within = sum(part.var(1) * size for part, size in zip(seen, sizes, strict=True)) / sum(sizes)
    assert isinstance(within, Tensor)
    var = within if variance is Variance.WITHIN_BATCH else pooled.var(1)
    return NewStatistics(pooled.mean(1).numpy(), var.numpy(), len(seen))


@pytest.mark.parametrize("variance", Variance, ids=lambda variance: variance.value)
@pytest.mark.parametrize("sizes", [(16, 16, 16), (40, 3, 1)], ids=["equal", "unequal"])
def test_the_statistics_are_those_of_float64_over_all_data(sizes: tuple[int, ...], variance: Variance) -> None:
    module, inputs = network(), batches(*sizes)
    found = recalibrated(module, inputs, RecalibrationOptions(variance=variance))
    exact = network().double().train()
    for name in LAYERS:
        expected = reference(inputs_of(exact, inputs, name), variance)
        assert_close(expected.mean, found.statistics[name].mean)
        assert_close(expected.variance, found.statistics[name].variance)
        assert expected.counter == found.statistics[name].counter
    assert (sum(sizes), len(sizes), 1) == (found.samples, found.batches, found.passes)
    assert found.kept == {}


@pytest.mark.parametrize("variance", Variance, ids=lambda variance: variance.value)
def test_sequential_is_the_fixed_point_of_the_network_in_eval_mode(variance: Variance) -> None:
    module, inputs = network(), batches(12, 5)
    found = recalibrated(module, inputs, RecalibrationOptions(Method.SEQUENTIAL, variance))
    exact = network().double().eval()
    apply({name: exact.get_submodule(name) for name in LAYERS}, found.statistics)
    for name in LAYERS:
        expected = reference(inputs_of(exact, inputs, name), variance)
        assert_close(expected.mean, found.statistics[name].mean)
        assert_close(expected.variance, found.statistics[name].variance)
    assert found.passes <= 1 + len(LAYERS) + 1
    assert found.notes == ()


def test_a_pass_in_eval_mode_is_not_enough_after_a_reset() -> None:
    module, inputs = network().eval(), batches(16, 16)
    by_hand = reference(inputs_of(network().double().eval(), inputs, "7"), Variance.POOLED)
    train = recalibrated(module, inputs, POOLED).statistics["7"]
    sequential = recalibrated(module, inputs, replace(POOLED, method=Method.SEQUENTIAL)).statistics["7"]
    assert train.variance is not None
    assert sequential.mean is not None
    assert by_hand.mean is not None
    scale = np.sqrt(train.variance)
    assert np.abs(by_hand.mean - sequential.mean).max() / scale.max() > 0.5


# -- beside torch's own updater


def updated(module: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    copied = copy.deepcopy(module)
    update_bn(inputs, copied)
    return copied


def test_it_agrees_with_update_bn_on_equal_batches() -> None:
    module, inputs = network().double(), [batch.double() for batch in batches(8, 8, 8)]
    found = recalibrated(module, inputs)
    other = updated(module, inputs)
    for name in LAYERS:
        layer = other.get_submodule(name)
        assert_close(layer.running_mean, found.statistics[name].mean, 1e-12)
        assert_close(layer.running_var, found.statistics[name].variance, 1e-12)
        assert int(layer.num_batches_tracked) == found.statistics[name].counter  # type: ignore[arg-type]


def test_batches_count_by_their_size_where_update_bn_counts_them_alike() -> None:
    module = nn.Sequential(nn.BatchNorm1d(1))
    inputs = [torch.full((100, 1), 0.5), torch.tensor([[99.0], [101.0]])]
    assert float(updated(module, inputs)[0].running_mean) == pytest.approx(50.25)  # type: ignore[index]
    found = recalibrated(module, inputs).statistics["0"]
    assert_close([(100 * 0.5 + 2 * 100) / 102], found.mean)  # 2.45
    assert_close([2 * 2 / 102], found.variance)


def partly_frozen() -> nn.Sequential:
    module = network().train()
    module[4].eval()
    return module


def test_a_frozen_layer_stays_frozen_where_update_bn_rewrites_it() -> None:
    module, inputs = partly_frozen(), batches(8, 8)
    before = module[4].running_mean.clone()
    assert not torch.equal(before, updated(module, inputs)[4].running_mean)  # type: ignore[index]
    found = recalibrated(module, inputs)
    assert sorted(found.statistics) == ["1", "7"]
    assert found.kept == {"4": HELD_IN_EVAL}
    assert [*LAYERS] == sorted(recalibrated(module, inputs, RecalibrationOptions(keep_frozen=False)).statistics)


def test_the_layers_behind_a_frozen_one_see_what_it_makes_of_the_data_in_eval_mode() -> None:
    inputs = batches(8, 8)
    found = recalibrated(partly_frozen(), inputs)
    exact = partly_frozen().double()
    for name in ("1", "7"):
        assert_close(reference(inputs_of(exact, inputs, name), Variance.WITHIN_BATCH).mean, found.statistics[name].mean)


def test_a_model_that_is_all_in_eval_mode_has_no_frozen_layer() -> None:
    assert [*LAYERS] == sorted(recalibrated(network().eval(), batches(8)).statistics)


def test_a_model_that_holds_all_its_layers_frozen_is_an_error_that_says_so() -> None:
    module = network().train()
    for name in LAYERS:
        module.get_submodule(name).eval()
    with pytest.raises(UsageError, match="held in eval mode") as caught:
        recalibrated(module, batches(8))
    assert "--no-keep-frozen" in caught.value.hint


# -- which layers


class FrozenBatchNorm2d(nn.Module):
    """As torchvision has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, images: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # type: ignore[operator]
        return images * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]  # type: ignore[operator]


class Odd(nn.Module):
    """A layer that is used twice, one that never is, one without statistics, and one of a frozen class."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.untracked, self.frozen = nn.BatchNorm2d(1, track_running_stats=False), FrozenBatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.frozen(self.untracked(self.twice(images) + self.twice(images[:2] * 3).mean()))
        return result


def test_what_keeps_its_statistics_is_named_with_the_reason() -> None:
    found = recalibrated(Odd(), batches(6, 6))
    assert found.kept == {"never": NEVER_CALLED, "untracked": NO_STATISTICS, "frozen": FROZEN_CLASS}
    assert list(found.statistics) == ["twice"]


def test_a_layer_that_is_used_twice_has_the_statistics_of_both_inputs() -> None:
    inputs = batches(6, 4)
    found = recalibrated(Odd(), inputs).statistics["twice"]
    seen = [part.double().reshape(1, -1) for batch in inputs for part in (batch, batch[:2] * 3)]
    expected = reference(seen, Variance.WITHIN_BATCH)
    assert_close(expected.mean, found.mean)
    assert_close(expected.variance, found.variance)
    assert found.counter == 4


def test_only_the_layers_that_are_named_get_statistics_and_the_others_normalise_with_theirs() -> None:
    module, inputs = network().eval(), batches(8, 8)
    found = recalibrated(module, inputs, RecalibrationOptions(layers=("[47]",)))
    assert sorted(found.statistics) == ["4", "7"]
    exact = network().double().eval()
    assert_close(reference(inputs_of(exact, inputs, "4"), Variance.POOLED).mean, found.statistics["4"].mean)
    with pytest.raises(UsageError, match="--layer 5: there is no such layer"):
        recalibrated(module, inputs, RecalibrationOptions(layers=("5",)))


def test_the_stored_buffers_are_untouched_while_the_data_run() -> None:
    module = network()
    held = {key: value.clone() for key, value in module.state_dict().items()}
    seen: list[bool] = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(all(torch.equal(held[key], value) for key, value in module.state_dict().items()))
            return images

    broken = torch.full((4, 1, 9, 9), torch.inf)
    found = recalibrated(nn.Sequential(module, Watching()), [*batches(4, 4), broken])
    assert seen == [True, True, True]
    assert not np.isfinite(found.statistics["0.1"].mean).any()  # type: ignore[arg-type]


def test_momentum_none_and_zero_do_not_matter() -> None:
    inputs = batches(8, 8)
    expected = recalibrated(network(), inputs).statistics
    for momentum in (None, 0.0, 1.0):
        module = network()
        for name in LAYERS:
            module.get_submodule(name).momentum = momentum  # type: ignore[assignment]
        found = recalibrated(module, inputs).statistics
        assert all(np.array_equal(expected[name].mean, found[name].mean) for name in LAYERS)  # type: ignore[arg-type]


def test_dropout_is_off() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1))
    inputs = batches(8)
    expected = reference([inputs[0].double().reshape(1, -1)], Variance.WITHIN_BATCH)
    assert_close(expected.variance, recalibrated(module, inputs).statistics["1"].variance)


# -- what goes wrong


def test_a_last_sample_alone_is_left_out_where_it_has_no_variance() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.manual_seed(0)
    inputs = [torch.randn(8, 3), torch.randn(1, 3)]
    found = recalibrated(module, inputs)
    assert (found.samples, found.batches) == (8, 1)
    assert [note for note in found.notes if note.startswith("1 sample in a batch alone left out")]
    with pytest.raises(ModelError, match="more than 1 value per channel") as caught:
        recalibrated(module, inputs[1:])
    assert "--batch-size 2" in caught.value.hint


class Failing(nn.Module):
    """Raises at its second batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.norm, self.error, self.calls = nn.BatchNorm2d(1), error, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.norm(images)
        if self.calls > 1:
            raise self.error
        return result


@pytest.mark.parametrize("method", Method, ids=lambda method: method.value)
@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError("broken"), ModelError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["an error", "Ctrl-C"],
)  # fmt: skip
def test_the_model_is_as_it_was_after(error: BaseException, expected: type[BaseException], method: Method) -> None:
    module = Failing(error)
    before = fingerprint(module)
    with pytest.raises(expected):
        recalibrate(live_runnable(module), data_of(batches(4, 4)), RecalibrationOptions(method))
    assert before == fingerprint(module)


def test_applied_statistics_are_in_the_buffers_and_nothing_else_changes() -> None:
    module, inputs = network().train(), batches(8, 8)
    state = copy.deepcopy(module.state_dict())
    found = recalibrated(module, inputs)
    apply(live_runnable(module).layers, found.statistics)
    assert module.training
    for key, value in module.state_dict().items():
        layer, _, part = key.rpartition(".")
        new = found.statistics.get(layer)
        if new is not None and part == "running_mean":
            assert_close(new.mean, value)
        elif new is not None and part == "running_var":
            assert_close(new.variance, value)
        elif part == "num_batches_tracked":
            assert int(value) == 2
        else:
            assert torch.equal(state[key], value), key


def test_statistics_that_the_dtype_cannot_hold_are_not_applied() -> None:
    module = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1)).half()
    before = fingerprint(module)
    fine = NewStatistics(np.array([1.0]), np.array([1.0]), 1)
    huge = NewStatistics(np.array([1.0]), np.array([1e6]), 1)
    with pytest.raises(UsageError, match="NaN or infinite"):
        apply(live_runnable(module).layers, {"0": fine, "1": huge})
    assert before == fingerprint(module)
