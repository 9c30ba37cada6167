"""The interpreter of pickles: what comes out, and what never happens."""

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bncheck.checkpoints.contents.torch_objects import CONSTRUCTORS, storage_of
from bncheck.checkpoints.encodings.pickles import (
    MAX_OPCODES,
    Dictionary,
    Global,
    Interpreter,
    Object,
    Unhashable,
    read_pickle,
)
from bncheck.errors import UnreadableError


def interpret(data: bytes) -> Any:
    return read_pickle(data, "file", CONSTRUCTORS, storage_of).value


def uses(value: object, protocol: int = 2) -> set[tuple[str, str]]:
    pickled = pickle.dumps(value, protocol)
    return {(found.path, found.use) for found in read_pickle(pickled, "file", CONSTRUCTORS, storage_of).globals}


# Tuples and large numbers are keys in no checkpoint, and are kept without being hashed.
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers(-(2**60) + 1, 2**60 - 1) | st.booleans() | st.none()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | st.tuples(),
    max_leaves=20,
)


@given(VALUES, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back_as_they_were(value: object, protocol: int) -> None:
    assert interpret(pickle.dumps(value, protocol)) == value


@given(VALUES, st.sampled_from([0, 1]))
def test_the_text_protocols_are_read_as_well(value: object, protocol: int) -> None:
    assert interpret(pickle.dumps(value, protocol)) == value


def test_the_order_of_an_ordered_dict_is_kept() -> None:
    made = interpret(pickle.dumps(collections.OrderedDict([("b", 1), ("a", 2)])))
    assert list(made.items()) == [("b", 1), ("a", 2)]


def test_what_python_2_wrote_is_read() -> None:
    """A Python 2 pickle of OrderedDict([("weight", 1)]): the pairs are an argument, texts are bytes."""
    data = b"\x80\x02ccollections\nOrderedDict\n]](U\x06weightK\x01ea\x85R."
    assert dict(interpret(data)) == {"weight": 1}


def test_shared_and_cyclic_values_are_the_same_object() -> None:
    value: list[Any] = [{}]
    value.append(value)
    value.append(value[0])
    made = interpret(pickle.dumps(value, 2))
    assert made[1] is made
    assert made[2] is made[0]


class Marks:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_payload_is_reported_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    pickled = pickle.dumps(Marks(mark), protocol)
    read = read_pickle(pickled, "file", CONSTRUCTORS, storage_of)
    assert not mark.exists()
    assert {(found.path, found.use) for found in read.globals} == {(f"{os.mkdir.__module__}.mkdir", "called")}
    pickle.loads(pickled)
    assert mark.exists(), "the payload works: it is bncheck that did not run it"


class Point:
    """An object with state."""

    def __init__(self) -> None:
        self.x = 1

    class Inner:
        """A nested class."""

    def method(self) -> None:
        """A bound method is pickled through getattr."""


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_is_its_class_and_its_state(protocol: int) -> None:
    made = interpret(pickle.dumps(Point(), protocol))
    assert isinstance(made, Object)
    assert (made.class_path, made.state) == (f"{__name__}.Point", {"x": 1})
    assert uses(Point(), protocol) == {(f"{__name__}.Point", "instantiated")} | (
        {("copy_reg._reconstructor", "referenced"), ("__builtin__.object", "referenced")} if protocol < 2 else set()
    )


def test_a_nested_class_is_a_name_and_not_an_attribute_access() -> None:
    assert (f"{__name__}.Point.Inner", "instantiated") in uses(Point.Inner(), 2)
    assert not any("getattr" in path and use == "called" for path, use in uses([Point.Inner(), Point().method], 2))


def test_calling_what_the_file_computes_is_reported() -> None:
    """getattr(getattr(object, "a"), "b")() in a pickle: the names say nothing, the call does."""
    data = b"\x80\x02c__builtin__\ngetattr\nctests\nPoint\n)\x81X\x01\x00\x00\x00a\x86R)R."
    read = read_pickle(data, "file", CONSTRUCTORS, storage_of)
    assert ("", "a function that the file computes", "called") in {
        (found.module, found.name, found.use) for found in read.globals
    }


def test_a_deep_key_is_kept_without_hashing_it() -> None:
    data = b"\x80\x02}" + b")" + b"\x85" * 900_000 + b"K\x01s."
    [key] = interpret(data)
    assert isinstance(key, Unhashable)


def test_a_huge_memo_index_costs_nothing() -> None:
    assert interpret(b"\x80\x02Nr\xff\xff\xff\xff.") is None


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "pickle exhausted"),
        (b"\x80\x02", "pickle exhausted"),
        (b"\x80\x02.", "ends without a value"),
        (b"\x80\x02N", "pickle exhausted"),
        (b"\xff", "opcode"),
        (b"h\x05.", "was never written"),
        (b"\x85.", "finds the stack empty"),
        (b"K\x01u.", "a mark is missing"),
        (b"K\x01K\x02K\x03s.", "items are set on a int"),
        (b"(K\x01d.", "a key without a value"),
        (b"K\x01K\x02a.", "elements are appended to a int"),
        (b"K\x01K\x01\x93.", "a global is not named by text"),
        (b"cos\nsystem\nK\x01R.", "no argument tuple"),
        (b"\x8d\xff\xff\xff\xff\x00\x00\x00\x00abc.", "expected"),
        (b"\x97.", "buffers outside"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "arguments that do not fit"),
        (b"ctorch\nSize\n(K\x01J\xff\xff\xff\xfft\x85R.", "impossible shape"),
        (b"K\x01Q.", "not that of a storage"),
        (b"N" * (MAX_OPCODES + 1), "opcodes"),
    ],
)
def test_a_damaged_pickle_is_refused_with_its_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(UnreadableError, match=complaint):
        interpret(data)


def test_a_list_that_is_handed_to_a_million_calls_is_refused() -> None:
    """65,536 elements, memoised, and the same few bytes again and again: each call would walk them all."""
    data = (
        b"\x80\x02]("
        + b"N" * 65_536
        + b"eq\x00"
        + b"ccollections\nOrderedDict\nq\x01"
        + b"h\x01h\x00\x85R" * 100
        + b"."
    )
    with pytest.raises(UnreadableError):
        interpret(data)


def test_state_of_a_dict_is_kept_beside_its_items() -> None:
    value = collections.OrderedDict(a=1)
    value._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    made = interpret(pickle.dumps(value))
    assert isinstance(made, Dictionary)
    assert (dict(made), made.attributes) == ({"a": 1}, {"_metadata": {"": {"version": 1}}})


def test_nothing_is_imported_for_a_name() -> None:
    interpreter = Interpreter({}, storage_of)
    made = interpreter.run(b"\x80\x02cno.such.module\nThing\n.").value
    assert isinstance(made, Global)
    assert made.path == "no.such.module.Thing"
