"""The moments of what enters a BatchNorm, against float64 on the whole data."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bncheck.evaluation.observing import moments as moments_file
from bncheck.evaluation.observing.moments import ChannelMoments, watching

RELATIVE = 1e-6


def measured(batches: list[Tensor]) -> ChannelMoments:
    found = ChannelMoments()
    for batch in batches:
        found.add(batch)
    return found


def by_channel(batch: Tensor) -> np.ndarray:
    """All samples of each channel in float64: (C, samples)."""
    return batch.double().flatten(2).movedim(1, 0).flatten(1).numpy()


def assert_exact(found: ChannelMoments, batches: list[Tensor]) -> None:
    """Every number equals that of numpy in float64; a mean, to 1e-6 of itself or of the standard deviation."""
    batches = [batch if batch.dim() > 2 else batch.unsqueeze(2) for batch in batches]
    whole = np.concatenate([by_channel(batch) for batch in batches], axis=1)
    of_images = np.concatenate([batch.double().flatten(2).mean(2).numpy() for batch in batches])
    several = [by_channel(batch).var(axis=1, ddof=1) for batch in batches if by_channel(batch).shape[1] > 1]
    deviation = whole.std(axis=1)
    assert found.count == whole.shape[1]
    assert found.images == len(of_images)
    assert found.batches == len(batches)
    assert found.batches_with_variance == len(several)
    assert np.all(
        np.abs(found.mean - whole.mean(axis=1)) <= RELATIVE * np.maximum(np.abs(whole.mean(axis=1)), deviation)
    )
    # A variance that is 0 in exact arithmetic is left with the square of what float64 rounds off the mean.
    rounding = (1e-15 * np.abs(whole).max(axis=1)) ** 2
    np.testing.assert_allclose(found.variance, whole.var(axis=1), rtol=RELATIVE, atol=rounding.max())
    if whole.shape[1] > 1:
        np.testing.assert_allclose(
            found.unbiased_variance, whole.var(axis=1, ddof=1), rtol=RELATIVE, atol=rounding.max()
        )
    else:
        assert np.isnan(found.unbiased_variance).all()
    if several:
        np.testing.assert_allclose(
            found.within_batch_variance, np.mean(several, axis=0), rtol=RELATIVE, atol=rounding.max()
        )
    else:
        assert found.within_batch_variance.shape == (0,)
    least = RELATIVE * deviation.max() + 1e-15 * np.abs(whole).max()
    np.testing.assert_allclose(found.spread_of_images, of_images.std(axis=0), rtol=RELATIVE, atol=least)


def split(data: Tensor, sizes: list[int]) -> list[Tensor]:
    ends = np.cumsum(sizes)
    return [part for part in torch.tensor_split(data, ends.tolist()) if len(part)]


# -- exactness

SHAPES = st.sampled_from([(7, 3), (1, 2, 1), (5, 4, 6), (6, 3, 5, 7), (4, 2, 12, 11), (3, 2, 3, 4, 5), (9, 1, 1, 1)])


@settings(deadline=None, max_examples=150)
@given(
    shape=SHAPES,
    sizes=st.lists(st.integers(1, 4), max_size=6),
    mean=st.sampled_from([0.0, 1.0, -3.0, 100.0, 1e4, -1e6]),
    deviation=st.sampled_from([1e-6, 0.01, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_any_split_into_batches_gives_the_moments_of_the_whole(
    shape: tuple[int, ...], sizes: list[int], mean: float, deviation: float, dtype: torch.dtype, layout: str, seed: int
) -> None:
    # Beyond that, float64 itself is at its end: it holds 1e-16 of the mean, and only float64 data can be like that.
    assume(abs(mean) <= 1e8 * deviation or dtype != torch.float64)
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(shape, generator=generator, dtype=torch.float64) * deviation + mean
    data = data.to(dtype).nan_to_num()
    if dtype == torch.float16:
        data = data.clamp(-6e4, 6e4)
    if layout == "channels_last" and data.dim() > 2:
        data = data.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "strided":
        data = data.repeat_interleave(2, dim=-1)[..., ::2]
    elif layout == "expanded":
        data = data[:1].expand(shape)
    batches = split(data, sizes)
    assert_exact(measured(batches), batches)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 70, 112, 112), (40, 8, 56, 56), (9, 600, 7, 7)], ids=str)
def test_a_mean_of_ten_thousand_deviations_is_no_difficulty(
    shape: tuple[int, int, int, int], layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(shape, generator=generator) * 0.01 + 100).contiguous(memory_format=layout)
    batches = list(data.split(2))
    assert_exact(measured(batches), batches)


def test_squares_about_zero_would_not_do() -> None:
    """What the pivot is for: float32 squares of these numbers are off by more than the variance itself."""
    data = torch.randn(8, 4, 28, 28, generator=torch.Generator().manual_seed(0)) * 0.01 + 100
    naive = data.square().mean((0, 2, 3)) - data.mean((0, 2, 3)).square()
    exact = torch.from_numpy(by_channel(data).var(axis=1))
    assert ((naive - exact).abs() / exact).max() > 0.5
    np.testing.assert_allclose(measured([data]).variance, exact.numpy(), rtol=RELATIVE)


def test_images_that_begin_with_a_border_are_exact() -> None:
    """The pivot is read from the first rows: here they are the worst they can be."""
    data = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 0.01 + 100
    data[:, :, :10] = 0
    assert_exact(measured([data]), [data])
    data = torch.full((2, 3, 40, 40), 100.0)
    data[:, :, 10:] = 100.01
    assert_exact(measured([data]), [data])


def test_a_first_batch_unlike_the_others_does_not_spoil_them() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.zeros(2, 3, 8, 8), *(torch.randn(2, 3, 8, 8, generator=generator) * 0.01 + 100 for _ in range(5))]
    assert_exact(measured(batches), batches)


def test_two_values_whose_squares_round_alike_are_exact() -> None:
    """Equal summands are the hardest for a sum in float32: each rounding has the same sign."""
    for value in np.linspace(0.1, 0.9, 17):
        data = torch.full((2, 2, 112, 112), float(value))
        data[:, :, :, ::2] *= -1
        assert_exact(measured([data]), [data])
        assert_exact(measured([data.contiguous(memory_format=torch.channels_last)]), [data])


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(5, 6, 9, 4, generator=generator) + 10 for _ in range(2)]
    batches += [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    rows = [torch.randn(50, 6, generator=generator)]
    for piece, means in ((1, 1), (40, 7), (216, 12), (500, 1 << 20)):
        monkeypatch.setattr(moments_file, "PIECE", piece)
        monkeypatch.setattr(moments_file, "IMAGE_MEANS", means)
        assert_exact(measured(batches), batches)
        assert_exact(measured(rows), rows)


def test_constant_channels_have_no_variance() -> None:
    found = measured([torch.full((3, 2, 5, 5), 0.1), torch.full((1, 2, 5, 5), 0.1)])
    assert found.variance.max() < 1e-32
    assert found.variance.min() >= 0
    assert np.all(found.mean == np.float64(np.float32(0.1)))


def test_nan_and_infinity_stay_in_their_channel() -> None:
    data = torch.ones(2, 3, 4, 4)
    data[0, 0, 0, 0] = float("nan")
    data[1, 1, 3, 3] = float("inf")
    found = measured([data, torch.ones(2, 3, 4, 4)])
    assert np.isfinite(found.mean).tolist() == [False, False, True]
    assert np.isfinite(found.variance).tolist() == [False, False, True]


# -- batches


def test_running_statistics_in_training_follow_the_moments() -> None:
    """With momentum None they are the mean over the batches of mean and unbiased variance."""
    layer = nn.BatchNorm2d(3, momentum=None)
    batches = [torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) + seed for seed in range(4)]
    for batch in batches:
        layer(batch)
    found = measured(batches)
    assert layer.running_var is not None
    assert layer.running_mean is not None
    np.testing.assert_allclose(found.within_batch_variance, layer.running_var.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.mean, layer.running_mean.numpy(), rtol=1e-5)
    assert np.all(found.variance > 1.5 * found.within_batch_variance)


def test_batches_of_one_sample_count_in_all_but_the_variance_within() -> None:
    data = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    batches = [data[:1], data[1:2], data[2:]]
    found = measured(batches)
    assert_exact(found, batches)
    assert (found.batches, found.batches_of_one, found.batches_with_variance) == (3, 2, 1)
    np.testing.assert_allclose(
        found.within_batch_variance, data[2:].double().numpy().var(axis=0, ddof=1), rtol=RELATIVE
    )


def test_an_empty_batch_adds_nothing() -> None:
    found = measured([torch.empty(0, 3, 4, 4), torch.empty(2, 3, 0, 4)])
    assert (found.batches, found.count, found.images) == (0, 0, 0)
    assert found.mean.shape == (0,)
    assert found.variance.shape == (0,)


# -- watching


class TwiceAndNever(nn.Module):
    """One layer that is used twice in each forward, one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.bn(input=self.bn(images) + 1)


def watch(module: nn.Module, batches: list[Tensor]) -> dict[str, ChannelMoments]:
    layers = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    with torch.inference_mode(), watching(layers) as found:
        for batch in batches:
            module(batch)
    assert all(not layer._forward_pre_hooks for layer in layers.values())
    return found


def test_each_call_of_a_layer_counts_and_a_layer_never_called_is_known() -> None:
    network = TwiceAndNever().eval()
    batches = [torch.randn(2, 3, 4, 4) for _ in range(3)]
    found = watch(network, batches)
    assert (found["bn"].calls, found["bn"].batches, found["unused"].calls, found["unused"].count) == (6, 6, 0, 0)
    with torch.no_grad():
        inputs = [inputs for batch in batches for inputs in (batch, network.bn(batch) + 1)]
    assert_exact(found["bn"], inputs)


def test_the_inputs_of_deep_layers_are_measured_with_gradients_on() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyBatchNorm1d()).eval()
    images = torch.randn(4, 3, 6, 6)
    network(images)
    with watching({"1": network[1], "4": network[4]}) as found:
        network(images).sum().backward()
    with torch.no_grad():
        assert_exact(found["1"], [network[:1](images)])
        assert_exact(found["4"], [network[:4](images)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_networks_of_other_precision_are_measured(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype).eval()
    images = torch.randn(4, 3, 6, 6).to(dtype)
    found = watch(network, [images])
    with torch.no_grad():
        assert_exact(found["1"], [network[0](images)])


class Odd(nn.Module):
    """Has the buffers of a BatchNorm, and takes what no BatchNorm takes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, *anything: object) -> None:
        pass


def test_inputs_that_cannot_be_measured_count_as_calls() -> None:
    layer = Odd()
    with watching({"odd": layer}) as found:
        layer()
        layer("text")
        layer(torch.zeros(2, 4))
        layer(torch.zeros(2, 3, dtype=torch.int64))
        layer(torch.zeros(3))
        layer(torch.zeros(2, 3).to_sparse())
    assert (found["odd"].calls, found["odd"].batches) == (6, 0)


def test_hooks_are_gone_after_an_exception() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(RuntimeError), watching({"0": network[0]}):
        network(torch.zeros(2, 4))
    assert not network[0]._forward_pre_hooks


def test_a_compiled_network_is_measured() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    network = torch.compile(inner, backend="eager")
    images = torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        network(images)  # compiled now, without a hook
    found = watch(network, [images])["_orig_mod.1"]
    with torch.no_grad():
        assert_exact(found, [inner[0](images)])


# -- memory


class Seen(nn.Module):
    """Keeps a weak reference to each tensor that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[int] = []
        self.references: list[weakref.ref[Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.alive.append(sum(reference() is not None for reference in self.references))
        result = images + 1
        self.references.append(weakref.ref(result))
        return result


def test_no_activation_outlives_its_layer() -> None:
    seen = Seen()
    network = nn.Sequential(*[part for _ in range(5) for part in (seen, nn.BatchNorm2d(3))]).eval()
    watch(network, [torch.randn(2, 3, 8, 8)])
    gc.collect()
    assert seen.alive == [0, 0, 0, 0, 0]
    assert all(reference() is None for reference in seen.references)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements that a call within made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_an_activation_is_never_copied_whole(layout: torch.memory_format) -> None:
    inputs = torch.zeros(4, 64, 128, 128).contiguous(memory_format=layout)
    found = ChannelMoments()
    largest = LargestTensor()
    with torch.inference_mode(), largest:
        moments_file.moments_of_images(*moments_file.laid_out(inputs))
    assert 0 < largest.elements <= moments_file.PIECE * torch.get_num_threads()
    found.add(inputs)
    assert found.variance.max() == 0


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    def tensors() -> int:
        return sum(type(held) is Tensor for held in gc.get_objects())

    found = ChannelMoments()
    batch = torch.randn(4, 16, 4, 4)
    measured_once = [found.add(batch), found.add(batch), tensors()][-1]
    for _ in range(50):
        found.add(batch)
    assert tensors() == measured_once
    assert found.batches == 52
