"""What a layer does as saved, compared with what torch does."""

import itertools

import pytest
import torch

from bncheck.subjects.checkpoint import Tensor
from bncheck.subjects.layer import BatchNormLayer, Behaviour, Normalises, StatisticsUse, inferred, stored


def behaviour_of_torch(layer: torch.nn.BatchNorm2d) -> Behaviour:
    """Runs the layer and looks at what happened."""
    before = {name: buffer.clone() for name, buffer in layer.named_buffers() if name.startswith("running")}
    values = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 3 + 5
    try:
        output = layer(values)
    except (RuntimeError, ValueError):
        return Behaviour(Normalises.FAILS, False)
    moved = any(not torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers() if name in before)
    # The batch has mean 5: only a layer that normalises by it gives mean 0.
    return Behaviour(Normalises.BATCH if abs(output.mean()) < 0.1 else Normalises.RUNNING, moved)


@pytest.mark.parametrize(
    ("training", "tracks", "has_mean", "has_var", "momentum"),
    list(itertools.product([True, False], [True, False], [True, False], [True, False], [0.1, 0.0, None])),
)
def test_every_combination_behaves_as_in_torch(
    training: bool, tracks: bool, has_mean: bool, has_var: bool, momentum: float | None
) -> None:
    layer = torch.nn.BatchNorm2d(3, momentum=momentum).train(training)
    layer.track_running_stats = tracks
    if not has_mean:
        layer.running_mean = None
    if not has_var:
        layer.running_var = None
    ours = BatchNormLayer(
        "bn",
        "",
        stored("BatchNorm2d"),
        3,
        momentum=stored(momentum),
        track_running_stats=stored(tracks),
        training=stored(training),
        running_mean=None if layer.running_mean is None else layer.running_mean.numpy(),
        running_var=None if layer.running_var is None else layer.running_var.numpy(),
    )
    assert ours.behaviour == behaviour_of_torch(layer)


def test_an_unknown_mode_leaves_the_behaviour_unknown() -> None:
    statistics = torch.zeros(3).numpy()
    layer = BatchNormLayer(
        "bn",
        "",
        inferred("BatchNorm2d"),
        3,
        track_running_stats=inferred(True),
        running_mean=statistics,
        running_var=statistics,
    )
    assert layer.behaviour == Behaviour(Normalises.UNKNOWN, None)


def test_without_buffers_the_batch_is_used_in_either_mode() -> None:
    layer = BatchNormLayer("bn", "", inferred("BatchNorm2d"), 3)
    assert layer.behaviour == Behaviour(Normalises.BATCH, False)


def test_a_frozen_layer_uses_its_statistics_in_train_mode_too() -> None:
    layer = BatchNormLayer("bn", "", stored("FrozenBatchNorm2d"), 3, use=StatisticsUse.FROZEN, training=stored(True))
    assert layer.behaviour == Behaviour(Normalises.RUNNING, False)


def test_a_buffer_without_data_counts_as_present() -> None:
    layer = BatchNormLayer(
        "bn",
        "",
        stored("LazyBatchNorm2d"),
        None,
        training=stored(False),
        track_running_stats=stored(True),
        without_data=("running_mean", "running_var"),
    )
    assert layer.behaviour == Behaviour(Normalises.RUNNING, False)


def test_the_size_of_a_tensor_is_the_product_of_its_shape() -> None:
    assert Tensor("float32", (2, 3, 4), None).size == 24
    assert Tensor("float32", (), None).size == 1
    assert Tensor("float32", (2, 0), None).size == 0
