"""Files of arrays are read in batches, in their order, without scaling, and never run."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bncheck.errors import UnreadableError, UnsupportedError, UsageError
from bncheck.evaluation.data.batches import Batch, Data, input_hash
from bncheck.evaluation.data.opening import open_data
from bncheck.options.data import DataOptions

IMAGES = np.random.default_rng(0).normal(size=(10, 3, 4, 5)).astype(np.float32)
LABELS = np.arange(10)


def read(path: Path, **options: Any) -> Data:
    return open_data(str(path), DataOptions(**options))


def tensor_of(batch: Batch) -> torch.Tensor:
    assert isinstance(batch.inputs, torch.Tensor)
    return batch.inputs


def inputs_of(data: Data) -> torch.Tensor:
    return torch.cat([tensor_of(batch) for batch in data])


def labels_of(data: Data) -> torch.Tensor:
    return torch.cat([batch.labels for batch in data if batch.labels is not None])


def save_npz_stored(path: Path) -> None:
    np.savez(path, x=IMAGES, labels=LABELS)


def save_npz_packed(path: Path) -> None:
    np.savez_compressed(path, images=IMAGES, y=LABELS)


def save_npz_by_columns(path: Path) -> None:
    np.savez(path, x=np.asfortranarray(IMAGES), targets=LABELS)


def save_safetensors(path: Path) -> None:
    save_file({"x": torch.from_numpy(IMAGES), "labels": torch.from_numpy(LABELS)}, path)


def save_pair(path: Path) -> None:
    torch.save((torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), path)


def save_dict(path: Path) -> None:
    torch.save({"pixel_values": torch.from_numpy(IMAGES), "labels": torch.from_numpy(LABELS)}, path)


def save_legacy(path: Path) -> None:
    torch.save(
        {"x": torch.from_numpy(IMAGES), "y": torch.from_numpy(LABELS)}, path, _use_new_zipfile_serialization=False
    )


WRITERS = {
    "stored.npz": save_npz_stored,
    "packed.npz": save_npz_packed,
    "by columns.npz": save_npz_by_columns,
    "x.safetensors": save_safetensors,
    "pair.pt": save_pair,
    "dict.pt": save_dict,
    "legacy.PTH": save_legacy,
}


@pytest.mark.parametrize("name", WRITERS)
def test_inputs_and_labels_come_in_batches(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    data = read(tmp_path / name, batch_size=4)
    for _ in range(2):
        assert [batch.size for batch in data] == [4, 4, 2]
        assert torch.equal(torch.from_numpy(IMAGES), inputs_of(data))
        assert labels_of(data).tolist() == LABELS.tolist()
    assert data.samples == 10


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_bare_array_has_no_labels(tmp_path: Path, order: Any) -> None:
    np.save(tmp_path / "x.npy", np.array(IMAGES, order=order))
    data = read(tmp_path / "x.npy", batch_size=3)
    assert torch.equal(torch.from_numpy(IMAGES), inputs_of(data))
    assert all(batch.labels is None and tensor_of(batch).is_contiguous() for batch in data)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(sum),
    batch_size=st.integers(1, 7),
    limit=st.integers(1, 30),
)
def test_batches_run_on_from_file_to_file(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], batch_size: int, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    numbers = np.arange(sum(lengths), dtype=np.float32)
    for place, part in enumerate(np.split(numbers, np.cumsum(lengths)[:-1])):
        np.savez(folder / f"{place}.npz", x=part, y=part.astype(int))
    data = read(folder, batch_size=batch_size, limit=limit)
    expected = numbers[:limit]
    assert data.samples == len(expected)
    assert inputs_of(data).tolist() == expected.tolist()
    assert labels_of(data).tolist() == expected.tolist()
    full, rest = divmod(len(expected), batch_size)
    assert [batch.size for batch in data] == [batch_size] * full + [rest] * bool(rest)


# -- several inputs


def test_several_inputs_are_a_dict(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=IMAGES, b=LABELS, unused=LABELS[:3], labels=LABELS)
    data = read(tmp_path / "x.npz", input_key=("b", "a"), batch_size=4)
    batch = next(iter(data))
    assert isinstance(batch.inputs, dict)
    assert {key: tuple(tensor.shape) for key, tensor in batch.inputs.items()} == {"b": (4,), "a": (4, 3, 4, 5)}
    assert batch.labels is not None


def test_one_input_of_several_is_passed_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=IMAGES, b=LABELS)
    assert torch.equal(torch.from_numpy(IMAGES), inputs_of(read(tmp_path / "x.npz", input_key=("a",))))


def test_labels_that_are_named_as_input_are_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", labels=IMAGES)
    assert torch.equal(torch.from_numpy(IMAGES), inputs_of(read(tmp_path / "x.npz")))
    np.savez(tmp_path / "y.npz", labels=IMAGES, x=LABELS)
    data = read(tmp_path / "y.npz", input_key=("labels",))
    assert torch.equal(torch.from_numpy(IMAGES), inputs_of(data))
    assert [batch.labels for batch in data] == [None]


# -- types


@pytest.mark.parametrize(
    ("stored", "given_", "value"),
    [
        pytest.param(np.float64, torch.float32, 2.5, id="float64"),
        pytest.param(np.float16, torch.float32, 2.5, id="float16"),
        pytest.param(">f4", torch.float32, 2.5, id="big endian"),
        pytest.param(np.uint8, torch.float32, 200, id="uint8"),
        pytest.param(np.int16, torch.float32, -200, id="int16"),
        pytest.param(np.uint16, torch.float32, 60_000, id="uint16"),
        pytest.param(np.uint32, torch.int64, 2**32 - 1, id="uint32"),
        pytest.param(np.int32, torch.int32, 7, id="int32"),
        pytest.param(np.int64, torch.int64, 7, id="int64"),
        pytest.param(np.bool_, torch.bool, True, id="bool"),
        pytest.param(np.complex64, torch.complex64, 1j, id="complex64"),
    ],
)
def test_types_are_what_a_network_takes(tmp_path: Path, stored: Any, given_: torch.dtype, value: Any) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 3), value, dtype=stored))
    data = read(tmp_path / "x.npy")
    inputs = inputs_of(data)
    assert inputs.dtype == given_
    assert inputs.tolist() == [[value] * 3] * 2
    assert data.description["inputs"]["(the only array)"] == {
        "sample_shape": [3],
        "stored": np.dtype(stored).name,
        "given": str(given_).removeprefix("torch."),
        "scaled": False,
    }


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    assert inputs_of(read(tmp_path / "x.safetensors")).dtype == torch.float32


def test_batches_are_the_consumers_own(tmp_path: Path) -> None:
    """A model that works in place changes neither the file nor the next pass."""
    for name in ("x.npy", "pair.pt", "x.safetensors"):
        WRITERS.get(name, lambda path: np.save(path, IMAGES))(tmp_path / name)
        data = read(tmp_path / name)
        for batch in data:
            tensor_of(batch).zero_()
        assert torch.equal(torch.from_numpy(IMAGES), inputs_of(data))


def test_samples_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[2, 0, 0, 0] = np.nan
    images[7, 1, 1, 1] = np.inf
    images[8] = 3e38  # the sum overflows, the numbers are finite
    np.save(tmp_path / "x.npy", images)
    data = read(tmp_path / "x.npy", batch_size=3)
    next(iter(data))
    assert data.non_finite == 1
    list(data)
    list(data)
    assert data.non_finite == 2


# -- what goes wrong


def test_a_missing_key_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=IMAGES, b=LABELS)
    with pytest.raises(UsageError) as raised:
        read(tmp_path / "x.npz", input_key=("images",))
    assert raised.value.message == "--input-key images is not in 'x.npz'"
    assert raised.value.hint == "It holds a, b."


def test_the_input_is_not_guessed(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=IMAGES, b=IMAGES, y=LABELS)
    with pytest.raises(UsageError, match=r"'x\.npz' holds several arrays: a, b") as raised:
        read(tmp_path / "x.npz")
    assert "--input-key" in raised.value.hint


def test_samples_of_two_shapes_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    with pytest.raises(UsageError) as raised:
        read(tmp_path)
    assert raised.value.message == ("samples of different shapes: 'images.npy' has (3, 4, 5), 'labels.npy' has ()")
    assert "belong into one .npz" in raised.value.hint


def test_files_with_different_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", x=IMAGES)
    np.savez(tmp_path / "2.npz", x=IMAGES, y=LABELS)
    with pytest.raises(UsageError, match=r"'1\.npz' and '2\.npz' hold arrays of different names"):
        read(tmp_path)


def test_labels_must_be_as_many_as_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=IMAGES, y=LABELS[:3])
    with pytest.raises(UsageError, match="unequal numbers of samples: 10 of x, 3 of y"):
        read(tmp_path / "x.npz")


def test_options_for_images_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    with pytest.raises(UsageError, match="--mean is not for arrays"):
        read(tmp_path / "x.npy", mean=(0.5,))
    with pytest.raises(UsageError, match="--mean is not for arrays"):
        read(tmp_path / "x.npy", mean=0.0)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(["a"], id="a list of one text"),
        pytest.param({"state": {"x": torch.ones(2)}}, id="a dict in a dict"),
        pytest.param({"x": torch.ones(2), "epoch": 3}, id="a dict with a number"),
        pytest.param({}, id="nothing"),
        pytest.param(torch.tensor(3.0), id="a single number"),
    ],
)
def test_other_contents_are_not_supported(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(UnsupportedError, match=r"'x\.pt'"):
        read(tmp_path / "x.pt")


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    folder = tmp_path / "data"
    folder.mkdir()
    torch.save(Trap(sprung), folder / "x.pt")
    np.save(folder / "x.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    np.savez(folder / "x.npz", allow_pickle=True, x=np.array([Trap(sprung)], dtype=object))
    for path in folder.iterdir():
        with pytest.raises((UnsupportedError, UnreadableError)):
            list(read(path))
    assert not sprung.exists()


def test_text_is_no_number(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(["a", "bc"]))
    with pytest.raises(UnreadableError, match="it holds <U2, which are no numbers"):
        read(tmp_path / "x.npy")


def test_a_damaged_file_can_be_skipped(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", IMAGES)
    (tmp_path / "2.npy").write_bytes((tmp_path / "1.npy").read_bytes()[:500])
    np.save(tmp_path / "3.npy", IMAGES)
    with pytest.raises(UnreadableError, match=r"'2\.npy' cannot be read"):
        read(tmp_path)
    data = read(tmp_path, skip_unreadable=True)
    assert data.skipped == ["2.npy"]
    assert inputs_of(data).shape[0] == data.samples == 20


def test_an_array_that_is_shorter_than_it_says(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-4])
    with pytest.raises(UnreadableError, match=r"'x\.npz' cannot be read: x\.npy ends early"):
        list(read(tmp_path / "x.npz"))


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES[:0])
    with pytest.raises(UnreadableError, match="no samples in"):
        read(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.npy", *WRITERS])
def test_damage_of_any_kind_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    """Flipped bytes and truncation: numbers may change, but nothing escapes and nothing hangs."""
    path = tmp_path / name
    WRITERS.get(name, lambda path: np.save(path, IMAGES))(path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(256)
        # The headers are at both ends.
        damaged[random.integers(0, min(400, len(whole)))] ^= 0xFF
        damaged[-random.integers(1, min(400, len(whole)))] ^= 0xFF
        path.write_bytes(damaged[: random.integers(1, len(whole))] if random.random() < 0.3 else damaged)
        with contextlib.suppress(UnreadableError, UnsupportedError, UsageError):
            list(read(path))


# -- cost


@pytest.mark.parametrize("name", ["x.npy", "packed.npz", "stored.npz"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    images = np.zeros((2000, 3, 32, 32), np.float32)  # 24 MB
    path = tmp_path / name
    {"x.npy": np.save, "packed.npz": np.savez_compressed, "stored.npz": np.savez}[name](path, images)
    data = read(path, batch_size=8)
    sum(batch.size for batch in read(path, batch_size=8, limit=16))
    tracemalloc.start()
    assert sum(batch.size for batch in data) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 8 * 3 * 32 * 32 * 4


def test_each_pass_has_the_same_batches(tmp_path: Path) -> None:
    save_npz_packed(tmp_path / "x.npz")
    data = read(tmp_path / "x.npz", batch_size=3)
    assert [input_hash(batch) for batch in data] == [input_hash(batch) for batch in data]


def test_the_description_fits_into_a_report(tmp_path: Path) -> None:
    torch.save(OrderedDict(x=torch.ones(2, 3, dtype=torch.uint8), y=torch.ones(2)), tmp_path / "x.pt")
    data = read(tmp_path / "x.pt")
    expected = {
        "kind": "arrays",
        "path": str(tmp_path),
        "files": 1,
        "inputs": {"x": {"sample_shape": [3], "stored": "uint8", "given": "float32", "scaled": False}},
        "labels": "y",
    }
    assert json.loads(json.dumps(data.description)) == expected
