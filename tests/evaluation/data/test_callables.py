"""What `--data` names is opened as what it is; a callable of the user's is run with care."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bncheck.errors import BncheckError, ModelError, UsageError
from bncheck.evaluation.data.batches import Inputs, input_hash
from bncheck.evaluation.data.opening import open_data
from bncheck.options.data import DataOptions

HEADER = "import random, sys, torch, numpy as np\nfrom torch.utils.data import DataLoader, TensorDataset\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module and gives the spec of its function `batches`."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write_module(source: str) -> str:
        (tmp_path / "user_batches.py").write_text(HEADER + source)
        return "user_batches.py:batches"

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]


def described(inputs: Inputs) -> object:
    if isinstance(inputs, torch.Tensor):
        return tuple(inputs.shape)
    if isinstance(inputs, dict):
        return {key: tuple(tensor.shape) for key, tensor in inputs.items()}
    return [tuple(tensor.shape) for tensor in inputs]


# -- what a callable yields


YIELDS: dict[str, tuple[str, tuple[str, ...], object, list[int] | None]] = {
    "a tensor": ("torch.ones(2, 3)", (), (2, 3), None),
    "an array": ("np.ones((2, 3))", (), (2, 3), None),
    "inputs and labels": ("(torch.ones(2, 3), torch.tensor([4, 5]))", (), (2, 3), [4, 5]),
    "a list, as a DataLoader yields it": ("[torch.ones(2, 3), torch.tensor([4, 5])]", (), (2, 3), [4, 5]),
    "inputs alone in a list": ("[torch.ones(2, 3)]", (), (2, 3), None),
    "labels in a list": ("(torch.ones(2, 3), [4, 5])", (), (2, 3), [4, 5]),
    "labels that are no numbers": ("(torch.ones(2, 3), [{'boxes': 1}, {'boxes': 2}])", (), (2, 3), None),
    "several inputs": ("((torch.ones(2, 3), torch.ones(2)), [4, 5])", (), [(2, 3), (2,)], [4, 5]),
    "a dict": (
        "{'a': torch.ones(2, 3), 'b': torch.ones(2), 'labels': torch.tensor([4, 5]), 'name': ['x', 'y']}",
        (),
        {"a": (2, 3), "b": (2,)},
        [4, 5],
    ),
    "one key of a dict": ("{'a': torch.ones(2, 3), 'b': torch.ones(2), 'y': [4, 5]}", ("a",), (2, 3), [4, 5]),
    "two keys of a dict": (
        "{'a': torch.ones(2, 3), 'b': torch.ones(2), 'c': 3}",
        ("b", "a"),
        {"b": (2,), "a": (2, 3)},
        None,
    ),
    "a dict and labels": ("({'a': torch.ones(2, 3)}, [4, 5])", (), {"a": (2, 3)}, [4, 5]),
}


@pytest.mark.parametrize("name", YIELDS)
def test_a_callable_may_yield(write: Callable[[str], str], name: str) -> None:
    expression, keys, inputs, labels = YIELDS[name]
    spec = write(f"def batches():\n    return [{expression}] * 3")
    found = list(open_data(spec, DataOptions(input_key=keys)))
    assert [batch.size for batch in found] == [2, 2, 2]
    assert described(found[0].inputs) == inputs
    assert (None if found[0].labels is None else found[0].labels.tolist()) == labels


def test_an_evaluation_gets_what_was_yielded(write: Callable[[str], str]) -> None:
    spec = write("def batches():\n    yield torch.ones(2, 3), [{'boxes': 1}, {'boxes': 2}]")
    [batch] = open_data(spec, DataOptions())
    assert batch.item[1] == [{"boxes": 1}, {"boxes": 2}]
    [short] = open_data(spec, DataOptions(limit=1))
    assert short.item.tolist() == [[1, 1, 1]]


REFUSED: dict[str, tuple[str, str]] = {
    "text": ("['text']", "yields a str that is no batch"),
    "numbers": ("[3]", "yields a int that is no batch"),
    "three things": ("[(torch.ones(2), torch.ones(2), torch.ones(2))]", "yields a tuple of 3 that is no batch"),
    "a number in a tensor": ("[torch.tensor(3)]", "yields a Tensor that is no batch"),
    "an empty dict": ("[{}]", "yields a dict that is no batch"),
    "nothing": ("[]", "yields nothing"),
    "a tensor instead of batches": ("torch.ones(2, 3)", "gives a Tensor, not an iterable of batches"),
    "a tuple instead of batches": ("(torch.ones(2, 3), [1, 2])", "gives a tuple, not an iterable of batches"),
    "None": ("None", "gives a NoneType, not an iterable of batches"),
    "a data set": ("TensorDataset(torch.ones(2, 3))", "gives a Dataset, which yields single samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_callable_may_not_yield(write: Callable[[str], str], name: str) -> None:
    expression, message = REFUSED[name]
    spec = write(f"def batches():\n    return {expression}")
    with pytest.raises(UsageError) as raised:
        list(open_data(spec, DataOptions()))
    assert raised.value.message == f"--data user_batches.py:batches {message}"
    assert raised.value.hint


def test_a_key_that_is_not_yielded(write: Callable[[str], str]) -> None:
    spec = write("def batches():\n    yield {'a': torch.ones(2), 'b': torch.ones(2)}")
    with pytest.raises(UsageError, match="--input-key x is not in what") as raised:
        list(open_data(spec, DataOptions(input_key=("x",))))
    assert raised.value.hint == "It has a, b."
    spec = write("def batches():\n    yield torch.ones(2)")
    with pytest.raises(UsageError, match="yields no dict to take --input-key x from"):
        list(open_data(spec, DataOptions(input_key=("x",))))


# -- passes


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("def batches():\n    for i in range(3):\n        yield torch.full((2,), i)", id="generator"),
        pytest.param("def batches():\n    return iter([torch.full((2,), i) for i in range(3)])", id="iterator"),
        pytest.param("batches = [torch.full((2,), i) for i in range(3)]", id="a list that is there"),
        pytest.param(
            "class batches:\n    def __getitem__(self, i):\n        return [0, 1, 2][i] + torch.zeros(2)", id="class"
        ),
        pytest.param(
            "def batches():\n    return DataLoader(TensorDataset(torch.arange(3).repeat_interleave(2)), batch_size=2)",
            id="DataLoader",
        ),
    ],
)
def test_each_pass_starts_anew(write: Callable[[str], str], source: str) -> None:
    data = open_data(write(source), DataOptions())
    next(iter(data))
    assert data.samples is None
    for _ in range(2):
        assert [batch.inputs.tolist() for batch in data] == [[0, 0], [1, 1], [2, 2]]  # type: ignore[union-attr]
    assert data.samples == 6


def test_an_iterator_that_is_there_can_be_read_once(write: Callable[[str], str]) -> None:
    data = open_data(write("batches = iter([torch.ones(2)])"), DataOptions())
    list(data)
    with pytest.raises(UsageError, match="can be read only once"):
        list(data)


def test_a_loader_is_made_once(write: Callable[[str], str]) -> None:
    spec = write("made = []\ndef batches():\n    made.append(1)\n    return [torch.tensor([len(made)])]")
    data = open_data(spec, DataOptions())
    assert [batch.inputs.tolist() for _ in range(3) for batch in data] == [[1], [1], [1]]  # type: ignore[union-attr]


def test_the_limit_cuts_the_last_batch(write: Callable[[str], str]) -> None:
    source = "def batches():\n    while True:\n        yield (torch.ones(4, 2), torch.ones(4)), torch.arange(4)"
    found = list(open_data(write(source), DataOptions(limit=6)))
    assert [batch.size for batch in found] == [4, 2]
    assert described(found[1].inputs) == [(2, 2), (2,)]
    assert found[1].labels is not None
    assert found[1].labels.tolist() == [0, 1]


# -- care


def test_random_numbers_of_the_user_are_their_own(write: Callable[[str], str]) -> None:
    """A shuffle differs between two passes as it does with them; the numbers of the process do not move."""
    spec = write(
        "def batches():\n"
        "    for x in DataLoader(torch.randn(8, 2) + random.random() + np.random.rand(), batch_size=4, shuffle=True):\n"
        "        yield x"
    )
    before = (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))
    data = open_data(spec, DataOptions())
    first, second = ([input_hash(batch) for batch in data] for _ in range(2))
    assert first != second
    assert before == (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))


def test_a_seed_of_the_user_stays_theirs(write: Callable[[str], str]) -> None:
    spec = write("def batches():\n    torch.manual_seed(3)\n    while True:\n        yield torch.rand(2)")
    before = torch.get_rng_state()
    for _ in zip(range(2), open_data(spec, DataOptions()), strict=False):
        torch.rand(5)  # the model draws in between, and does not disturb them
    expected = torch.Generator().manual_seed(3)
    torch.set_rng_state(before)
    found = [batch.inputs for batch in open_data(spec, DataOptions(limit=4))]
    assert torch.equal(torch.rand(4, generator=expected), torch.cat(found))  # type: ignore[arg-type]


def test_what_the_user_prints_goes_to_stderr(write: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    spec = write("print('loading')\ndef batches():\n    print('starting')\n    yield torch.ones(2)\n    print('done')")
    list(open_data(spec, DataOptions()))
    assert capsys.readouterr() == ("", "loading\nstarting\ndone\n")


def test_the_users_modules_are_importable_late(write: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "late_module.py").write_text("VALUE = 7")
    (tmp_path / "here_module.py").write_text("VALUE = 8")
    spec = write(
        "def batches():\n    from late_module import VALUE as a\n    from here_module import VALUE as b\n"
        "    yield torch.tensor([a, b])"
    )
    before = list(sys.path)
    [batch] = open_data(spec, DataOptions(), python_path=[tmp_path / "elsewhere"])
    assert batch.inputs.tolist() == [7, 8]  # type: ignore[union-attr]
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        pytest.param("batches = 1 / 0", ModelError, "ZeroDivisionError", id="while it loads"),
        pytest.param("def batches(size):\n    pass", ModelError, "TypeError", id="an argument too many"),
        pytest.param("def batches():\n    yield 1 / 0", ModelError, "ZeroDivisionError", id="in the first batch"),
        pytest.param("def batches():\n    sys.exit(0)", ModelError, "SystemExit", id="an exit"),
        pytest.param("def loader():\n    pass", ModelError, "no attribute 'batches'", id="another name"),
    ],
)
def test_the_users_errors_become_ours(
    write: Callable[[str], str], source: str, kind: type[BncheckError], message: str
) -> None:
    with pytest.raises(kind, match=message) as raised:
        list(open_data(write(source), DataOptions()))
    assert raised.value.message.startswith("--data user_batches.py:batches ")


def test_an_interrupt_passes(write: Callable[[str], str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(open_data(write("def batches():\n    raise KeyboardInterrupt"), DataOptions()))


def test_options_for_images_are_refused(write: Callable[[str], str]) -> None:
    with pytest.raises(UsageError, match="--size is not for a callable"):
        open_data(write("batches = []"), DataOptions(size=(2, 2)))


@pytest.mark.parametrize("stop", [ValueError, None], ids=["raises", "stops"])
def test_the_users_generator_ends_when_the_consumer_does(
    write: Callable[[str], str], capsys: pytest.CaptureFixture[str], stop: type[Exception] | None
) -> None:
    endless = "        while True:\n            yield torch.ones(2)\n"
    spec = write(f"def batches():\n    try:\n{endless}    finally:\n        print('bye')")
    data = open_data(spec, DataOptions())

    def consume() -> None:
        for _batch in data:
            if stop:
                raise stop
            return

    with pytest.raises(stop) if stop else contextlib.nullcontext():
        consume()
    assert capsys.readouterr() == ("", "bye\n")
