"""`torch.save` files before torch 1.6, written by torch; what only older versions wrote is made by hand."""

import copyreg
import importlib
import io
import pickle
import struct
import sys
import tarfile
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.checkpoints.formats import torch_legacy
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint
from bncheck.subjects.layer import BatchNormLayer, Known

Read = Callable[[Path], Checkpoint]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    network(torch.randn(4, 3, 9, 9))
    return network


def save(value: object, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes whose source text is not found
        torch.save(value, path, _use_new_zipfile_serialization=False, **options)
    return path


def assert_same(layer: BatchNormLayer, expected: nn.Module) -> None:
    assert isinstance(expected, nn.modules.batchnorm._BatchNorm)
    for name in ("running_mean", "running_var", "weight", "bias"):
        ours, theirs = getattr(layer, name), getattr(expected, name)
        assert ours.tobytes() == theirs.detach().numpy().tobytes()


class OldPickler(pickle.Pickler):
    """Writes tensors and parameters as torch before 0.4 did.

    With `views`, storages are written as parts of one large storage, which torch gave up in 0.4.
    """

    def __init__(self, file: io.BytesIO, *, location: str, views: bool) -> None:
        super().__init__(file, protocol=2)
        self.location = location
        self.views = views
        self.storages: dict[str, torch.Tensor] = {}
        self.pool = torch.arange(3.0)

    def persistent_id(self, value: object) -> object:
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        numbers = torch.tensor([], dtype=value.dtype).set_(value._untyped_storage)  # type: ignore[call-overload]
        kind = getattr(torch, {torch.float32: "FloatStorage", torch.int64: "LongStorage"}[value.dtype])
        key = str(numbers.data_ptr())
        if not self.views or value.dtype != torch.float32:
            self.storages[key] = numbers
            return ("storage", kind, key, self.location, len(numbers), None)
        start = len(self.pool)
        self.pool = torch.cat([self.pool, numbers])
        # The size of the whole is not known yet: `write_old` asks for it twice.
        return ("storage", kind, "pool", self.location, self.pool_size, (key, start, len(numbers)))

    pool_size = 0

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, nn.Parameter):
            return nn.Parameter, (value.data,), (True, False, OrderedDict())
        if isinstance(value, torch.Tensor):
            return torch._utils._rebuild_tensor, (
                value._typed_storage(),
                value.storage_offset(),
                tuple(value.shape),
                value.stride(),
            )
        return NotImplemented


def write_old(value: object, path: Path, *, location: str = "cpu", views: bool = False) -> Path:
    def pickled(pool_size: int) -> tuple[bytes, OldPickler]:
        out = io.BytesIO()
        pickler = OldPickler(out, location=location, views=views)
        pickler.pool_size = pool_size
        pickler.dump(value)
        return out.getvalue(), pickler

    _, first = pickled(0)
    data, pickler = pickled(len(first.pool))
    storages = {**pickler.storages, **({"pool": pickler.pool} if views else {})}
    with path.open("wb") as out:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(part, out, protocol=2)
        out.write(data)
        pickle.dump(sorted(storages), out, protocol=2)
        for key in sorted(storages):
            out.write(struct.pack("<q", storages[key].numel()) + storages[key].numpy().tobytes())
    return path


def test_a_state_dict_is_read_bit_for_bit(tmp_path: Path, read: Read) -> None:
    network = small_network()
    checkpoint = read(save(network.state_dict(), tmp_path / "model.pt"))
    assert checkpoint.format == "torch.save, legacy"
    assert [(layer.name, layer.kind.value) for layer in checkpoint.layers] == [
        ("1", "BatchNorm2d"),
        ("4", "BatchNorm2d"),
    ]
    for layer in checkpoint.layers:
        assert_same(layer, network[int(layer.name)])
    assert [layer.num_batches_tracked for layer in checkpoint.layers] == [1, 1]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_that_torch_saves_with_is_read(tmp_path: Path, read: Read, protocol: int) -> None:
    network = small_network()
    [layer, _] = read(save(network.state_dict(), tmp_path / "model.pt", pickle_protocol=protocol)).layers
    assert_same(layer, network[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(tmp_path: Path, read: Read, dtype: torch.dtype) -> None:
    network = small_network().to(dtype)
    [layer, _] = read(save(network.state_dict(), tmp_path / "model.pt")).layers
    assert layer.running_var is not None
    assert layer.dtype == str(dtype).removeprefix("torch.")
    assert layer.running_var.tolist() == network[1].running_var.tolist()


def test_tensors_that_share_a_storage_are_read_from_their_places(tmp_path: Path, read: Read) -> None:
    pool = torch.arange(40.0)
    state = {"bn.running_mean": pool[3:7], "bn.running_var": pool[8:24:4], "bn.weight": pool.view(4, 10)[:, 9]}
    [layer] = read(save(state, tmp_path / "model.pt")).layers
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.weight is not None
    assert layer.running_mean.tolist() == [3, 4, 5, 6]
    assert layer.running_var.tolist() == [8, 12, 16, 20]
    assert layer.weight.tolist() == [9, 19, 29, 39]


def test_a_whole_module_has_its_settings_stored(tmp_path: Path, read: Read) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3, momentum=None)).eval()
    [group] = read(save({"model": network}, tmp_path / "model.pt")).groups
    [layer] = group.layers
    assert (group.name, group.contents) == ("model", "module")
    settings = (layer.kind, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, layer.training)
    assert [setting.value for setting in settings] == ["BatchNorm2d", 1e-3, None, True, True, False]
    assert {setting.known for setting in settings} == {Known.STORED}
    assert_same(layer, network[1])


def test_classes_saved_with_their_source_text_need_not_exist(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    (tmp_path / "vanishing_net.py").write_text(f"{source}        self.bn = nn.BatchNorm1d(5)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("vanishing_net")
    network = module.Net()
    path = save([network, module.Net()], tmp_path / "model.pt")
    monkeypatch.delitem(sys.modules, "vanishing_net")
    (tmp_path / "vanishing_net.py").unlink()
    assert b"self.bn = nn.BatchNorm1d(5)" in path.read_bytes()
    checkpoint = read(path)
    assert [(layer.group, layer.name, layer.kind.value) for layer in checkpoint.layers] == [
        ("0", "bn", "BatchNorm1d"),
        ("1", "bn", "BatchNorm1d"),
    ]
    assert [g.path for g in checkpoint.globals if g.module == "vanishing_net"] == ["vanishing_net.Net"]


def test_a_pickle_longer_than_the_first_window_is_read(tmp_path: Path, read: Read) -> None:
    network = small_network()
    notes = ["x" * 1000 for _ in range(2 * torch_legacy.FIRST_WINDOW // 1000)]
    path = save({"notes": " ".join(notes), "model": network.state_dict()}, tmp_path / "model.pt")
    [layer, _] = read(path).layers
    assert_same(layer, network[1])


def test_what_a_training_checkpoint_says_besides_its_weights(tmp_path: Path, read: Read) -> None:
    network = small_network()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(4, 3, 9, 9)).sum().backward()
    optimizer.step()
    value = {"epoch": 7, "state_dict": network.state_dict(), "optimizer": optimizer.state_dict()}
    assert read(save(value, tmp_path / "model.pt")).facts == {"epoch": 7, "optimizer_steps": 1}


def test_the_storages_are_found_without_reading_them(tmp_path: Path) -> None:
    state = {**small_network().state_dict(), "large.weight": torch.zeros(4096, 4096)}
    path = save(state, tmp_path / "model.pt")
    with FileSource(path) as source:
        assert len(torch_legacy.read(source).layers) == 2
        assert (source.bytes_read < 2**20, source.size > 2**26) == (True, True)


# -- what only older versions wrote


def old_state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("views", [False, True])
def test_tensors_as_torch_0_3_wrote_them(tmp_path: Path, read: Read, views: bool) -> None:
    network = small_network()
    path = write_old(old_state(network), tmp_path / "model.pt", views=views)
    assert torch.load(path, weights_only=False)["4.running_var"].tolist() == network[4].running_var.tolist()
    layers = read(path).layers
    assert [layer.num_batches_tracked for layer in layers] == [None, None]
    for layer in layers:
        assert_same(layer, network[int(layer.name)])


def test_tensors_saved_on_a_gpu_are_read(tmp_path: Path, read: Read) -> None:
    network = small_network()
    path = write_old(old_state(network), tmp_path / "model.pt", location="cuda:3")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=False)
    [layer, _] = read(path).layers
    assert_same(layer, network[1])


def test_modules_as_torch_0_3_wrote_them(tmp_path: Path, read: Read) -> None:
    network = small_network()
    for module in network.modules():
        module._buffers.pop("num_batches_tracked", None)
        module.__dict__.pop("track_running_stats", None)
    [layer, _] = read(write_old(network, tmp_path / "model.pt")).layers
    assert_same(layer, network[1])
    assert (layer.eps.value, layer.eps.known) == (1e-5, Known.STORED)
    assert (layer.track_running_stats.value, layer.track_running_stats.known) == (True, Known.INFERRED)
    assert layer.num_batches_tracked is None


def test_variables_are_read_as_their_data(tmp_path: Path, read: Read) -> None:
    variable = types.ModuleType("torch.autograd.variable")

    class Variable:
        def __init__(self, data: torch.Tensor) -> None:
            self.data = data

        def __reduce_ex__(self, _: object) -> Any:
            return Variable, (self.data,), (True, False, None)

    Variable.__module__, Variable.__qualname__ = variable.__name__, "Variable"
    variable.__dict__["Variable"] = Variable
    original = sys.modules[variable.__name__]
    sys.modules[variable.__name__] = variable
    try:
        state = {"bn.running_mean": Variable(torch.zeros(3)), "bn.running_var": Variable(torch.tensor([1.0, 2.0, 3.0]))}
        path = write_old(state, tmp_path / "model.pt")
    finally:
        sys.modules[variable.__name__] = original
    [layer] = read(path).layers
    assert layer.running_var is not None
    assert layer.running_var.tolist() == [1, 2, 3]


def test_the_tar_format_of_torch_0_1_is_named_and_refused(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "model.pth"
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(b"\x80\x02}." * 175))
    with pytest.raises(UnsupportedError, match=r"tar format of torch 0\.1"):
        read(path)


def test_another_tar_archive_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w:") as archive:
        for name in ("pickle", "tensors", "storages", "readme"):
            archive.addfile(tarfile.TarInfo(name))
    with FileSource(path) as source:
        assert not torch_legacy.recognises(source)


# -- damage


@pytest.mark.parametrize("kept", [-1, -40, 200, 60, 20])
def test_a_truncated_file_is_refused(tmp_path: Path, read: Read, kept: int) -> None:
    whole = save(small_network().state_dict(), tmp_path / "model.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:kept])
    with pytest.raises(UnreadableError):
        read(tmp_path / "cut.pt")


def test_a_file_that_ends_in_a_storage_is_refused_even_if_no_layer_needs_it(tmp_path: Path, read: Read) -> None:
    whole = save({"fc.weight": torch.ones(5, 5)}, tmp_path / "model.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-1])
    with pytest.raises(UnreadableError, match="inside a storage of 100 bytes"):
        read(tmp_path / "cut.pt")


def test_a_storage_of_another_size_than_its_tensors_is_refused(tmp_path: Path, read: Read) -> None:
    whole = save(
        {"bn.running_mean": torch.ones(5), "bn.running_var": torch.ones(5)}, tmp_path / "model.pt"
    ).read_bytes()
    count = struct.pack("<q", 5)
    for other in (4, -5, 2**62):
        (tmp_path / "changed.pt").write_bytes(whole.replace(count, struct.pack("<q", other), 1))
        with pytest.raises(UnreadableError, match="elements that should have 5"):
            read(tmp_path / "changed.pt")


class Raw:
    """Pickled as a persistent id, whatever it is."""

    def __init__(self, identity: object) -> None:
        self.identity = identity


class RawPickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return value.identity if isinstance(value, Raw) else None


def write_raw(path: Path, identity: object, keys: list[object], storages: bytes, size: int = 3) -> Path:
    tensor = torch._utils._rebuild_tensor
    out = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {}):
        pickle.dump(part, out, protocol=2)
    pickler = RawPickler(out, protocol=2)
    pickler.dispatch_table = copyreg.dispatch_table.copy()
    pickler.dispatch_table[Reduced] = lambda reduced: reduced.form  # type: ignore[attr-defined]
    made = {
        f"bn.{name}": Reduced((tensor, (Raw(identity), 0, (size,), (1,)))) for name in ("running_mean", "running_var")
    }
    pickler.dump(made)
    pickle.dump(keys, out, protocol=2)
    path.write_bytes(out.getvalue() + storages)
    return path


class Reduced:
    def __init__(self, form: tuple[object, ...]) -> None:
        self.form = form


THREE = struct.pack("<q3f", 3, 1, 2, 3)
GOOD = ("storage", torch.FloatStorage, "0", "cpu", 3, None)


def test_the_hand_made_file_is_good_before_it_is_spoilt(tmp_path: Path, read: Read) -> None:
    path = write_raw(tmp_path / "model.pt", GOOD, ["0"], THREE)
    assert torch.load(path, weights_only=False)["bn.running_var"].tolist() == [1, 2, 3]
    [layer] = read(path).layers
    assert layer.running_var is not None
    assert layer.running_var.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("identity", "keys", "storages"),
    [
        (GOOD, [], b""),  # the key is not listed, so that there are no numbers
        (GOOD, ["0", "0"], THREE + THREE),
        (GOOD, ["0", "1"], THREE + THREE),
        (GOOD, [["0"]], THREE),
        (GOOD, "0", THREE),
        (GOOD, ["0"], THREE[:-1]),
        (GOOD, ["0"], THREE[:7]),
        ((*GOOD[:4], 2**70, None), ["0"], THREE),
        ((*GOOD[:4], -3, None), ["0"], THREE),
        ((*GOOD[:5], ("1", 1, 3)), ["0"], THREE),  # a view that ends behind its storage
        ((*GOOD[:5], ("1", 1, 3)), ["0"], THREE + b"more"),
        ((*GOOD[:5], ("1", 2**62, 3)), ["0"], THREE),
        ((*GOOD[:5], ("1", -1, 3)), ["0"], THREE),
        ((*GOOD[:5], ("1", 0)), ["0"], THREE),
        (GOOD[:4], ["0"], THREE),
        ("0", ["0"], THREE),
        ((), ["0"], THREE),
        (("module", "Net", None, None), ["0"], THREE),
        (("module", torch.FloatStorage, None, None), ["0"], THREE),
        (("storage", dict, "0", "cpu", 3, None), ["0"], THREE),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, read: Read, identity: object, keys: list[object], storages: bytes
) -> None:
    with pytest.raises(UnreadableError):
        read(write_raw(tmp_path / "model.pt", identity, keys, storages))


def test_an_unknown_version_is_refused(tmp_path: Path, read: Read) -> None:
    whole = save({}, tmp_path / "model.pt").read_bytes()
    (tmp_path / "other.pt").write_bytes(whole.replace(pickle.dumps(1001, 2), pickle.dumps(1002, 2), 1))
    with pytest.raises(UnsupportedError, match="unknown version"):
        read(tmp_path / "other.pt")
