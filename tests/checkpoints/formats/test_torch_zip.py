"""`torch.save` zip files, written by torch."""

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.errors import UnreadableError
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import Known

Read = Callable[[Path], Checkpoint]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    network(torch.randn(4, 3, 9, 9))
    return network


def assert_same_statistics(checkpoint: Checkpoint, network: nn.Module) -> None:
    modules = dict(network.named_modules())
    assert checkpoint.layers
    for layer in checkpoint.layers:
        module = modules[layer.name]
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name in ("running_mean", "running_var", "weight", "bias"):
            ours, theirs = getattr(layer, name), getattr(module, name)
            assert ours.tobytes() == theirs.detach().numpy().tobytes()
        assert layer.num_batches_tracked == module.num_batches_tracked.item()


def test_a_state_dict_is_read_bit_for_bit(tmp_path: Path, read: Read) -> None:
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    checkpoint = read(tmp_path / "model.pt")
    assert [(layer.name, layer.group, layer.kind.value) for layer in checkpoint.layers] == [
        ("1", "", "BatchNorm2d"),
        ("4", "", "BatchNorm2d"),
    ]
    assert_same_statistics(checkpoint, network)


def test_a_state_dict_holds_no_eps_momentum_or_mode(tmp_path: Path, read: Read) -> None:
    torch.save(small_network().state_dict(), tmp_path / "model.pt")
    [layer, _] = read(tmp_path / "model.pt").layers
    assert {setting.known for setting in (layer.eps, layer.momentum, layer.training)} == {Known.UNKNOWN}
    assert {setting.known for setting in (layer.affine, layer.track_running_stats, layer.kind)} == {Known.INFERRED}


@pytest.mark.parametrize(
    ("wrap", "groups"),
    [
        (lambda sd: {"state_dict": sd, "epoch": 3}, ["state_dict"]),
        (lambda sd: {"model": sd, "ema": dict(sd), "optimizer": {"state": {0: {"step": 5}}}}, ["model", "ema"]),
        (lambda sd: {"net": {"generator": sd, "discriminator": dict(sd)}}, ["net.generator", "net.discriminator"]),
        (lambda sd: [sd, {"models": [dict(sd)]}], ["0", "1.models.0"]),
        (lambda sd: {"model": sd, "same": sd}, ["model", "same"]),
    ],
)
def test_groups_are_named_by_their_path_in_the_file(
    tmp_path: Path, read: Read, wrap: Callable[[object], object], groups: list[str]
) -> None:
    torch.save(wrap(small_network().state_dict()), tmp_path / "model.pt")
    checkpoint = read(tmp_path / "model.pt")
    assert [group.name for group in checkpoint.groups if group.layers] == groups
    assert [(layer.group, layer.name) for layer in checkpoint.layers] == [
        (group, name) for group in groups for name in ("1", "4")
    ]


def test_a_dict_for_each_layer_is_one_group(tmp_path: Path, read: Read) -> None:
    nested = {"backbone": {"bn1": dict(nn.BatchNorm2d(4).state_dict())}}
    torch.save(nested, tmp_path / "model.pt")
    assert [(layer.group, layer.name) for layer in read(tmp_path / "model.pt").layers] == [("backbone", "bn1")]


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_prefixes_of_wrappers_are_stripped(tmp_path: Path, read: Read, prefix: str) -> None:
    state = {f"{prefix}{key}": value for key, value in small_network().state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    layers = read(tmp_path / "model.pt").layers
    assert [(layer.name, layer.stored_name) for layer in layers] == [("1", f"{prefix}1"), ("4", f"{prefix}4")]


def test_the_counter_of_averaged_models_does_not_keep_the_prefix(tmp_path: Path, read: Read) -> None:
    torch.save(torch.optim.swa_utils.AveragedModel(small_network()).state_dict(), tmp_path / "model.pt")
    assert [layer.name for layer in read(tmp_path / "model.pt").layers] == ["1", "4"]


def test_a_submodule_that_is_called_module_keeps_its_name(tmp_path: Path, read: Read) -> None:
    network = nn.ModuleDict({"module": small_network(), "head": nn.Linear(4, 2)})
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert [layer.name for layer in read(tmp_path / "model.pt").layers] == ["module.1", "module.4"]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_every_float_type_is_read_exactly(tmp_path: Path, read: Read, dtype: torch.dtype) -> None:
    state = {"bn.running_mean": torch.randn(5).to(dtype), "bn.running_var": torch.rand(5).to(dtype)}
    torch.save(state, tmp_path / "model.pt")
    [layer] = read(tmp_path / "model.pt").layers
    assert layer.dtype == str(dtype).removeprefix("torch.")
    assert layer.running_mean is not None
    np.testing.assert_array_equal(layer.running_mean, state["bn.running_mean"].to(torch.float64).numpy())


def test_views_tied_storages_and_odd_shapes_are_read(tmp_path: Path, read: Read) -> None:
    base = torch.arange(40, dtype=torch.float32)
    matrix = torch.randn(2000, 70)
    state = {
        "offset.running_mean": base[3:8],
        "offset.running_var": base[10:30:4],  # every fourth element
        "tied.running_mean": base[3:8],
        "tied.running_var": torch.ones(1).expand(5),  # stride 0
        "column.running_mean": matrix[:, 3],  # a thin view of a large storage
        "column.running_var": matrix.abs().t()[5],
        "spatial.running_mean": torch.randn(1, 6, 1, 1),
        "spatial.running_var": torch.rand(1, 6, 1, 1),
        "spatial.num_batches_tracked": torch.tensor([7]),
        "empty.running_mean": torch.empty(0),
        "empty.running_var": torch.empty(0),
        "scalar": torch.tensor(1.5),
    }
    torch.save(state, tmp_path / "model.pt")
    layers = {layer.name: layer for layer in read(tmp_path / "model.pt").layers}
    for name, layer in layers.items():
        for statistic in ("running_mean", "running_var"):
            np.testing.assert_array_equal(
                getattr(layer, statistic), state[f"{name}.{statistic}"].reshape(-1).numpy(), strict=True
            )
    assert layers["spatial"].num_batches_tracked == 7
    assert (layers["spatial"].num_features, layers["empty"].num_features) == (6, 0)


def test_integer_storages_are_read(tmp_path: Path, read: Read) -> None:
    state = {"bn.running_mean": torch.zeros(3), "bn.running_var": torch.ones(3)}
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16, torch.float32):
        state["bn.num_batches_tracked"] = torch.tensor(11).to(dtype)
        torch.save(state, tmp_path / "model.pt")
        assert read(tmp_path / "model.pt").layers[0].num_batches_tracked == 11


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path: Path, read: Read, protocol: int) -> None:
    network = small_network()
    torch.save({"a": network.state_dict(), "b": network}, tmp_path / "model.pt", pickle_protocol=protocol)
    checkpoint = read(tmp_path / "model.pt")
    assert [group.contents for group in checkpoint.groups] == ["state_dict", "module"]
    assert_same_statistics(checkpoint, network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_big_endian_file_is_read(tmp_path: Path, read: Read, dtype: torch.dtype) -> None:
    """No such machine is at hand: the storages of a file are swapped by hand and the file says so."""
    state = {"bn.running_mean": torch.randn(5).to(dtype), "bn.running_var": torch.rand(5).to(dtype)}
    torch.save(state, tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry.endswith("byteorder"):
                data = b"big"
            elif "/data/" in entry:
                data = np.frombuffer(data, f"u{dtype.itemsize}").byteswap().tobytes()
            new.writestr(entry, data)
    [layer] = read(tmp_path / "big.pt").layers
    assert layer.running_mean is not None
    np.testing.assert_array_equal(layer.running_mean, state["bn.running_mean"].double().numpy())


def test_a_file_that_was_packed_again_is_read(tmp_path: Path, read: Read) -> None:
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with (
        zipfile.ZipFile(tmp_path / "model.pt") as old,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    assert_same_statistics(read(tmp_path / "packed.pt"), network)


def test_a_layer_without_any_tensor_is_found_through_metadata(tmp_path: Path, read: Read) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.LayerNorm(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4),
    )
    torch.save(network.state_dict(), tmp_path / "model.pt")
    layers = read(tmp_path / "model.pt").layers
    assert [(layer.name, layer.num_features, layer.affine.value) for layer in layers] == [
        ("1", None, False),
        ("3", 4, True),
        ("5", 4, True),
    ]
    assert [layer.kind.value for layer in layers] == ["BatchNorm or InstanceNorm"] * 2 + ["BatchNorm2d"]


def test_without_metadata_such_layers_leave_no_trace(tmp_path: Path, read: Read) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4))
    torch.save(OrderedDict(network.state_dict().items()), tmp_path / "model.pt")
    assert [layer.name for layer in read(tmp_path / "model.pt").layers] == ["1"]


def test_a_file_saved_on_a_gpu_is_read_like_any_other(tmp_path: Path, read: Read) -> None:
    network = small_network()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "cuda.pt", "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(entry, data)
    assert_same_statistics(read(tmp_path / "cuda.pt"), network)


def test_only_the_ranges_that_are_needed_are_read(tmp_path: Path) -> None:
    from bncheck.checkpoints import read_checkpoint
    from bncheck.checkpoints.sources.local import FileSource

    state = {"conv.weight": torch.zeros(64, 4096, 3, 3), **nn.BatchNorm2d(64).state_dict(prefix="bn.")}
    torch.save(state, tmp_path / "model.pt")
    with FileSource(tmp_path / "model.pt") as source:
        assert len(read_checkpoint(source).layers) == 1
        assert source.size > 9_000_000
        assert source.bytes_read < 100_000


@pytest.mark.parametrize("lost", [1, 22, 300, 2000, 5000])
def test_a_truncated_file_is_refused(tmp_path: Path, read: Read, lost: int) -> None:
    torch.save(small_network().state_dict(), tmp_path / "model.pt")
    data = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(data[:-lost])
    with pytest.raises(UnreadableError, match=r"model\.pt"):
        read(tmp_path / "model.pt")


def test_a_storage_that_is_too_short_is_refused(tmp_path: Path, read: Read) -> None:
    torch.save({"bn.running_mean": torch.zeros(8), "bn.running_var": torch.ones(8)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "short.pt", "w") as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry)[: 20 if entry.endswith("data/0") else None])
    with pytest.raises(
        UnreadableError, match=r"'bn\.running_mean' in .*short\.pt needs 32 bytes of a storage that has 20"
    ):
        read(tmp_path / "short.pt")


def test_a_missing_storage_is_named(tmp_path: Path, read: Read) -> None:
    torch.save({"bn.running_mean": torch.zeros(8), "bn.running_var": torch.ones(8)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "holed.pt", "w") as new:
        for entry in old.namelist():
            if not entry.endswith("data/1"):
                new.writestr(entry, old.read(entry))
    with pytest.raises(UnreadableError, match=r"holed\.pt misses the numbers of 'bn\.running_var'"):
        read(tmp_path / "holed.pt")
