"""Any nesting of state dicts and modules, saved by torch in any way, is read back bit for bit."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from bncheck.checkpoints import read_checkpoint
from bncheck.subjects.layer import BatchNormLayer, Known
from tests.checkpoints.encodings.test_zip_archive import MemorySource

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FLAGS = st.booleans()

LAYERS = st.builds(
    lambda cls, channels, eps, momentum, affine, tracks, training, dtype: (
        cls(channels, eps=eps, momentum=momentum, affine=affine, track_running_stats=tracks).to(dtype).train(training)
    ),
    st.sampled_from([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]),
    st.integers(1, 5),
    st.floats(0, 1e-2),
    st.none() | st.floats(0, 1),
    FLAGS,
    FLAGS,
    FLAGS,
    st.sampled_from(DTYPES),
)
NAMES = st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda name: not hasattr(nn.ModuleDict, name) and name not in ("module", "_orig_mod", "training")
)
MODULES = st.recursive(
    LAYERS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda held: nn.Sequential(*held))
        | st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(nn.ModuleDict)
    ),
    max_leaves=6,
)
KEYS = st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1, max_size=6)


def nest(held: Any, path: list[str | int]) -> Any:
    """The value inside dicts and lists, so that it stands at the path."""
    for step in reversed(path):
        held = [*(["filling"] * step), held] if isinstance(step, int) else {"epoch": 1, step: held}
    return held


def bits(tensor: Any) -> Any:
    """The bytes of a tensor or array in the precision in which bncheck gives it, every NaN the same.

    Which bits a NaN has after widening a half is up to the converter; numpy and torch differ there.
    """
    if tensor is None:
        return None
    if isinstance(tensor, torch.Tensor):
        wide = tensor.detach().float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.detach()
        tensor = wide.numpy()
    return tensor.dtype.str, np.where(np.isnan(tensor), tensor.dtype.type("nan"), tensor).tobytes()


def of_torch(name: str, group: str, module: Any) -> tuple[Any, ...]:
    return (name, group, *(bits(getattr(module, part)) for part in ("running_mean", "running_var", "weight", "bias")))


def of_ours(layer: BatchNormLayer) -> tuple[Any, ...]:
    parts = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    return (layer.name, layer.group, *map(bits, parts))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    MODULES,
    st.lists(KEYS.filter(lambda key: key != "epoch") | st.integers(0, 2), max_size=3),
    st.sampled_from(["module", "state_dict"]),
    st.booleans(),
    st.sampled_from([2, 3, 4, 5]),
    st.integers(0, 2**31),
)
def test_what_torch_saves_is_read_back(
    module: nn.Module, path: list[str | int], contents: str, zipped: bool, protocol: int, seed: int
) -> None:
    torch.manual_seed(seed)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.normal_()
            buffer.view(-1)[0] = float("nan") if seed % 3 == 0 else float("inf") if seed % 3 == 1 else 5.6e-45
        else:
            buffer.random_(0, 10**6)
    held = module if contents == "module" else module.state_dict()
    out = io.BytesIO()
    torch.save(nest(held, path), out, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    group = ".".join(map(str, path))
    modules = {
        name: inner for name, inner in module.named_modules() if isinstance(inner, nn.modules.batchnorm._BatchNorm)
    }
    layers = read_checkpoint(MemorySource(out.getvalue())).layers  # type: ignore[arg-type]
    if contents == "module":
        assert [of_ours(layer) for layer in layers] == [of_torch(n, group, inner) for n, inner in modules.items()]
        for layer, inner in zip(layers, modules.values(), strict=True):
            assert (layer.kind.value, layer.eps.value, layer.momentum.value) == (
                type(inner).__name__,
                inner.eps,
                inner.momentum,
            )
            assert (layer.affine.value, layer.track_running_stats.value, layer.training.value) == (
                inner.affine,
                inner.track_running_stats,
                inner.training,
            )
            assert layer.momentum.known is Known.STORED
    elif isinstance(module, (nn.Sequential, nn.ModuleDict)):  # a bare layer has no name in its state_dict
        assert [of_ours(layer) for layer in layers] == [of_torch(n, group, inner) for n, inner in modules.items()]
    for layer in layers:
        inner = modules.get(layer.name)
        if inner is not None and inner.track_running_stats:
            assert layer.num_batches_tracked == inner.num_batches_tracked.item()


def as_safetensors(network: nn.Sequential) -> bytes:
    return save(network.state_dict())


def as_script(network: nn.Sequential) -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.script(network), out)
    return out.getvalue()


def as_trace(network: nn.Sequential) -> bytes:
    out = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, example(network), check_trace=False), out)
    return out.getvalue()


def as_export(network: nn.Sequential) -> bytes:
    out = io.BytesIO()
    torch.export.save(torch.export.export(network, (example(network),)), out)
    return out.getvalue()


def as_onnx(network: nn.Sequential) -> bytes:
    out = io.BytesIO()
    torch.onnx.export(
        network, (example(network),), out, dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE, keep_initializers_as_inputs=False,
    )  # fmt: skip
    return out.getvalue()


def example(network: nn.Sequential) -> torch.Tensor:
    return torch.ones(2, network[0].num_features, 2, 2)


SETTINGS = st.tuples(st.floats(1e-6, 1e-2), st.floats(0.01, 1), FLAGS)


@pytest.mark.slow
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(2, 5),
    st.lists(SETTINGS, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([as_safetensors, as_script, as_trace, as_export, as_onnx]),
    st.integers(0, 2**31),
)
def test_graphs_and_tensors_of_other_formats_are_read_back(
    channels: int, layers: list[tuple[float, float, bool]], training: bool, write: Callable[..., bytes], seed: int
) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.BatchNorm2d(channels, eps=eps, momentum=momentum, affine=affine) for eps, momentum, affine in layers)
    ).train(training)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates some of its formats
        data = write(network)  # tracing in train mode updates the statistics: they are compared afterwards
    found = read_checkpoint(MemorySource(data)).layers  # type: ignore[arg-type]
    if write is as_onnx:  # which fills in the parameters that are missing
        for layer in network:
            layer.weight = layer.weight if layer.weight is not None else nn.Parameter(torch.ones(channels))
            layer.bias = layer.bias if layer.bias is not None else nn.Parameter(torch.zeros(channels))
    else:
        assert [layer.name for layer in found] == [str(index) for index in range(len(layers))]
    assert [of_ours(layer)[2:] for layer in found] == [of_torch("", "", layer)[2:] for layer in network]
    if write is as_safetensors:
        return
    for layer, (eps, momentum, _) in zip(found, layers, strict=True):
        assert layer.eps.value == pytest.approx(eps)
        assert layer.momentum.value == pytest.approx(momentum, rel=1e-5)
        assert layer.training.value == training
        assert layer.baked == (write is not as_script)
