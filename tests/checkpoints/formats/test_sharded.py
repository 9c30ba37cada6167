"""Checkpoints in shards with an index, as Hugging Face lays them out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bncheck.checkpoints.search import find_checkpoints
from bncheck.errors import UnreadableError
from bncheck.subjects.checkpoint import Checkpoint

Read = Callable[[Path], Checkpoint]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    made(torch.randn(2, 3, 9, 9))
    return made


def write_shards(folder: Path, made: nn.Module | None = None, suffix: str = "safetensors") -> Path:
    """Two shards and their index, as Hugging Face lays them out; "bin" is what torch.save writes."""
    state = (made or network()).state_dict()
    names = [f"model-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    shards: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for index, (key, value) in enumerate(state.items()):
        shards[names[index % 2]][key] = value  # the buffers of one layer lie in both
    for name, held in shards.items():
        if suffix == "bin":
            torch.save(held, folder / name, _use_new_zipfile_serialization=name == names[0])
        else:
            save_file(held, folder / name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {key: name for name, held in shards.items() for key in held}}
    (folder / f"model.{suffix}.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    return folder / f"model.{suffix}.index.json"


def test_shards_are_put_together(tmp_path: Path, read: Read) -> None:
    checkpoint = read(write_shards(tmp_path))
    assert [(layer.name, layer.kind.value, layer.num_batches_tracked) for layer in checkpoint.layers] == [
        ("1", "BatchNorm2d", 1),
        ("3", "BatchNorm2d", 1),
    ]
    for layer in checkpoint.layers:
        module = network()[int(layer.name)]
        assert layer.running_var is not None
        np.testing.assert_array_equal(layer.running_var, module.running_var.numpy())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_shards_is_one_checkpoint(tmp_path: Path, suffix: str) -> None:
    index = write_shards(tmp_path, suffix=suffix)
    assert find_checkpoints(str(tmp_path)) == [index]


def test_a_missing_shard_is_named(tmp_path: Path, read: Read) -> None:
    index = write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnreadableError, match=r"model-00002-of-00002\.safetensors does not exist"):
        read(index)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_refused(tmp_path: Path, read: Read) -> None:
    index = write_shards(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UnreadableError, match="misses"):
        read(index)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "", "a\\b"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, read: Read, name: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"bn.running_mean": name}}))
    with pytest.raises(UnreadableError, match="outside its folder"):
        read(path)
