"""What the globals of torch mean in a pickle: storages, tensors, parameters, dictionaries.

Each function here stands in for a function of torch or the standard library that a checkpoint calls when it
is unpickled. They only arrange what they are given.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.checkpoints.encodings.pickles import Damaged, Dictionary, Global, Object, as_key
from bncheck.checkpoints.encodings.tensors import MAX_DIMENSIONS, is_count

if TYPE_CHECKING:
    from collections.abc import Callable

# class name of a typed storage -> dtype. torch.UntypedStorage holds bytes; its tensors name their dtype.
STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}

LONGEST_BYTES = 4096
ALIASES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}


@dataclass(frozen=True, slots=True)
class StorageRecord:
    """A storage that the pickle refers to by key. `numel` counts elements of `dtype`."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor of the pickle. `storage` is None where the file holds no numbers for it."""

    storage: StorageRecord | None
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


def storage_of(persistent_id: object) -> StorageRecord:
    """The storage of a persistent id `("storage", class, key, location, numel, ...)`; the location is no matter."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) < 5 or persistent_id[0] != "storage":
        raise Damaged("a persistent id is not that of a storage")
    _, cls, key, _location, numel = persistent_id[:5]
    name = cls.name.rpartition(".")[2] if isinstance(cls, Global) else ""
    if name not in STORAGE_DTYPES or not isinstance(key, str) or not is_count(numel):
        raise Damaged("a storage has an unknown class, key or size")
    return StorageRecord(STORAGE_DTYPES[name], key, numel)


def counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS or not all(map(is_count, values)):
        raise Damaged("a tensor has an impossible shape or stride")
    return tuple(values)


def dtype_name(dtype: object) -> str:
    if not isinstance(dtype, Global):
        raise Damaged("a tensor has no dtype")
    return ALIASES.get(dtype.name, dtype.name)


def strided(storage: object, offset: object, size: object, stride: object, dtype: str | None = None) -> TensorRecord:
    if not isinstance(storage, StorageRecord) or not is_count(offset) or not isinstance(offset, int):
        raise Damaged("a tensor has no storage")
    return TensorRecord(storage, dtype or storage.dtype, counts(size), counts(stride), offset)


def rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> TensorRecord:
    return strided(storage, offset, size, stride)


def rebuild_tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> TensorRecord:
    return strided(storage, offset, size, stride, dtype_name(dtype))


def rebuild_meta_tensor(dtype: object, size: object, *_: object) -> TensorRecord:
    return without_storage(dtype, size)


def without_storage(dtype: object, size: object) -> TensorRecord:
    shape = counts(size)
    return TensorRecord(None, dtype_name(dtype), shape, (0,) * len(shape), 0)


def rebuild_wrapper_subclass(_cls: object, dtype: object, size: object, *_: object) -> TensorRecord:
    return without_storage(dtype, size)


def rebuild_parameter(data: object, *_: object) -> object:
    return data


def rebuild_from_type(function: object, _cls: object, args: object, *_: object) -> object:
    """`torch._tensor._rebuild_from_type_v2(function, cls, args, state)`: a subclass of Tensor or Parameter."""
    constructor = CONSTRUCTORS.get((function.module, function.name)) if isinstance(function, Global) else None
    if constructor is None or constructor is rebuild_from_type or not isinstance(args, tuple):
        return Object(function, args if isinstance(args, tuple) else ())
    return constructor(*args)


def uninitialized(*_: object) -> TensorRecord:
    """A parameter or buffer of a lazy module before its first forward."""
    return TensorRecord(None, "uninitialized", (), (), 0)


def ordered_dict(pairs: object = (), *_: object) -> Dictionary:
    """`OrderedDict()`, or `OrderedDict([[key, value], ...])` as Python 2 wrote it."""
    made = Dictionary()
    if not isinstance(pairs, (list, tuple)):
        raise Damaged("an OrderedDict is made from something else than pairs")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Damaged("an OrderedDict is made from something else than pairs")
        made[as_key(pair[0])] = pair[1]
    return made


def default_dict(*_: object) -> Dictionary:
    return Dictionary()


def encode(text: object, _encoding: object = None) -> object:
    """`_codecs.encode(text, "latin1")` is how protocol 2 spells bytes.

    Long ones (an array of numpy, say) stay text: nobody asks for them, and a file can repeat them for free.
    """
    if not isinstance(text, str):
        raise Damaged("bytes are not made from text")
    return text.encode("latin1", "replace") if len(text) <= LONGEST_BYTES else text


def collect(values: object = ()) -> object:
    """`set([...])`, `frozenset`, `bytes` and their like: the values are all there is to know."""
    return list(values) if isinstance(values, tuple) else values


def no_bytes(values: object = b"") -> object:
    return values


# numpy's type codes of single numbers
NUMPY_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B", "b1": "?"}


def numpy_scalar(dtype: object, data: object = b"", *_: object) -> object:
    """`numpy.core.multiarray.scalar(dtype, bytes)`, a number; an inert object where it is another type."""
    code = dtype.args[0] if isinstance(dtype, Object) and dtype.args else None
    layout = NUMPY_SCALARS.get(code) if isinstance(code, str) else None
    if isinstance(data, str):  # protocol 2 of Python 2
        data = data.encode("latin1", "replace")
    if layout is None or not isinstance(data, bytes) or len(data) != struct.calcsize(layout):
        return Object(None, (dtype, data))
    state = dtype.state if isinstance(dtype, Object) else None
    big = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    number: object = struct.unpack(f"{'>' if big else '<'}{layout}", data)[0]
    return number


def size(values: object = ()) -> tuple[int, ...]:
    return counts(values)


CONSTRUCTORS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_qtensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): rebuild_tensor_v3,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): rebuild_meta_tensor,
    ("torch._utils", "_rebuild_wrapper_subclass"): rebuild_wrapper_subclass,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type"): rebuild_from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): rebuild_from_type,
    ("torch.nn.parameter", "UninitializedParameter"): uninitialized,
    ("torch.nn.parameter", "UninitializedBuffer"): uninitialized,
    ("torch", "Size"): size,
    ("_codecs", "encode"): encode,
    ("numpy.core.multiarray", "scalar"): numpy_scalar,
    ("numpy._core.multiarray", "scalar"): numpy_scalar,
    **{(module, name): collect for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "list")},
    **{(module, name): no_bytes for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
    ("collections", "OrderedDict"): ordered_dict,
    ("collections", "defaultdict"): default_dict,
}
