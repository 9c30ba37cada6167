"""Folders of torch.distributed.checkpoint, written by torch: in one process, and in two."""

import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from bncheck.checkpoints import read_checkpoint
from bncheck.checkpoints.encodings.limits import tensors_up_to
from bncheck.checkpoints.formats import distributed
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import Checkpoint

Read = Callable[[Path], Checkpoint]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    made(torch.randn(4, 3, 9, 9))
    return made


def save(held: dict[str, Any], folder: Path, **options: Any) -> Path:
    """Saves as one process does, and returns the file with the metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is one process
        dcp.save(held, checkpoint_id=folder, **options)
    return folder / ".metadata"


def metadata_of(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def assert_same(checkpoint: Checkpoint, model: nn.Module) -> None:
    for layer in checkpoint.layers:
        for part in ("weight", "bias", "running_mean", "running_var"):
            theirs = getattr(model.get_submodule(layer.name), part).detach().numpy()
            assert getattr(layer, part).tobytes() == theirs.tobytes()
        assert layer.num_batches_tracked == 1


def test_a_state_dict_is_read_bit_for_bit(tmp_path: Path, read: Read) -> None:
    model = network()
    checkpoint = read(save(model.state_dict(), tmp_path / "step"))
    assert checkpoint.format == "torch.distributed.checkpoint"
    assert [(layer.name, layer.group, layer.kind.value) for layer in checkpoint.layers] == [
        ("1", "", "BatchNorm2d"),
        ("4", "", "BatchNorm2d"),
    ]
    assert_same(checkpoint, model)


def test_state_dicts_that_were_saved_nested_are_groups(tmp_path: Path, read: Read) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    model[1].num_batches_tracked.fill_(1)
    model[4].num_batches_tracked.fill_(1)
    held = {"model": model.state_dict(), "averaged": {"module": network().state_dict()}, "epoch": 3}
    checkpoint = read(save({**held, "optimizer": optimizer.state_dict()}, tmp_path / "step"))
    groups = [(group.name, len(group.layers)) for group in checkpoint.groups if group.layers]
    assert groups == [("model", 2), ("averaged.module", 2)]
    assert_same(Checkpoint("", "", tuple(group for group in checkpoint.groups if group.name == "model")), model)


class Flat(DefaultSavePlanner):
    """A planner that leaves no word on how the tensors were nested."""

    def create_global_plan(self, all_plans: Any) -> Any:
        plans, metadata = super().create_global_plan(all_plans)
        metadata.planner_data = None
        return plans, metadata


@pytest.mark.parametrize(
    ("beside", "group", "names"),
    [({"optimizer": {"step": torch.ones(1)}}, "model", ["1", "4"]), ({}, "", ["model.1", "model.4"])],
)
def test_keys_alone_tell_the_model_only_beside_an_optimizer(
    tmp_path: Path, read: Read, beside: dict[str, Any], group: str, names: list[str]
) -> None:
    path = save({"model": network().state_dict(), **beside}, tmp_path / "step", planner=Flat())
    layers = read(path).layers
    assert [(layer.group, layer.name) for layer in layers] == [(group, name) for name in names]


TWO_RANKS = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
values = {
    "bn.weight": torch.arange(7.0),
    "bn.running_mean": torch.arange(7.0) / 3,
    "bn.running_var": torch.arange(1.0, 8.0),
    "one.running_mean": torch.tensor([5.0]),  # the second rank has nothing of it
    "one.running_var": torch.tensor([6.0]),
}
held = {key: distribute_tensor(value, mesh, [Shard(0)]) for key, value in values.items()}
held["bn.bias"] = distribute_tensor(torch.arange(7.0) * 2, mesh, [Replicate()])
held["bn.num_batches_tracked"] = torch.tensor(11)
dcp.save({"model": held, "rank": rank}, checkpoint_id=f"{folder}/step")
dist.destroy_process_group()
"""


@pytest.fixture(scope="session")
def saved_by_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", TWO_RANKS, str(rank), str(folder)]) for rank in (0, 1)
    ]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    return folder / "step"


@pytest.fixture
def sharded(saved_by_two_ranks: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved_by_two_ranks, tmp_path / "step") / ".metadata"


def test_sharded_statistics_are_put_together(sharded: Path, read: Read) -> None:
    assert {path.name for path in sharded.parent.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    layer, single = sorted(read(sharded).layers, key=lambda layer: layer.name)
    assert (layer.name, layer.group, layer.num_features, layer.num_batches_tracked) == ("bn", "model", 7, 11)
    expected = {
        "weight": torch.arange(7.0),
        "bias": torch.arange(7.0) * 2,
        "running_mean": torch.arange(7.0) / 3,
        "running_var": torch.arange(1.0, 8.0),
    }
    for part, theirs in expected.items():
        assert getattr(layer, part).tobytes() == theirs.numpy().tobytes()
    assert single.running_var is not None
    assert single.running_var.tolist() == [6.0]


def test_a_missing_or_truncated_rank_is_unreadable(sharded: Path, read: Read) -> None:
    rank = sharded.with_name("__1_0.distcp")
    data = rank.read_bytes()
    rank.write_bytes(data[:-1])
    with pytest.raises(UnreadableError, match=f"has {len(data) - 1:,} bytes, and .* says it has {len(data):,}"):
        read(sharded)
    rank.unlink()
    with pytest.raises(UnreadableError, match="does not exist"):
        read(sharded)


def test_the_files_that_belong_to_the_metadata_are_known_without_opening_them(sharded: Path) -> None:
    for path in sharded.parent.glob("*.distcp"):
        path.unlink()
    with FileSource(sharded) as source:
        assert distributed.shard_names(source) == {"__0_0.distcp", "__1_0.distcp"}


def change(path: Path, edit: Callable[[Any], None]) -> Path:
    metadata = metadata_of(path)
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return path


def drop_chunk(metadata: Any) -> None:
    del metadata.state_dict_metadata["model.bn.running_var"].chunks[1]


def repeat_chunk(metadata: Any) -> None:
    chunks = metadata.state_dict_metadata["model.bn.running_var"].chunks
    chunks.append(chunks[0])


def move_chunk(metadata: Any) -> None:
    metadata.state_dict_metadata["model.bn.running_var"].chunks[1].offsets = torch.Size([6])


def forget_place(metadata: Any) -> None:
    for index in [index for index in metadata.storage_data if index.fqn == "model.bn.running_var"]:
        del metadata.storage_data[index]


def swap_places(metadata: Any) -> None:
    places = {index.fqn: place for index, place in metadata.storage_data.items()}
    for index in metadata.storage_data:
        if index.fqn == "model.bn.running_var":
            metadata.storage_data[index] = places["model.one.running_var"]


def lead_outside(metadata: Any) -> None:
    for place in metadata.storage_data.values():
        place.relative_path = "../" + place.relative_path


def nest_in_a_tensor(metadata: Any) -> None:
    metadata.planner_data["model.bn.running_var"] = ("model", "bn.running_mean", "inside")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_chunk, "misses chunks"),
        (repeat_chunk, "overlap"),
        (move_chunk, "outside itself"),
        (forget_place, "place is not given"),
        (swap_places, "does not hold the chunk"),
        (lead_outside, "outside its folder"),
        (nest_in_a_tensor, "inside another one"),
    ],
)
def test_metadata_that_contradict_the_files_are_unreadable(
    sharded: Path, read: Read, edit: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(UnreadableError, match=message):
        read(change(sharded, edit))


def test_another_storage_is_refused(sharded: Path, read: Read) -> None:
    def without_storage(metadata: Any) -> None:
        metadata.storage_data = None

    def compressed(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.transform_descriptors = ["stream.zstd"]

    with pytest.raises(UnsupportedError, match="compressed"):
        read(change(sharded, compressed))
    with pytest.raises(UnsupportedError, match="does not say in which files"):
        read(change(sharded, without_storage))


@pytest.mark.parametrize("kept", [10, 60, 0.3, 0.99])
def test_truncated_metadata_are_unreadable(sharded: Path, read: Read, kept: float) -> None:
    data = sharded.read_bytes()
    sharded.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    if kept == 10:
        with pytest.raises(UnsupportedError, match="did not write"):
            read(sharded)
    else:
        with pytest.raises(UnreadableError):
            read(sharded)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('pathlib').Path('harm').touch()",)


def test_what_objects_beside_the_tensors_refer_to_is_reported(tmp_path: Path, read: Read) -> None:
    path = save({"model": network().state_dict(), "extra": Harmful()}, tmp_path / "step")
    found = {(reference.path, reference.use) for reference in read(path).globals}
    assert ("__builtin__.eval", "called") in found
    assert ("torch.distributed.checkpoint.metadata.Metadata", "instantiated") in found
    assert not Path("harm").exists()


def test_only_the_batchnorm_tensors_are_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(1024, 1024))
    path = save(model.state_dict(), tmp_path / "step")
    with FileSource(path) as source:
        checkpoint = distributed.read(source)
        shard = source.sibling("__0_0.distcp")
        assert shard.size > 4_000_000
        assert shard.bytes_read < 100_000
        weight = checkpoint.groups[0].tensors["1.weight"]
        assert (weight.dtype, weight.shape) == ("float32", (8,))
        assert weight.read is not None
        assert np.array_equal(weight.read(), np.ones(8, dtype=np.float32))


def test_a_half_precision_tensor_and_an_empty_one_are_read(tmp_path: Path) -> None:
    held = {"bn.running_mean": torch.ones(3, dtype=torch.bfloat16), "bn.running_var": torch.ones(0)}
    with FileSource(save(held, tmp_path / "step")) as source:
        [layer] = distributed.read(source).layers
    assert layer.dtype == "bfloat16"
    assert layer.running_mean is not None
    assert layer.running_mean.tolist() == [1.0, 1.0, 1.0]
    assert layer.running_var is not None
    assert layer.running_var.size == 0


def test_a_convolution_is_read_where_the_model_has_one_of_its_size(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(512, 256, 3), nn.BatchNorm2d(256))
    with FileSource(save(network.state_dict(), tmp_path / "saved")) as source:
        [group] = read_checkpoint(source).groups
        tensor = group.tensors["0.weight"]
        assert tensor.read is not None
        with pytest.raises(UnreadableError, match="more elements"):
            tensor.read()
        with tensors_up_to(tensor.size):
            assert np.array_equal(tensor.read(), network[0].weight.detach().numpy())
