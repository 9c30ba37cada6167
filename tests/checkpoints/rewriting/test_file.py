"""The new file or folder: whole or not at all, and never over what it was made from."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bncheck.checkpoints.rewriting.file import write_checkpoint
from bncheck.checkpoints.rewriting.plan import plan_rewrite
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UsageError
from tests.checkpoints.rewriting.networks import FORMATS, NEW, changed_bytes, load, network, rewrite


@pytest.fixture(params=["safetensors", "zip"])
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The index of a checkpoint in two shards."""
    state = network().state_dict()
    folder = tmp_path / "model"
    folder.mkdir()
    keys = sorted(state)
    shards = {"part-1.bin": keys[::2], "part-2.bin": keys[1::2]}
    for shard, held in shards.items():
        FORMATS[request.param]({key: state[key].clone() for key in held}, folder / shard)
    weight_map = {key: shard for shard, held in shards.items() for key in held}
    index = folder / "model.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_are_copied_into_a_new_folder(sharded: Path, tmp_path: Path) -> None:
    index = rewrite(sharded, tmp_path / "new")
    assert tmp_path / "new" / "model.index.json" == index
    assert sorted(os.listdir(sharded.parent)) == sorted(os.listdir(tmp_path / "new"))
    assert sharded.read_bytes() == index.read_bytes()
    before = load(sharded.parent / "part-1.bin") | load(sharded.parent / "part-2.bin")
    after = load(tmp_path / "new" / "part-1.bin") | load(tmp_path / "new" / "part-2.bin")
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(after["1.running_mean"])
    assert torch.tensor(NEW.variance, dtype=torch.float32).equal(after["1.running_var"])
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith("1.") or "ght" in key)
    for shard in ("part-1.bin", "part-2.bin"):
        assert 0 < changed_bytes(sharded.parent / shard, tmp_path / "new" / shard) < 60


def test_a_folder_is_replaced_only_if_nothing_is_lost(sharded: Path, tmp_path: Path) -> None:
    rewrite(sharded, tmp_path / "new")
    with pytest.raises(UsageError, match="exists"):
        rewrite(sharded, tmp_path / "new")
    rewrite(sharded, tmp_path / "new", force=True)
    (tmp_path / "new" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds config\.json, which would be lost"):
        rewrite(sharded, tmp_path / "new", force=True)
    with pytest.raises(UsageError):
        rewrite(sharded, sharded.parent, force=True)
    assert sorted(os.listdir(tmp_path)) == ["model", "new"]


def test_an_existing_target_is_replaced_only_by_force(tmp_path: Path) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(network().state_dict(), path)
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        rewrite(path, target)
    assert target.read_text() == "mine"
    rewrite(path, target, force=True)
    assert int(load(target)["1.num_batches_tracked"]) == 40


@pytest.mark.parametrize("link", [None, os.link, os.symlink], ids=["itself", "hard link", "symbolic link"])
def test_the_input_is_never_the_target(link: Callable[[Path, Path], None] | None, tmp_path: Path) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(network().state_dict(), path)
    if link is None:
        target = path
    else:
        link(path, target)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is or holds the input"):
        rewrite(path, target, force=True)
    assert before == path.read_bytes()


def test_a_target_without_a_folder_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="is no folder"):
        rewrite(tmp_path / "a.pt", tmp_path / "absent" / "b.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        rewrite(tmp_path / "a.pt", tmp_path / "folder", force=True)


def test_the_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").chmod(0o400)
    before = os.umask(0o027)
    try:
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "b.pt").stat().st_mode) == 0o640


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_a_full_disk_leaves_nothing_behind(existing: bool, tmp_path: Path) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(network().state_dict(), path)
    if existing:
        target.write_text("mine")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, hard))  # no file may grow larger
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            rewrite(path, target, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ["a.pt", "b.pt"][: 1 + existing] == sorted(os.listdir(tmp_path))
    if existing:
        assert target.read_text() == "mine"


class Interrupted(FileSource):
    """A file at whose end somebody presses Ctrl-C."""

    interrupting = False

    def read(self, offset: int, length: int) -> bytes:
        if self.interrupting and offset == 0:
            raise KeyboardInterrupt
        return super().read(offset, length)


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with Interrupted(tmp_path / "a.pt") as source:
        plan = plan_rewrite(source, "", {"1": NEW})
        source.interrupting = True
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(plan, tmp_path / "b.pt", [tmp_path / "a.pt"], force=False)
    assert os.listdir(tmp_path) == ["a.pt"]
