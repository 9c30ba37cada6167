"""New statistics are written into a copy of a checkpoint, and nothing else of it changes."""

from __future__ import annotations

import io
import json
import os
import resource
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bncheck.checkpoints.rewriting.file import write_checkpoint
from bncheck.checkpoints.rewriting.plan import NewStatistics, choose_group, plan_rewrite, read_writable
from bncheck.checkpoints.sources.local import FileSource
from bncheck.errors import UnreadableError, UnsupportedError, UsageError

CHANNELS = 3
NEW = NewStatistics(np.array([0.5, -1.25, 3.0]), np.array([0.25, 2.0, 7.5]), 40)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.BatchNorm2d(CHANNELS))
    made(torch.randn(8, 1, 6, 6))
    return made.to(dtype).eval()


def rewrite(path: Path, target: Path, new: NewStatistics = NEW, *, layer: str = "1", force: bool = False) -> Path:
    with FileSource(path) as source:
        group = choose_group(read_writable(source), None)
        plan = plan_rewrite(source, group.name, {layer: new})
        return write_checkpoint(plan, target, [path], force=force)


def changed_bytes(path: Path, target: Path) -> int:
    before, after = (np.frombuffer(file.read_bytes(), dtype=np.uint8) for file in (path, target))
    assert len(before) == len(after)
    return int((before != after).sum())


def save_zip(state: Any, path: Path) -> None:
    torch.save(state, path)


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: Any, path: Path) -> None:
    save_file(dict(state), path)


def load(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            return dict(load_file(path))
    held = torch.load(path, weights_only=False)
    state: dict[str, torch.Tensor] = held.state_dict() if isinstance(held, nn.Module) else held
    return state


FORMATS = {"zip": save_zip, "legacy": save_legacy, "safetensors": save_safetensors}


@pytest.mark.parametrize("whole", [False, True], ids=["state_dict", "module"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_buffers_of_one_layer_change_and_no_other_byte(name: str, whole: bool, tmp_path: Path) -> None:
    if whole and name == "safetensors":
        return
    path, target = tmp_path / "a", tmp_path / "b"
    FORMATS[name](network() if whole else network().state_dict(), path)
    assert target == rewrite(path, target)
    before, after = load(path), load(target)
    assert list(before) == list(after)
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(after["1.running_mean"])
    assert torch.tensor(NEW.variance, dtype=torch.float32).equal(after["1.running_var"])
    assert int(after["1.num_batches_tracked"]) == 40
    for key in before:
        if not key.startswith(("1.running", "1.num")):
            assert torch.equal(before[key], after[key]), key
    # The numbers, and of a zip archive two checksums of four bytes for each buffer.
    assert changed_bytes(path, target) <= 2 * CHANNELS * 4 + 8 + (3 * 2 * 4 if name == "zip" else 0)


def test_bytes_outside_of_buffers_and_checksums_are_equal(tmp_path: Path) -> None:
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(network(), path)
    rewrite(path, target)
    assert zipfile.ZipFile(target).testzip() is None
    before, after = path.read_bytes(), target.read_bytes()
    differ = {index for index, (one, other) in enumerate(zip(before, after, strict=True)) if one != other}
    allowed: set[int] = set()
    with zipfile.ZipFile(path) as archive:
        table = before.rindex(b"PK\x01\x02", 0, archive.start_dir + 4)
        for entry in archive.infolist():
            start = (
                entry.header_offset
                + 30
                + sum(
                    int.from_bytes(before[entry.header_offset + at : entry.header_offset + at + 2], "little")
                    for at in (26, 28)
                )
            )
            if "/data/" in entry.filename and entry.file_size <= CHANNELS * 4:
                allowed |= set(range(start, start + entry.file_size))
                allowed |= set(range(start + entry.file_size + 4, start + entry.file_size + 8))
    assert differ <= allowed | set(range(table, len(before)))
    assert sum(index >= table for index in differ) <= 3 * 4


def checksums_of(path: Path) -> dict[str, list[int]]:
    """Those that an archive keeps of each entry: in its table, and in the header of the entry or behind its bytes."""
    data = path.read_bytes()
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            at = entry.header_offset
            name, extra = (int.from_bytes(data[at + place : at + place + 2], "little") for place in (26, 28))
            end = at + 30 + name + extra + entry.compress_size
            local = int.from_bytes(data[at + 14 : at + 18], "little")
            behind = int.from_bytes(data[end + 4 : end + 8], "little")
            is_behind = data[end : end + 4] == b"PK\x07\x08"
            found[entry.filename] = [entry.CRC, *([behind] if is_behind else []), *([local] if local else [])]
    return found


def test_both_checksums_of_torch_are_right(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
    before, after = checksums_of(tmp_path / "a.pt"), checksums_of(tmp_path / "b.pt")
    assert {2} == {len(found) for found in after.values()}
    assert {1} == {len(set(found)) for found in after.values()}
    assert sum(before[name] != after[name] for name in before) == 3


@pytest.mark.parametrize("zip64", [False, True], ids=["small", "zip64"])
@pytest.mark.parametrize("streamed", [False, True], ids=["header", "descriptor"])
def test_checksums_are_right_wherever_an_archive_keeps_them(streamed: bool, zip64: bool, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "torch.pt")
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"

    class Stream(io.RawIOBase):
        """A file in which nothing can be corrected afterwards: sizes and checksums come behind."""

        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with (
        zipfile.ZipFile(tmp_path / "torch.pt") as source,
        zipfile.ZipFile(stream if streamed else path, "w") as made,
    ):
        for entry in source.infolist():
            with made.open(entry.filename, "w", force_zip64=zip64) as out:
                out.write(source.read(entry))
    if streamed:
        path.write_bytes(stream.data)
    rewrite(path, target)
    assert zipfile.ZipFile(target).testzip() is None
    checksums = checksums_of(target)
    assert any(len(found) == 2 for found in checksums.values())
    assert {name: found for name, found in checksums.items() if len(set(found)) > 1} == {}
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(load(target)["1.running_mean"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_the_dtype_stays(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path, target = tmp_path / "a", tmp_path / "b"
    FORMATS[name](network(dtype).state_dict(), path)
    values = NewStatistics(np.array([0.1, 1 / 3, 1e-3]), np.array([1.7, 2.3, 1e3 / 7]), 40)
    rewrite(path, target, values)
    after = load(target)
    assert dtype == after["1.running_mean"].dtype
    assert torch.tensor(values.mean).to(dtype).equal(after["1.running_mean"])
    assert torch.tensor(values.variance).to(dtype).equal(after["1.running_var"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16], ids=str)
def test_what_the_dtype_cannot_hold_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(network(dtype).state_dict(), tmp_path / "a.pt")
    huge = NewStatistics(np.zeros(CHANNELS), np.array([1.0, 1e39, 1.0]), None)
    with pytest.raises(UsageError, match=r"would become 1e\+39, more than"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", huge)
    with pytest.raises(UsageError, match="NaN or infinite"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", NewStatistics(np.full(CHANNELS, np.nan), None, None))
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_counter_that_does_not_fit_its_dtype_is_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    state["1.num_batches_tracked"] = torch.tensor(3, dtype=torch.int8)
    torch.save(state, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt", NewStatistics(None, None, 127))
    assert int(load(tmp_path / "b.pt")["1.num_batches_tracked"]) == 127
    with pytest.raises(UsageError, match="int8, which cannot hold"):
        rewrite(tmp_path / "a.pt", tmp_path / "c.pt", NewStatistics(None, None, 128))


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="has 3 numbers and should get 4"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", NewStatistics(np.zeros(4), None, None))


# -- views


def view_of(kind: str, values: torch.Tensor) -> torch.Tensor:
    """The values in a storage that is larger, in steps or from an offset."""
    if kind == "offset":
        held = torch.full((20,), 9.0)
        view = held[7 : 7 + CHANNELS]
    elif kind == "column":
        held = torch.full((CHANNELS, 5), 9.0)
        view = held[:, 2]
    else:  # in the far steps that readers read one by one
        held = torch.full((CHANNELS, 500), 9.0)
        view = held[:, 499]
    view.copy_(values)
    return view


@pytest.mark.parametrize("kind", ["offset", "column", "far column"])
@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_views_are_written_where_their_numbers_lie(name: str, kind: str, tmp_path: Path) -> None:
    state = network().state_dict()
    state["1.running_mean"] = view_of(kind, state["1.running_mean"])
    path, target = tmp_path / "a.pt", tmp_path / "b.pt"
    FORMATS[name](state, path)
    rewrite(path, target)
    after = load(target)
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(after["1.running_mean"])
    storage = torch.tensor([], dtype=torch.float32).set_(after["1.running_mean"].untyped_storage())
    assert storage.numel() - CHANNELS == int((storage == 9).sum())
    if name == "zip":
        assert zipfile.ZipFile(target).testzip() is None


def test_two_columns_of_one_matrix_do_not_share_bytes(tmp_path: Path) -> None:
    state = network().state_dict()
    matrix = torch.stack([state["1.running_mean"], state["1.running_var"], torch.ones(CHANNELS)], dim=1)
    state["1.running_mean"], state["1.running_var"], state["beside"] = matrix.unbind(1)
    torch.save(state, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
    after = load(tmp_path / "b.pt")
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(after["1.running_mean"])
    assert torch.tensor(NEW.variance, dtype=torch.float32).equal(after["1.running_var"])
    assert torch.ones(CHANNELS).equal(after["beside"])


# -- what is refused


def shared_with_another_tensor(state: dict[str, Any]) -> Any:
    state["copy"] = state["1.running_mean"]
    return state


def shared_with_a_matrix(state: dict[str, Any]) -> Any:
    matrix = torch.zeros(CHANNELS, 4)
    state["1.running_mean"] = matrix[:, 1]
    return {"model": state, "optimizer": {"state": [matrix]}}


def shared_by_two_groups(state: dict[str, Any]) -> Any:
    return {"model": state, "ema": OrderedDict(state)}


def shared_with_a_storage(state: dict[str, Any]) -> Any:
    storage = state["1.running_var"].untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    return {"model": state, "raw": (typed,)}


def one_number_for_all(state: dict[str, Any]) -> Any:
    state["1.running_mean"] = torch.zeros(1).expand(CHANNELS)
    return state


SHARED = {
    function.__name__: function
    for function in (
        shared_with_another_tensor,
        shared_with_a_matrix,
        shared_by_two_groups,
        shared_with_a_storage,
        one_number_for_all,
    )
}


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_bytes_that_are_shared_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    FORMATS[name](SHARED[kind](network().state_dict()), tmp_path / "a.pt")
    with FileSource(tmp_path / "a.pt") as source:
        group = read_writable(source).groups[0].name
        with pytest.raises(UnsupportedError, match=r"shares its bytes|one number for several"):
            plan_rewrite(source, group, {"1": NEW})


def test_a_layer_under_two_names_gets_the_same_numbers_or_none(tmp_path: Path) -> None:
    shared = nn.BatchNorm1d(CHANNELS)
    torch.save(nn.ModuleDict({"a": shared, "b": shared}).state_dict(), tmp_path / "a.pt")
    other = NewStatistics(NEW.mean, np.ones(CHANNELS), 40)
    with FileSource(tmp_path / "a.pt") as source:
        plan = plan_rewrite(source, "", {"a": NEW, "b": NEW})
        write_checkpoint(plan, tmp_path / "b.pt", [], force=False)
        for different in ({"a": NEW}, {"a": NEW, "b": other}):
            with pytest.raises(UnsupportedError, match="shares its bytes"):
                plan_rewrite(source, "", different)
    assert int(load(tmp_path / "b.pt")["b.num_batches_tracked"]) == 40


def test_a_layer_that_a_module_uses_twice_is_one_layer(tmp_path: Path) -> None:
    shared = nn.BatchNorm1d(CHANNELS)
    torch.save(nn.Sequential(shared, nn.ReLU(), shared), tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt", layer="0")
    assert torch.tensor(NEW.mean, dtype=torch.float32).equal(load(tmp_path / "b.pt")["2.running_mean"])


def test_a_compressed_entry_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "torch.pt")
    with (
        zipfile.ZipFile(tmp_path / "torch.pt") as source,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for entry in source.infolist():
            made.writestr(entry.filename, source.read(entry))
    with pytest.raises(UnsupportedError, match="compressed entry"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt")


def test_absent_buffers_and_layers_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.running_var"], state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UnsupportedError, match=r"no 1\.running_var, and nothing is added"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt")
    with pytest.raises(UsageError, match="no statistics for absent"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", layer="absent")


def test_a_missing_counter_is_left_out_and_named(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "a.pt")
    with FileSource(tmp_path / "a.pt") as source:
        assert plan_rewrite(source, "", {"1": NEW, "3": NEW}).without_counter == ("1",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(network()), tmp_path / "a.pt")
    with pytest.raises(UnsupportedError, match="TorchScript file, and statistics are not written"):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt")


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """An archive whose table of contents puts an entry into the bytes of another."""
    path = tmp_path / "a.pt"
    torch.save(network().state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        name = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/4"))
        table = archive.start_dir
    data = bytearray(path.read_bytes())
    other = data.index(b"/data/0", table) - len("a") - 46
    data[other + 42 : other + 46] = (name.header_offset + 40).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="lies over another part"):
        rewrite(path, tmp_path / "b.pt")
    assert os.listdir(tmp_path) == ["a.pt"]


# -- several files


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


# -- the target


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
