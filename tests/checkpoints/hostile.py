"""Files that were made to harm whoever reads them, one trick each, and the arena in which bncheck reads them.

A trick is a function that writes its file into a folder and gives the path to inspect. Payloads only leave a mark:
an empty file of the name `mark` in that folder. Most pickles are spelled out in opcodes, since no library writes them.

`serve` is the arena: a process without torch that runs the command in a child for each order, watches what the child
does (an audit hook) and measures what it takes. A child of the test process would not do: Linux counts the
memory of the parent towards the peak of a child that it starts.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bncheck.checkpoints.encodings.limits import LONGEST_PATH
from bncheck.checkpoints.encodings.pickles import MAX_NAME_LENGTH

MARK = "mark"
MILLION = 10**6

Write = Callable[[Path], Path]


class End(Enum):
    """How reading a hostile file ends."""

    LAYERS = "its layers are shown"
    ACCUSED = "its layers are shown, and unexpected-globals is an error"
    REFUSED = "one sentence says what is wrong"
    EMPTY = "it has no BatchNorm layer"
    ANY = "layers, no layers or a sentence: what matters is that it ends"


@dataclass(frozen=True, slots=True)
class Trick:
    """A hostile file. `live`: unpickling it for real leaves the mark, which the tests prove."""

    name: str
    end: End
    write: Write
    live: bool = False


# -- opcodes


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode("ascii")


def name_of(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def dotted(module: str, name: str) -> bytes:
    """STACK_GLOBAL, which follows the dots of a name."""
    return text(module) + text(name) + b"\x93"


def long1(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def long4(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else long1(value)


def integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def storage(key: str = "0", numel: int = 1, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    return b"(" + text("storage") + name_of("torch", kind) + text(key) + text(location) + integer(numel) + b"tQ"


def tensor(
    key: str = "0",
    shape: Iterable[int] = (1,),
    stride: Iterable[int] = (1,),
    offset: int = 0,
    numel: int = 1,
    kind: str = "FloatStorage",
    location: str = "cpu",
) -> bytes:
    """What torch.save writes for a tensor."""
    return (
        name_of("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage(key, numel, kind, location)
        + integer(offset)
        + integers(shape)
        + integers(stride)
        + b"\x89"
        + name_of("collections", "OrderedDict")
        + b")RtR"
    )


def batchnorm(name: str = "bn") -> bytes:
    """Two keys and tensors of a state_dict: a layer that was trained."""
    return text(f"{name}.running_mean") + tensor("0") + text(f"{name}.running_var") + tensor("1")


def beside_a_layer(value: bytes, proto: int = 4) -> bytes:
    """A pickle of a state_dict with one layer, and a value of the trick's under another key."""
    return bytes([0x80, proto]) + b"}(" + text("payload") + value + batchnorm() + b"u."


def module(
    path: tuple[str, str] = ("torch.nn.modules.batchnorm", "BatchNorm2d"),
    modules: bytes = b"}",
    buffers: bytes = b"}",
    more: bytes = b"",
) -> bytes:
    """A pickled module; `more` are keys and values of its __dict__."""
    state = text("_modules") + modules + text("_buffers") + buffers + text("_parameters") + b"}" + more
    return dotted(*path) + b")\x81}(" + state + b"ub"


BUFFERS = b"}(" + text("running_mean") + tensor("0") + text("running_var") + tensor("1") + b"u"


# -- files

NUMBERS = {"0": struct.pack("<f", 0.5), "1": struct.pack("<f", 2.0)}


def save(
    folder: Path, pickle: bytes, storages: Mapping[str, bytes] = NUMBERS, method: int = zipfile.ZIP_DEFLATED
) -> Path:
    """A torch.save file, with data.pkl packed so that long pickles make small files."""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", b"3\n")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def pickled(build: Callable[[], bytes], storages: Mapping[str, bytes] = NUMBERS, **options: int) -> Write:
    """A torch.save file with this pickle."""
    return lambda folder: save(folder, build(), storages, **options)


def payload(build: Callable[[str], bytes], proto: int = 4) -> Write:
    """A torch.save file with a layer, and a value that leaves the mark at the path that `build` is given."""
    return lambda folder: save(folder, beside_a_layer(build(str(folder / MARK)), proto))


def file(data: Callable[[], bytes], name: str = "model.pt") -> Write:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data())
        return path

    return write


def touch(mark: str) -> bytes:
    return text(f"touch '{mark}'")


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def listed(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"l"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a zip file, free to lie. None: the truth."""

    name: str
    data: bytes
    method: int = 0
    size: int | None = None
    compressed: int | None = None
    flags: int = 0
    local_name: str | None = None
    offset: int | None = None
    extra: bytes = b""


def zipped(
    members: Iterable[Member],
    *,
    count: int | None = None,
    table_size: int | None = None,
    table_start: int | None = None,
    comment: bytes = b"",
    before_end: bytes = b"",
) -> bytes:
    body, table, number = b"", b"", 0
    for member in members:
        name = member.name.encode("utf-8", "surrogateescape")
        local_name = name if member.local_name is None else member.local_name.encode()
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        stored = packer.compress(member.data) + packer.flush() if member.method == 8 else member.data
        size = len(member.data) if member.size is None else member.size
        compressed = len(stored) if member.compressed is None else member.compressed
        offset = len(body) if member.offset is None else member.offset
        check = zlib.crc32(member.data)
        wide = min(size, 0xFFFFFFFF), min(compressed, 0xFFFFFFFF)
        fields = (member.flags, member.method, 0, 0, check, wide[1], wide[0])
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *fields, len(local_name), 0) + local_name + stored
        table += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, *fields, len(name), len(member.extra), 0, 0, 0, 0, offset
        )
        table += name + member.extra
        number += 1
    end = struct.pack(
        "<4s4H2LH",
        b"PK\5\6",
        0,
        0,
        min(number, 0xFFFF) if count is None else count,
        min(number, 0xFFFF) if count is None else count,
        len(table) if table_size is None else table_size,
        len(body) if table_start is None else table_start,
        len(comment),
    )
    return body + table + before_end + end + comment


def members(pickle: bytes | None = None, **lies: Any) -> list[Member]:
    """A proper file with one layer; `lies` are told about data.pkl."""
    return [
        Member("archive/data.pkl", beside_a_layer(b"N") if pickle is None else pickle, **lies),
        Member("archive/data/0", NUMBERS["0"]),
        Member("archive/data/1", NUMBERS["1"]),
    ]


def wide_table(count: int, size: int, start: int, *, end_at: int) -> bytes:
    """The ZIP64 end of the table of contents, and the locator that says it is at `end_at`."""
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    return record + struct.pack("<4sLQL", b"PK\6\7", 0, end_at, 1)


LEGACY_MAGIC = long1(0x1950A86A20F9469CFC6C)


def legacy(
    value: bytes,
    *,
    magic: bytes = b"\x80\x02" + LEGACY_MAGIC + b".",
    facts: bytes = b"\x80\x02}.",
    keys: tuple[str, ...] = ("0", "1"),
    counts: tuple[int, ...] = (1, 1),
) -> bytes:
    """A torch.save file of before torch 1.6."""
    value = value.replace(b"\0tQ", b"\0NtQ")  # a persistent id has one field more there, for views
    listed_keys = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    numbers = b"".join(
        struct.pack("<q", count) + NUMBERS[key] for key, count in zip(keys, counts, strict=True) if key in NUMBERS
    )
    return magic + b"\x80\x02M\xe9\x03." + facts + value + listed_keys + numbers


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(first: int = 0, last: int = 4, shape: str = "[1]", dtype: str = "F32") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{first},{last}]}}'


def one_layer(**of_mean: Any) -> bytes:
    """A header with one layer."""
    return f'{{"bn.running_mean":{entry(**of_mean)},"bn.running_var":{entry(4, 8)}}}'.encode()


def header(build: Callable[[], bytes], data: bytes = b"\0\0\0\x3f\0\0\0\x40", length: int | None = None) -> Write:
    return file(lambda: safetensors(build(), data, length), "model.safetensors")


def index(build: Callable[[], Mapping[str, str]]) -> Write:
    return file(lambda: json.dumps({"metadata": {}, "weight_map": build()}).encode(), "model.safetensors.index.json")


def truncated(keep: float) -> Write:
    def write(folder: Path) -> Path:
        path = save(folder, beside_a_layer(b"N"), method=zipfile.ZIP_STORED)
        os.truncate(path, int(path.stat().st_size * keep))
        return path

    return write


# -- bad input


def named_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.pt")
    return folder / "model.pt"


def forbidden(folder: Path) -> Path:
    path = save(folder, beside_a_layer(b"N"))
    path.chmod(0)
    return path


def empty_folder(folder: Path) -> Path:
    (folder / "notes.txt").write_text("nothing here")
    return folder


def folder_with_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.pt")
    return folder


def folder_with_itself(folder: Path) -> Path:
    (folder / "again").symlink_to(folder)
    save(folder, beside_a_layer(b"N"))
    return folder


def link_to_itself(folder: Path) -> Path:
    (folder / "model.pt").symlink_to("model.pt")
    return folder / "model.pt"


def a_terabyte_of_nothing(folder: Path) -> Path:
    path = folder / "model.pt"
    path.write_bytes(b"PK\3\4")
    os.truncate(path, 2**40)
    return path


def legacy_terabyte(folder: Path) -> Path:
    path = folder / "model.pt"
    path.write_bytes(legacy(beside_a_layer(b"N", 2)))
    os.truncate(path, 2**40)
    return path


def one_shard_by_many_names(folder: Path) -> Path:
    """./shard, ././shard and so on: each is opened and its header parsed again."""
    names = ["./" * number + "shard.safetensors" for number in range(300)]
    held = {f"key{number}": entry(0, 0, "[0]") for number in range(20_000)}
    body = ",".join(f'"{key}":{value}' for key, value in held.items())
    (folder / "shard.safetensors").write_bytes(safetensors(f"{{{body}}}".encode()))
    return index(lambda: {f"key{number}": name for number, name in enumerate(names)})(folder)


BAD_INPUT = (
    Trick("an empty file", End.REFUSED, file(lambda: b"")),
    Trick("a text file", End.REFUSED, file(lambda: b"Hello\n" * 100)),
    Trick("a file of zeros", End.REFUSED, file(lambda: bytes(5000))),
    Trick("four bytes of a zip file", End.REFUSED, file(lambda: b"PK\3\4")),
    *(
        Trick(f"a zip file cut after {keep:.0%}", End.REFUSED, truncated(keep))
        for keep in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    ),
    Trick("a terabyte of nothing", End.REFUSED, a_terabyte_of_nothing),
    Trick("a legacy file with a terabyte of nothing behind it", End.ANY, legacy_terabyte),
    Trick("a zip file without a pickle", End.REFUSED, file(lambda: zipped([Member("notes.txt", b"nothing")]))),
    Trick("a pickle without torch", End.REFUSED, file(lambda: b"\x80\x04N.")),
    Trick("a path that does not exist", End.REFUSED, lambda folder: folder / "missing.pt"),
    Trick("a path of 5,000 characters", End.REFUSED, lambda folder: folder / ("x" * 5000)),
    Trick("a link to itself", End.REFUSED, link_to_itself),
    Trick("a named pipe", End.REFUSED, named_pipe),
    Trick("a file that may not be read", End.REFUSED, forbidden),
    Trick("a folder without checkpoints", End.REFUSED, empty_folder),
    Trick("a folder with a named pipe", End.REFUSED, folder_with_a_pipe),
    Trick("a folder that contains itself", End.LAYERS, folder_with_itself),
    Trick("a device", End.REFUSED, lambda _: Path("/dev/zero")),
    Trick("a checkpoint without BatchNorm", End.EMPTY, pickled(lambda: b"\x80\x02}" + text("w") + tensor() + b"s.")),
    Trick("a checkpoint that is None", End.EMPTY, pickled(lambda: b"\x80\x02N.")),
    Trick(
        "a tensor saved on cuda:0",
        End.LAYERS,
        pickled(
            lambda: (
                b"\x80\x02}("
                + text("bn.running_mean")
                + tensor("0", location="cuda:0")
                + text("bn.running_var")
                + tensor("1", location="cuda:0")
                + b"u."
            )
        ),
    ),
)


# -- tensors that lie


def with_mean(mean: bytes, storages: Mapping[str, bytes] = NUMBERS) -> Write:
    body = text("bn.running_mean") + mean + text("bn.running_var") + tensor("1")
    return pickled(lambda: b"\x80\x02}(" + body + b"u.", storages)


def many_views_of_one_number(layers: int, channels: int) -> Callable[[], bytes]:
    """Each layer is a view with stride 0 of the same four bytes."""

    def build() -> bytes:
        view = tensor("0", (channels,), (0,)) + put(0) + b"0"
        keys = b"".join(text(f"{n}.running_mean") + get(0) + text(f"{n}.running_var") + get(0) for n in range(layers))
        return b"\x80\x02" + view + b"}(" + keys + b"u."

    return build


TENSORS = (
    Trick("a storage shorter than its tensor", End.REFUSED, with_mean(tensor("0", (64,), (1,), numel=64))),
    Trick("a shape that points outside the storage", End.REFUSED, with_mean(tensor("0", (2**40,), (1,)))),
    Trick("a stride that points outside the storage", End.REFUSED, with_mean(tensor("0", (2, 2), (2**60, 1)))),
    Trick("a negative stride", End.REFUSED, with_mean(tensor("0", (1,), (-1,)))),
    Trick("a negative shape", End.REFUSED, with_mean(tensor("0", (-1,), (1,)))),
    Trick("a negative offset", End.REFUSED, with_mean(tensor("0", offset=-1))),
    Trick("an offset beyond 64 bits", End.REFUSED, with_mean(tensor("0", offset=2**64))),
    Trick("an offset that wraps around 64 bits", End.REFUSED, with_mean(tensor("0", offset=2**62))),
    Trick("a shape whose size overflows", End.REFUSED, with_mean(tensor("0", (2**32, 2**32), (2**32, 1)))),
    Trick("a shape of 65 dimensions", End.REFUSED, with_mean(tensor("0", (1,) * 65, (1,) * 65))),
    Trick("a shape of 64 dimensions", End.ANY, with_mean(tensor("0", (1,) * 64, (1,) * 64))),
    Trick("fewer strides than dimensions", End.REFUSED, with_mean(tensor("0", (1, 1), (1,)))),
    Trick("a negative number of elements", End.REFUSED, with_mean(tensor("0", numel=-1))),
    Trick("a storage that is missing", End.REFUSED, with_mean(tensor("7"))),
    Trick("a storage key that leads out of the archive", End.REFUSED, with_mean(tensor("../../etc/passwd"))),
    Trick("an unknown storage class", End.REFUSED, with_mean(tensor("0", kind="EvilStorage"))),
    Trick("an empty tensor that is as long as memory", End.ANY, with_mean(tensor("0", (0, 2**62), (1, 1)))),
    Trick("a view of four million from four bytes", End.ANY, with_mean(tensor("0", (2**22,), (0,)))),
    Trick("a view of 2**40 from four bytes", End.REFUSED, with_mean(tensor("0", (2**40,), (0,)))),
    Trick("64 dimensions of 2**62 from four bytes", End.REFUSED, with_mean(tensor("0", (2**62,) * 64, (0,) * 64))),
    Trick("40 layers of four million channels from four bytes", End.ANY, pickled(many_views_of_one_number(40, 2**22))),
    Trick("2,000 layers of 100,000 channels from four bytes", End.ANY, pickled(many_views_of_one_number(2000, 10**5))),
    Trick(
        "a thin view of a packed storage",
        End.ANY,
        with_mean(tensor("0", (30_000,), (500,), numel=15 * MILLION), {"0": bytes(60 * MILLION), "1": NUMBERS["1"]}),
    ),
    Trick(
        "100,000 elements, each read by itself",
        End.ANY,
        lambda folder: save(
            folder,
            b"\x80\x02}"
            + text("bn.running_mean")
            + tensor("0", (100_000,), (65,), kind="ByteStorage", numel=6_500_000)
            + b"s.",
            {"0": bytes(6_500_000)},
            zipfile.ZIP_STORED,
        ),
    ),
    Trick(
        "200 layers in one packed storage of 60 MB",
        End.ANY,
        pickled(
            lambda: (
                b"\x80\x02"
                + tensor("0", (1,), (1,), numel=15 * MILLION)
                + put(0)
                + b"0}("
                + b"".join(text(f"{n}.running_mean") + get(0) for n in range(200))
                + b"u."
            ),
            {"0": bytes(60 * MILLION)},
        ),
    ),
    Trick(
        "four million channels of NaN",
        End.ANY,
        with_mean(tensor("0", (2**22,), (0,)), {"0": struct.pack("<f", float("nan")), "1": NUMBERS["1"]}),
    ),
    Trick(
        "a signalling NaN",
        End.LAYERS,
        with_mean(tensor("0"), {"0": b"\x01\x00\xa0\x7f", "1": NUMBERS["1"]}),
    ),
    Trick(
        "numbers as far apart as float64 allows",
        End.LAYERS,
        with_mean(
            tensor("0", (2,), (1,), kind="DoubleStorage", numel=2),
            {"0": struct.pack("<2d", -1.7e308, 1.7e308), "1": NUMBERS["1"]},
        ),
    ),
    Trick(
        "the least and the next number of float64",
        End.LAYERS,
        with_mean(
            tensor("0", (2,), (1,), kind="DoubleStorage", numel=2),
            {"0": struct.pack("<2d", 0.0, 5e-324), "1": NUMBERS["1"]},
        ),
    ),
    Trick(
        "both infinities",
        End.LAYERS,
        with_mean(
            tensor("0", (2,), (1,), numel=2),
            {"0": struct.pack("<2f", float("-inf"), float("inf")), "1": NUMBERS["1"]},
        ),
    ),
    *(
        Trick(
            f"a counter that is {value} beside initial statistics",
            End.LAYERS,
            pickled(
                lambda value=value: b"\x80\x02}(" + batchnorm() + text("bn.num_batches_tracked") + tensor("2") + b"u.",
                {"0": bytes(4), "1": struct.pack("<f", 1.0), "2": struct.pack("<f", value)},
            ),
        )
        for value in (float("nan"), float("inf"))
    ),
    Trick(
        "statistics of complex numbers",
        End.ANY,
        with_mean(tensor("0", kind="ComplexFloatStorage"), {"0": bytes(8), "1": NUMBERS["1"]}),
    ),
    Trick(
        "a mean and a variance of different lengths",
        End.LAYERS,
        with_mean(tensor("0", (3,), (1,), numel=3), {"0": struct.pack("<3f", float("inf"), 1, 2), "1": NUMBERS["1"]}),
    ),
)


# -- safetensors


def many_layers_in_a_header(layers: int) -> Callable[[], bytes]:
    def build() -> bytes:
        return b"{" + ",".join(f'"{n}.running_mean":{entry(4 * n, 4 * n + 4)}' for n in range(layers)).encode() + b"}"

    return build


SAFETENSORS = (
    Trick("a header longer than its file", End.REFUSED, header(one_layer, length=10**7)),
    Trick("a header of 2**64 - 1 bytes", End.REFUSED, header(one_layer, length=2**64 - 1)),
    Trick("a header that is cut", End.REFUSED, header(one_layer, length=40)),
    Trick("a header that is an array", End.REFUSED, file(lambda: safetensors(b"{]}     "))),
    Trick(
        "a key that stands twice", End.REFUSED, header(lambda: bytes(f'{{"a":{entry()},"a":{entry(4, 8)}}}', "utf-8"))
    ),
    Trick("tensors that overlap", End.REFUSED, header(lambda: one_layer(first=2, last=6))),
    Trick("a tensor outside the file", End.REFUSED, header(lambda: one_layer(first=4, last=10**9))),
    Trick("a tensor that does not fit its place", End.REFUSED, header(lambda: one_layer(shape="[2]"))),
    Trick("a tensor that ends before it starts", End.REFUSED, header(lambda: one_layer(first=4, last=0))),
    Trick("a tensor of negative length", End.REFUSED, header(lambda: one_layer(shape="[-1]"))),
    Trick("a shape that is true", End.REFUSED, header(lambda: one_layer(shape="[true]"))),
    Trick(
        "places that are true and false",
        End.REFUSED,
        header(
            lambda: (
                b'{"bn.running_mean":{"dtype":"U8","shape":[1],"data_offsets":[false,true]},'
                b'"bn.running_var":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
            )
        ),
    ),
    Trick(
        "a shape of 2**62 and 0", End.ANY, header(lambda: one_layer(first=0, last=0, shape="[0,4611686018427387904]"))
    ),
    Trick("a shape of fractions", End.REFUSED, header(lambda: one_layer(shape="[1.0]"))),
    Trick("a dtype that does not exist", End.REFUSED, header(lambda: one_layer(dtype="F33"))),
    Trick(
        "a place of 4,300 digits",
        End.REFUSED,
        header(lambda: bytes(f'{{"w":{{"dtype":"F4","shape":[1],"data_offsets":[0,{"9" * 4300}]}}}}', "utf-8")),
    ),
    Trick("a number of a million digits", End.REFUSED, header(lambda: bytes(f'{{"a":{"9" * MILLION}}}', "utf-8"))),
    Trick("JSON nested a million deep", End.REFUSED, header(lambda: b'{"a":' + b"[" * MILLION)),
    Trick("JSON nested 900 deep", End.ANY, header(lambda: b'{"__metadata__":{"a":' + b"[" * 900 + b"]" * 900 + b"}}")),
    *(
        Trick(
            f"JSON nested {depth} deep in the metadata",
            End.ANY,
            header(lambda depth=depth: b'{"__metadata__":{"a":' + b"[" * depth + b"]" * depth + b"}}"),
        )
        for depth in (960, 970, 980, 985, 990)
    ),
    Trick(
        "five million lists in the metadata",
        End.ANY,
        header(lambda: b'{"__metadata__":{"a":[' + b"[]," * (5 * MILLION) + b"[]]}}"),
    ),
    Trick(
        "three million tables in the metadata",
        End.ANY,
        header(lambda: b'{"__metadata__":{"a":[' + b"{}," * (3 * MILLION) + b"{}]}}"),
    ),
    Trick("JSON in another encoding", End.ANY, header(lambda: bytes(one_layer().decode(), "utf-16"))),
    Trick("bytes that are no text", End.REFUSED, header(lambda: b'{"\xff\xfe":1}')),
    Trick(
        "a lone surrogate in a name", End.ANY, header(lambda: bytes(f'{{"\\ud800.running_mean":{entry()}}}', "utf-8"))
    ),
    Trick(
        "a safetensors header before a zip file",
        End.LAYERS,
        file(lambda: safetensors(one_layer(), b"\0\0\0\x3f\0\0\0\x40") + zipped(members())),
    ),
    Trick(
        "a name of 15 MB", End.ANY, header(lambda: bytes(f'{{"{"x" * 15 * MILLION}.running_mean":{entry()}}}', "utf-8"))
    ),
    Trick(
        "a name of 15 million dots",
        End.ANY,
        header(lambda: bytes(f'{{"{"." * 15 * MILLION}running_mean":{entry()}}}', "utf-8")),
    ),
    Trick(
        "a name of 100,000 wrappers",
        End.ANY,
        header(lambda: bytes(f'{{"{"module." * 100_000}running_mean":{entry()}}}', "utf-8")),
    ),
    Trick("100,000 layers", End.ANY, header(many_layers_in_a_header(100_000), bytes(400_000))),
    Trick("an index whose shard is missing", End.REFUSED, index(lambda: {"a": "missing.safetensors"})),
    Trick("an index that points to ../../etc/passwd", End.REFUSED, index(lambda: {"a": "../../../../../etc/passwd"})),
    Trick("an index that points to /etc/passwd", End.REFUSED, index(lambda: {"a": "/etc/passwd"})),
    Trick("an index that points to itself", End.REFUSED, index(lambda: {"a": "model.safetensors.index.json"})),
    Trick("an index that points to its folder", End.REFUSED, index(lambda: {"a": "."})),
    Trick("an index that points to a name with NUL", End.REFUSED, index(lambda: {"a": "a\0b"})),
    Trick("an index that points to a name with a lone surrogate", End.REFUSED, index(lambda: {"a": "\ud800"})),
    Trick("an index that points to a name of a megabyte", End.REFUSED, index(lambda: {"a": "x" * MILLION})),
    Trick("an index that names one shard in 300 ways", End.ANY, one_shard_by_many_names),
    Trick(
        "an index of 50,000 shards", End.REFUSED, index(lambda: {f"k{n}": f"{n}.safetensors" for n in range(50_000)})
    ),
)


# -- pickles that exhaust


def deep(start: bytes, end: bytes, depth: int) -> Write:
    return pickled(lambda: b"\x80\x04" + start * depth + b"N" + end * depth + b".")


def doubling(levels: int, bottom: bytes) -> Callable[[], bytes]:
    """Lists [x, x], each holding the one before twice."""
    return lambda: b"\x80\x04" + bottom + b"".join(put(n) + b"0(" + get(n) * 2 + b"l" for n in range(levels)) + b"."


def shared_arguments() -> bytes:
    """One tuple of 200,000 arguments for 100,000 calls."""
    return (
        b"\x80\x04"
        + name_of("package", "function")
        + put(0)
        + b"0"
        + b"("
        + b"N" * 200_000
        + b"t"
        + put(1)
        + b"0"
        + b"("
        + (get(0) + get(1) + b"R0") * 100_000
        + b"t."
    )


def shared_list() -> bytes:
    return (
        b"\x80\x04"
        + name_of("collections", "OrderedDict")
        + put(0)
        + b"0"
        + b"("
        + (b"NN\x86") * 100_000
        + b"l\x85"
        + put(1)
        + b"0"
        + b"("
        + (get(0) + get(1) + b"R0") * 100_000
        + b"t."
    )


def objects_with_shared_arguments() -> bytes:
    """50,000 objects made from the same tuple of 100,000 arguments."""
    return (
        b"\x80\x04"
        + name_of("package", "Class")
        + put(0)
        + b"0"
        + b"("
        + b"N" * 100_000
        + b"t"
        + put(1)
        + b"0"
        + b"("
        + (get(0) + get(1) + b"\x81") * 50_000
        + b"l."
    )


def objects_with_shared_state() -> bytes:
    """50,000 objects with the same __dict__ of 50,000 entries."""
    state = b"}(" + b"".join(integer(n) + b"N" for n in range(50_000)) + b"u"
    return (
        b"\x80\x04"
        + name_of("package", "Class")
        + put(0)
        + b"0"
        + state
        + put(1)
        + b"0"
        + b"("
        + (get(0) + b")\x81" + get(1) + b"b") * 50_000
        + b"l."
    )


def dicts_with_shared_metadata() -> bytes:
    """50,000 dicts with the same _metadata of 50,000 entries."""
    metadata = b"}(" + b"".join(text(f"m{n}") + b"N" for n in range(50_000)) + b"u"
    attributes = b"}" + text("_metadata") + metadata + b"s"
    return b"\x80\x04" + attributes + put(1) + b"0" + b"(" + (b"}" + get(1) + b"b") * 50_000 + b"l."


def modules_with_shared_children() -> bytes:
    """5,000 modules, each with the same _modules of these 5,000."""
    children = b"}" + put(0) + b"0"
    made = b"".join(text(f"m{n}") + module(("p", "C"), get(0)) for n in range(5000))
    return b"\x80\x04" + children + get(0) + b"(" + made + b"u0" + module(("p", "C"), get(0)) + b"."


def modules_with_shared_buffers() -> bytes:
    """5,000 modules with the same 5,000 buffers."""
    buffers = b"}" + put(0) + b"(" + b"".join(text(f"b{n}") + get(1) for n in range(5000)) + b"u0"
    made = b"".join(text(f"m{n}") + module(("p", "C"), buffers=get(0)) for n in range(5000))
    return b"\x80\x04" + tensor() + put(1) + b"0" + buffers + module(("p", "C"), b"}(" + made + b"u") + b"."


def modules_below_a_long_name() -> bytes:
    """10,000 modules below one whose name has a megabyte."""
    made = b"".join(text(f"m{n}") + module(("p", "C")) for n in range(10_000))
    inner = module(("p", "C"), b"}(" + made + b"u")
    return b"\x80\x04" + module(("p", "C"), b"}" + text("x" * MILLION) + inner + b"s") + b"."


def tensors_below_a_long_name() -> bytes:
    """10,000 tensors of a layer in a dict of its own, whose key has a megabyte."""
    body = b"".join(text(f"b{n}") + get(0) for n in range(10_000))
    layer = b"}(" + text("running_mean") + get(0) + text("running_var") + get(0) + body + b"u"
    return b"\x80\x04" + tensor() + put(0) + b"0}" + text("x" * MILLION) + layer + b"s."


def modules_nested(depth: int) -> Callable[[], bytes]:
    start = name_of("p", "C") + b")\x81}" + text("_modules") + b"}" + text("m")
    return lambda: b"\x80\x04" + start * depth + module(buffers=BUFFERS) + b"ssb" * depth + b"."


def groups_below_a_long_name() -> bytes:
    """900 state dicts below a dict whose key has a megabyte."""
    held = b"(" + (b"}" + text("weight") + get(0) + b"s") * 900 + b"l"
    return b"\x80\x04" + tensor() + put(0) + b"0}" + text("x" * MILLION) + held + b"s."


def one_module_in_many_places() -> bytes:
    """A module of 2,000 layers at 1,000 places."""
    layer = module(buffers=BUFFERS)
    layers = b"}(" + b"".join(text(f"m{n}") + layer for n in range(2000)) + b"u"
    return b"\x80\x04(" + module(("p", "C"), layers) + put(0) + get(0) * 999 + b"l."


def dicts_deep_down() -> bytes:
    """200,000 dicts, 990 lists down: each asks for its path."""
    return b"\x80\x04" + b"]" * 990 + b"(" + b"}" * 200_000 + b"l" + b"a" * 990 + b"."


def getattr_chain(length: int) -> bytes:
    """A name that grows with each call of getattr."""
    return (
        b"\x80\x04"
        + name_of("builtins", "getattr")
        + put(0)
        + b"0"
        + name_of("package", "x")
        + (put(1) + b"0" + get(0) + get(1) + short("a") + b"\x86R") * length
        + b"."
    )


def getattr_fan() -> bytes:
    """200,000 names of nearly a thousand characters, by getattr of a class with a long name."""
    return (
        b"\x80\x04"
        + name_of("builtins", "getattr")
        + put(0)
        + b"0"
        + name_of("package", "x" * 900)
        + put(1)
        + b"0("
        + b"".join(get(0) + get(1) + short(f"a{n}") + b"\x86R0" for n in range(200_000))
        + b"t."
    )


def metadata_of_layers(count: int) -> bytes:
    """A state_dict without tensors, whose _metadata names layers of the version that BatchNorm has."""
    version = b"}" + text("version") + b"K\x02s" + put(0) + b"0"
    named = b"".join(text(f"m{n}") + get(0) for n in range(count))
    return b"\x80\x04" + version + b"}}" + text("_metadata") + b"}(" + named + b"usb."


def same_hash(count: int) -> list[int]:
    """Numbers that Python hashes alike."""
    return [number * (2**61 - 1) + 7 for number in range(1, count + 1)]


def memo_of_same_hash() -> bytes:
    """50,000 memo entries by PUT, which takes any number."""
    return b"\x80\x04N" + b"".join(f"p{number}\n".encode() for number in same_hash(50_000)) + b"."


def long_class_names() -> bytes:
    """2,000 modules of a class whose name has a megabyte."""
    path = name_of("p", "x" * MILLION) + put(0) + b"0"
    one = get(0) + b")\x81}" + text("_modules") + b"}sb"
    named = b"".join(text(f"m{n}") + one for n in range(2000))
    return b"\x80\x04" + path + module(("p", "C"), b"}(" + named + b"u") + b"."


def globals_of_a_long_module() -> bytes:
    """2,000 functions of a module whose name has a megabyte."""
    path = text("x" * MILLION) + put(0) + b"0"
    return b"\x80\x04" + path + b"(" + b"".join(get(0) + short(f"f{n}") + b"\x93" for n in range(2000)) + b"l."


def storages_of_a_long_class() -> bytes:
    """100,000 storages of a class whose name ends like that of torch, after ten megabytes."""
    cls = name_of("torch", "x" * 10 * MILLION + ".FloatStorage") + put(0) + b"0"
    identity = b"(" + text("storage") + get(0) + text("0") + text("cpu") + b"K\x01t" + put(1) + b"0"
    return b"\x80\x04" + cls + identity + b"(" + (get(1) + b"Q") * 100_000 + b"l."


def legacy_pickles_of_many_opcodes() -> bytes:
    """Three pickles that together have more opcodes than one may have."""
    many = b"N0" * 700_000
    return legacy(
        b"\x80\x02" + many + beside_a_layer(b"N", 2)[2:],
        magic=b"\x80\x02" + LEGACY_MAGIC + many + b".",
        facts=b"\x80\x02" + many + b"}.",
    )


EXHAUSTION = (
    Trick("a pickle that ends early", End.REFUSED, pickled(lambda: beside_a_layer(b"N")[:-40])),
    Trick("a pickle without STOP", End.REFUSED, pickled(lambda: beside_a_layer(b"N")[:-1])),
    Trick("an empty pickle", End.REFUSED, pickled(lambda: b"")),
    Trick("a pickle of STOP", End.REFUSED, pickled(lambda: b".")),
    *(
        Trick(f"{what} nested {depth:,} deep", End.ANY, deep(start, end, depth))
        for depth in (10_000, 400_000)
        for what, start, end in (
            ("lists", b"]", b"a"),
            ("dicts", b"}N", b"s"),
            ("tuples", b"", b"\x85"),
            ("marks", b"(", b"t"),
        )
    ),
    Trick("a tuple nested 1,000,000 deep", End.ANY, deep(b"", b"\x85", MILLION)),
    Trick(
        "a list nested 1,000,000 deep",
        End.ANY,
        pickled(lambda: b"\x80\x04" + b"]" * MILLION + b"a" * (MILLION - 1) + b"."),
    ),
    Trick("objects nested 100,000 deep", End.ANY, deep(b"cp\nC\n)\x81", b"b", 100_000)),
    Trick("objects nested 200,000 deep", End.ANY, deep(b"cp\nC\n)\x81", b"b", 200_000)),
    Trick("a tuple nested 10**6 deep as a key", End.ANY, pickled(lambda: b"\x80\x04}N" + b"\x85" * MILLION + b"Ns.")),
    Trick("modules nested 900 deep", End.ANY, pickled(modules_nested(900))),
    Trick("modules nested 60,000 deep", End.ANY, pickled(modules_nested(60_000))),
    Trick(
        "eleven bytes with a memo entry 2**32 - 1",
        End.REFUSED,
        pickled(lambda: b"\x80\x02]" + put(2**32 - 1) + b"N.."[:1]),
    ),
    Trick("a memo entry 2**32 - 1", End.EMPTY, pickled(lambda: b"\x80\x02]" + put(2**32 - 1) + b".")),
    Trick("a negative memo entry", End.ANY, pickled(lambda: b"\x80\x02]p-5\ng-5\n.")),
    Trick("a memo entry that was never written", End.REFUSED, pickled(lambda: b"\x80\x02h\x05.")),
    Trick("50,000 memo entries of one hash", End.ANY, pickled(memo_of_same_hash)),
    Trick(
        "50,000 keys of one hash",
        End.ANY,
        pickled(lambda: b"\x80\x04}(" + b"".join(long1(n) + b"N" for n in same_hash(50_000)) + b"u."),
    ),
    Trick(
        "50,000 tuples of one hash as keys",
        End.ANY,
        pickled(lambda: b"\x80\x04}(" + b"".join(long1(n) + b"\x85N" for n in same_hash(50_000)) + b"u."),
    ),
    Trick("a list that holds itself", End.EMPTY, pickled(lambda: b"\x80\x04]" + put(0) + get(0) + b"a.")),
    Trick("a dict that is its own attributes", End.EMPTY, pickled(lambda: b"\x80\x04}" + put(0) + get(0) + b"b.")),
    Trick(
        "an object that is its own state and argument",
        End.EMPTY,
        pickled(lambda: b"\x80\x04cp\nC\n(]" + put(0) + b"t\x81" + put(1) + get(1) + b"b0" + get(0) + get(1) + b"a."),
    ),
    Trick(
        "a module that holds itself",
        End.LAYERS,
        pickled(
            lambda: (
                b"\x80\x04"
                + name_of("torch.nn.modules.batchnorm", "BatchNorm2d")
                + b")\x81"
                + put(0)
                + b"}("
                + text("_modules")
                + b"}"
                + text("again")
                + get(0)
                + b"s"
                + text("_buffers")
                + BUFFERS
                + b"ub."
            )
        ),
    ),
    Trick(
        "BINBYTES8 of 4 GB in a hundred bytes",
        End.REFUSED,
        pickled(lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**32) + b"x" * 80 + b"."),
    ),
    Trick("BINUNICODE8 of 2**64 - 1 bytes", End.REFUSED, pickled(lambda: b"\x80\x04\x8d" + b"\xff" * 8 + b".")),
    Trick("BYTEARRAY8 of 2**62 bytes", End.REFUSED, pickled(lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".")),
    Trick("LONG4 of a negative length", End.REFUSED, pickled(lambda: b"\x80\x04\x8b\xff\xff\xff\xff.")),
    Trick("a frame of 2**63 bytes", End.ANY, pickled(lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.")),
    Trick("items set on a list", End.REFUSED, pickled(lambda: b"\x80\x04]NNs.")),
    Trick("items set on a number", End.REFUSED, pickled(lambda: b"\x80\x04K\x01NNs.")),
    Trick("elements appended to a dict", End.REFUSED, pickled(lambda: b"\x80\x04}Na.")),
    Trick("a dict with a key too many", End.REFUSED, pickled(lambda: b"\x80\x04}(NNNu.")),
    Trick("a call without a tuple", End.REFUSED, pickled(lambda: b"\x80\x04cos\nsystem\nNR.")),
    Trick("a name that is no text", End.REFUSED, pickled(lambda: b"\x80\x04NN\x93.")),
    Trick("an empty name", End.ANY, pickled(lambda: b"\x80\x04c\n\n.")),
    Trick("an unknown opcode", End.REFUSED, pickled(lambda: b"\x80\x04\xff.")),
    Trick("protocol 255", End.ANY, pickled(lambda: b"\x80\xffN.")),
    Trick("out of band buffers", End.REFUSED, pickled(lambda: b"\x80\x05\x97.")),
    *(
        Trick(f"a persistent id that is {what}", End.REFUSED, pickled(lambda value=value: b"\x80\x04" + value + b"Q."))
        for what, value in (
            ("a number", b"K\x01"),
            ("an empty tuple", b")"),
            ("a tuple of one", b"N\x85"),
            (
                "a storage without its size",
                b"(" + text("storage") + name_of("torch", "FloatStorage") + text("0") + text("cpu") + b"Nt",
            ),
            (
                "a storage of a computed class",
                b"(" + text("storage") + b"cp\nf\n)R" + text("0") + text("cpu") + b"K\x01t",
            ),
            (
                "a storage with a list for its key",
                b"(" + text("storage") + name_of("torch", "FloatStorage") + b"]" + text("cpu") + b"K\x01t",
            ),
        )
    ),
    Trick("a persistent id in a line", End.REFUSED, pickled(lambda: b"\x80\x04Pstorage\n.")),
    Trick(
        "a shape that is a storage",
        End.REFUSED,
        pickled(
            lambda: (
                b"\x80\x04"
                + name_of("torch._utils", "_rebuild_tensor_v2")
                + b"("
                + storage()
                + b"K\0"
                + storage()
                + b")\x89NtR."
            )
        ),
    ),
    Trick(
        "an OrderedDict of numbers",
        End.REFUSED,
        pickled(lambda: b"\x80\x04ccollections\nOrderedDict\n(](K\x01K\x02etR."),
    ),
    Trick(
        "an OrderedDict with a list for its key",
        End.ANY,
        pickled(lambda: b"\x80\x04ccollections\nOrderedDict\n(](]N\x86etR."),
    ),
    Trick(
        "a number of 16 million digits",
        End.ANY,
        pickled(lambda: b"\x80\x04\x8b" + struct.pack("<I", 7 * MILLION) + b"\x7f" * 7 * MILLION + b"."),
    ),
    Trick(
        "a decimal number of a million digits", End.REFUSED, pickled(lambda: b"\x80\x04L" + b"9" * MILLION + b"L\n.")
    ),
    *(
        Trick(
            f"{name} with a number of 5,000 digits",
            End.LAYERS,
            pickled(lambda name=name: b"\x80\x04" + module(buffers=BUFFERS, more=text(name) + long4(10**5000)) + b"."),
        )
        for name in ("eps", "momentum", "num_features", "training", "affine")
    ),
    Trick(
        "a number of 5,000 digits as a key of an object",
        End.EMPTY,
        pickled(lambda: b"\x80\x04cp\nC\n)\x81" + long4(10**5000) + b"]s."),
    ),
    Trick(
        "a number of 5,000 digits as a key of a dict",
        End.EMPTY,
        pickled(lambda: b"\x80\x04}" + long4(10**5000) + b"]s."),
    ),
    Trick(
        "a version of 5,000 digits",
        End.ANY,
        pickled(
            lambda: (
                b"\x80\x04}}"
                + text("_metadata")
                + b"}"
                + text("m")
                + b"}"
                + text("version")
                + long4(10**5000)
                + b"sssb."
            )
        ),
    ),
    Trick(
        "eps that is NaN",
        End.LAYERS,
        pickled(lambda: b"\x80\x04" + module(buffers=BUFFERS, more=text("eps") + b"G\x7f\xf8" + bytes(6)) + b"."),
    ),
    Trick(
        "num_features that is true",
        End.LAYERS,
        pickled(lambda: b"\x80\x04" + module(buffers=BUFFERS, more=text("num_features") + b"\x88") + b"."),
    ),
    Trick("30 lists [x, x]", End.EMPTY, pickled(doubling(30, b"]"))),
    Trick("300 lists [x, x]", End.EMPTY, pickled(doubling(300, b"]"))),
    Trick("30 lists [x, x] above a tensor", End.EMPTY, pickled(doubling(30, tensor()))),
    Trick("30 lists [x, x] above a state_dict", End.ANY, pickled(doubling(30, b"}(" + batchnorm() + b"u"))),
    Trick("30 lists [x, x] above a module", End.ANY, pickled(doubling(30, module(buffers=BUFFERS)))),
    Trick("a module of 2,000 layers at 1,000 places", End.ANY, pickled(one_module_in_many_places)),
    Trick("a huge tuple passed to 100,000 calls", End.ANY, pickled(shared_arguments)),
    Trick("a huge list passed to 100,000 calls", End.ANY, pickled(shared_list)),
    Trick("50,000 objects with the same huge arguments", End.ANY, pickled(objects_with_shared_arguments)),
    Trick("50,000 objects with the same huge state", End.ANY, pickled(objects_with_shared_state)),
    Trick("50,000 dicts with the same huge _metadata", End.ANY, pickled(dicts_with_shared_metadata)),
    Trick("5,000 modules with the same children", End.ANY, pickled(modules_with_shared_children)),
    Trick("5,000 modules with the same buffers", End.ANY, pickled(modules_with_shared_buffers)),
    Trick("10,000 modules below a name of a megabyte", End.ANY, pickled(modules_below_a_long_name)),
    Trick("10,000 tensors below a name of a megabyte", End.ANY, pickled(tensors_below_a_long_name)),
    Trick("900 groups below a name of a megabyte", End.ANY, pickled(groups_below_a_long_name)),
    Trick("200,000 dicts at a depth of 990", End.ANY, pickled(dicts_deep_down)),
    Trick("two million references to one list", End.ANY, pickled(lambda: b"\x80\x04(]" + b"2" * 1_999_000 + b"l.")),
    Trick("two million empty dicts", End.ANY, pickled(lambda: b"\x80\x04(" + b"}" * 1_999_000 + b"l.")),
    Trick("two million empty lists", End.ANY, pickled(lambda: b"\x80\x04(" + b"]" * 1_999_000 + b"l.")),
    Trick("two million marks", End.ANY, pickled(lambda: b"\x80\x04" + b"(" * 1_999_000 + b".")),
    Trick("two million opcodes that do nothing", End.ANY, pickled(lambda: b"\x80\x04" + b"N0" * 999_000 + b"N.")),
    Trick("60 million opcodes", End.REFUSED, pickled(lambda: b"\x80\x04" + b"N" * 60 * MILLION)),
    Trick("a million objects by INST", End.ANY, pickled(lambda: b"\x80\x04(" + b"(ip\nC\n" * 990_000 + b"l.")),
    Trick(
        "half a million objects by NEWOBJ",
        End.ANY,
        pickled(lambda: b"\x80\x04cp\nC\nq\0(" + b"h\0)\x81" * 600_000 + b"l."),
    ),
    Trick("half a million dicts of one", End.ANY, pickled(lambda: b"\x80\x04(" + b"}]Ns" * 490_000 + b"l.")),
    Trick(
        "a million names",
        End.ANY,
        pickled(lambda: b"\x80\x04(" + b"".join(b"cm%d\nn\n" % n for n in range(MILLION)) + b"l."),
    ),
    Trick(
        "100,000 names",
        End.ANY,
        pickled(lambda: b"\x80\x04(" + b"".join(b"cm%d\nn\n" % n for n in range(100_000)) + b"l."),
    ),
    Trick("getattr upon getattr", End.ANY, pickled(lambda: getattr_chain(100_000))),
    Trick("200,000 long names by getattr", End.ANY, pickled(getattr_fan)),
    Trick("a name of 30 MB", End.ANY, pickled(lambda: b"\x80\x04" + name_of("m", "x" * 30 * MILLION) + b".")),
    Trick("2,000 names in a module of a megabyte", End.ANY, pickled(globals_of_a_long_module)),
    Trick("2,000 modules of a class of a megabyte", End.ANY, pickled(long_class_names)),
    Trick("100,000 storages of a class of ten megabytes", End.ANY, pickled(storages_of_a_long_class)),
    Trick(
        "a text of 60 MB with one astral character",
        End.ANY,
        pickled(lambda: b"\x80\x04" + text("x" * 60 * MILLION + "\U0001f600") + b"."),
    ),
    Trick("a text of 60 MB in a line", End.ANY, pickled(lambda: b"\x80\x04S'" + b"x" * 60 * MILLION + b"'\n.")),
    Trick(
        "a text of 60 MB in a line of escapes",
        End.ANY,
        pickled(lambda: b"\x80\x04V" + b"x" * 60 * MILLION + b"\\U0001f600\n."),
    ),
    Trick(
        "a text without quotes of 60 MB", End.REFUSED, pickled(lambda: b"\x80\x04S" + b"\x01" * 60 * MILLION + b"\n.")
    ),
    Trick("a fraction of 60 MB", End.REFUSED, pickled(lambda: b"\x80\x04F" + b"\x01" * 60 * MILLION + b"\n.")),
    Trick("an integer of 60 MB", End.REFUSED, pickled(lambda: b"\x80\x04I" + b"\x01" * 60 * MILLION + b"\n.")),
    Trick("a wrong escape", End.ANY, pickled(lambda: b"\x80\x04S'\\q'\n.")),
    Trick("50,000 layers without tensors", End.ANY, pickled(lambda: metadata_of_layers(50_000))),
    Trick("50,000 layers of one tensor", End.ANY, pickled(many_views_of_one_number(50_000, 1))),
    Trick("a legacy file of three long pickles", End.ANY, file(legacy_pickles_of_many_opcodes)),
    Trick(
        "a legacy file that lists a storage twice",
        End.REFUSED,
        file(lambda: legacy(beside_a_layer(b"N", 2), keys=("0", "0", "1"), counts=(1, 1, 1))),
    ),
    Trick(
        "a legacy file with a storage of 2**62 elements",
        End.REFUSED,
        file(lambda: legacy(beside_a_layer(b"N", 2), counts=(2**62, 1))),
    ),
    Trick(
        "a legacy file with a storage of -1 elements",
        End.REFUSED,
        file(lambda: legacy(beside_a_layer(b"N", 2), counts=(-1, 1))),
    ),
)


# -- pickles that run something


def system(mark: str, function: bytes) -> bytes:
    return called(function, touch(mark))


def nested_pickle(mark: str) -> bytes:
    """The bytes of a legacy checkpoint that leaves the mark, for functions that load bytes."""
    inner = legacy(b"\x80\x02" + called(name_of("os", "system"), touch(mark)) + b".", keys=(), counts=())
    return b"B" + struct.pack("<I", len(inner)) + inner


def decoy(folder: Path) -> Path:
    """The class of an object is in a module beside the file, which leaves the mark when it is imported."""
    source = f"open({str(folder / MARK)!r}, 'w').close()\nclass Net:\n    pass\n"
    (folder / "hostile_module.py").write_text(source)
    return save(folder, beside_a_layer(name_of("hostile_module", "Net") + b")\x81"))


def legacy_with_payload(part: str) -> Write:
    def build(folder: Path) -> bytes:
        ask = system(str(folder / MARK), name_of("os", "system"))
        parts = {
            "magic number": {"magic": b"\x80\x02" + LEGACY_MAGIC + ask + b"0."},
            "facts about the machine": {"facts": b"\x80\x02}" + ask + b"0."},
        }
        return legacy(beside_a_layer(ask if part == "value" else b"N", 2), **parts.get(part, {}))

    def write(folder: Path) -> Path:
        path = folder / "model.pt"
        path.write_bytes(build(folder))
        return path

    return write


def legacy_with_payload_in_keys(folder: Path) -> Path:
    ask = system(str(folder / MARK), name_of("os", "system"))
    plain = legacy(beside_a_layer(b"N", 2))
    path = folder / "model.pt"
    path.write_bytes(plain.replace(b"\x80\x02](" + text("0"), b"\x80\x02" + ask + b"0](" + text("0")))
    return path


def python_call(mark: str) -> bytes:
    return text(f"open({mark!r}, 'w').close()")


def case_of_the_name(folder: Path) -> Path:
    """torch looks entries up without regard to case."""
    evil = beside_a_layer(system(str(folder / MARK), name_of("os", "system")))
    path = folder / "model.pt"
    first, *rest = members()
    path.write_bytes(zipped([first, Member("archive/DATA.pkl", evil), *rest, Member("archive/version", b"3\n")]))
    return path


EXECUTION = (
    Trick("os.system", End.ACCUSED, payload(lambda mark: system(mark, name_of("os", "system"))), live=True),
    Trick("posix.system", End.ACCUSED, payload(lambda mark: system(mark, name_of("posix", "system"))), live=True),
    Trick(
        "os.system by STACK_GLOBAL", End.ACCUSED, payload(lambda mark: system(mark, dotted("os", "system"))), live=True
    ),
    Trick(
        "os.system by a computed name",
        End.ANY,
        payload(lambda mark: system(mark, text("os") + called(name_of("builtins", "str"), text("system")) + b"\x93")),
        live=True,
    ),
    Trick("os.system by INST", End.ACCUSED, payload(lambda mark: b"(" + touch(mark) + b"ios\nsystem\n", 2), live=True),
    Trick(
        "os.system by OBJ",
        End.ACCUSED,
        payload(lambda mark: b"(" + name_of("os", "system") + touch(mark) + b"o", 2),
        live=True,
    ),
    Trick(
        "subprocess.Popen by OBJ",
        End.ACCUSED,
        payload(lambda mark: b"(" + name_of("subprocess", "Popen") + listed(text("touch"), text(mark)) + b"o", 2),
        live=True,
    ),
    Trick("os.abort by INST without arguments", End.ACCUSED, payload(lambda _: b"(ios\nabort\n", 2)),
    Trick("os.abort by OBJ without arguments", End.ACCUSED, payload(lambda _: b"(cos\nabort\no", 2)),
    Trick(
        "subprocess.Popen by copyreg._reconstructor",
        End.ACCUSED,
        payload(
            lambda mark: called(
                name_of("copyreg", "_reconstructor"),
                name_of("subprocess", "Popen"),
                name_of("subprocess", "Popen"),
                listed(text("touch"), text(mark)),
            )
        ),
        live=True,
    ),
    Trick("subprocess.Popen by NEWOBJ", End.LAYERS, payload(lambda _: name_of("subprocess", "Popen") + b")\x81")),
    Trick("subprocess.Popen by NEWOBJ_EX", End.LAYERS, payload(lambda _: name_of("subprocess", "Popen") + b")}\x92")),
    Trick("NEWOBJ of a computed class", End.ACCUSED, payload(lambda _: b"cp\nf\n)R)\x81")),
    Trick(
        "BUILD with a __setstate__ of os.system",
        End.ACCUSED,
        payload(
            lambda mark: b"cp\nC\n)\x81}" + text("__setstate__") + name_of("os", "system") + b"sb" + touch(mark) + b"b"
        ),
    ),
    Trick(
        "BUILD on a class",
        End.ACCUSED,
        payload(
            lambda _: name_of("torch.nn", "Module") + b"N}" + text("__call__") + name_of("os", "system") + b"s\x86b"
        ),
    ),
    Trick("BUILD on a number", End.LAYERS, payload(lambda _: b"K\x01}b")),
    *(
        Trick(f"extension {number}", End.ACCUSED, payload(lambda _, code=code: code, 2))
        for number, code in ((1, b"\x82\x01"), (2, b"\x83\x01\x01"), (4, b"\x84\x01\x01\x01\x01"))
    ),
    Trick("eval", End.ACCUSED, payload(lambda mark: called(name_of("builtins", "eval"), python_call(mark))), live=True),
    Trick(
        "exec of Python 2",
        End.ACCUSED,
        payload(lambda mark: called(name_of("__builtin__", "eval"), python_call(mark)), 2),
        live=True,
    ),
    Trick(
        "os.system by getattr",
        End.ACCUSED,
        payload(
            lambda mark: called(
                called(
                    name_of("builtins", "getattr"),
                    called(name_of("importlib", "import_module"), text("os")),
                    text("system"),
                ),
                touch(mark),
            )
        ),
        live=True,
    ),
    Trick(
        "os.system by getattr of a class",
        End.ACCUSED,
        payload(
            lambda mark: called(
                called(name_of("builtins", "getattr"), name_of("random", "_os"), text("system")), touch(mark)
            )
        ),
        live=True,
    ),
    Trick(
        "pkgutil.resolve_name",
        End.ACCUSED,
        payload(lambda mark: called(called(name_of("pkgutil", "resolve_name"), text("os:system")), touch(mark))),
        live=True,
    ),
    Trick("runpy", End.ACCUSED, payload(lambda _: called(name_of("runpy", "run_path"), text("hostile_module.py")))),
    Trick(
        "timeit",
        End.ACCUSED,
        payload(
            lambda mark: called(
                name_of("timeit", "repeat"),
                python_call(mark),
                text("pass"),
                name_of("time", "perf_counter"),
                b"K\x01",
                b"K\x01",
            )
        ),
        live=True,
    ),
    Trick(
        "os.system through torch.serialization",
        End.ACCUSED,
        payload(lambda mark: system(mark, dotted("torch.serialization", "os.system"))),
        live=True,
    ),
    Trick(
        "os.system through torch.nn",
        End.ACCUSED,
        payload(lambda mark: system(mark, dotted("torch.nn", "parallel.distributed.os.system"))),
        live=True,
    ),
    Trick(
        "torch.hub.load through torch.nn",
        End.ACCUSED,
        payload(lambda _: called(dotted("torch.nn.modules.module", "torch.hub.load"), text("x"))),
    ),
    Trick(
        "os.system through random",
        End.ACCUSED,
        payload(lambda mark: system(mark, dotted("random", "_os.system"))),
        live=True,
    ),
    Trick(
        "os.system through argparse",
        End.ACCUSED,
        payload(lambda mark: system(mark, dotted("argparse", "_os.system"))),
        live=True,
    ),
    Trick(
        "os.system through uuid",
        End.ACCUSED,
        payload(lambda mark: system(mark, dotted("uuid", "os.system"))),
        live=True,
    ),
    Trick(
        "a command of uuid",
        End.ACCUSED,
        payload(lambda mark: called(name_of("uuid", "_get_command_stdout"), text("touch"), text(mark))),
    ),
    Trick(
        "exec of dataclasses",
        End.ACCUSED,
        payload(
            lambda mark: called(
                name_of("dataclasses", "_create_fn"),
                text("f"),
                listed(text(f"x=open({mark!r}, 'w').close()")),
                listed(text("pass")),
            )
        ),
    ),
    Trick(
        "eval of typing",
        End.ACCUSED,
        payload(
            lambda mark: called(
                name_of("typing", "_eval_type"), called(name_of("typing", "ForwardRef"), python_call(mark)), b"}", b"}"
            )
        ),
    ),
    Trick(
        "pathlib writes",
        End.ACCUSED,
        payload(lambda mark: called(dotted("pathlib", "Path.touch"), called(name_of("pathlib", "Path"), text(mark)))),
        live=True,
    ),
    Trick(
        "pathlib deletes",
        End.ACCUSED,
        payload(
            lambda mark: called(
                dotted("pathlib", "Path.unlink"), called(name_of("pathlib", "Path"), text(mark)), b"\x88"
            )
        ),
    ),
    Trick(
        "a pickle in the bytes of a storage",
        End.ACCUSED,
        payload(lambda mark: called(name_of("torch.storage", "_load_from_bytes"), nested_pickle(mark))),
        live=True,
    ),
    Trick(
        "the source text of a graph",
        End.ACCUSED,
        payload(lambda mark: called(name_of("torch.fx.graph_module", "_exec_with_source"), python_call(mark), b"}")),
        live=True,
    ),
    Trick("pandas.eval", End.ACCUSED, payload(lambda _: called(name_of("pandas", "eval"), text("1")))),
    Trick("pandas.read_pickle", End.ACCUSED, payload(lambda _: called(name_of("pandas", "read_pickle"), text("x")))),
    Trick(
        "hydra.utils.instantiate", End.ACCUSED, payload(lambda _: called(name_of("hydra.utils", "instantiate"), b"}"))
    ),
    Trick(
        "numpy.load through numpy.ma",
        End.ACCUSED,
        payload(lambda _: called(dotted("numpy.ma.core", "np.load"), text("x"))),
    ),
    Trick("a module that leaves a mark when imported", End.LAYERS, decoy, live=True),
    Trick(
        "a second pickle after the first",
        End.ANY,
        lambda folder: save(
            folder, beside_a_layer(b"N") + b"\x80\x02" + system(str(folder / MARK), name_of("os", "system")) + b"."
        ),
    ),
    Trick(
        "a payload that is popped",
        End.ACCUSED,
        payload(lambda mark: system(mark, name_of("os", "system")) + b"0N"),
        live=True,
    ),
    Trick("a payload in a legacy file", End.ACCUSED, legacy_with_payload("value"), live=True),
    *(
        Trick(f"a payload in the {part} of a legacy file", End.ACCUSED, legacy_with_payload(part), live=True)
        for part in ("magic number", "facts about the machine")
    ),
    Trick("a payload in the storage keys of a legacy file", End.ACCUSED, legacy_with_payload_in_keys, live=True),
    Trick("a second data.pkl in capitals", End.REFUSED, case_of_the_name, live=True),
)


# -- zip files


def patched(old: bytes, new: bytes) -> Write:
    return file(lambda: zipped(members()).replace(old, new))


def zip_after(start: bytes) -> Write:
    return file(lambda: start + zipped(members()))


def wide(
    count: int | None = None, size: int | None = None, start: int | None = None, end_at: int | None = None
) -> Write:
    """A file whose ZIP64 numbers lie."""

    def build() -> bytes:
        plain = zipped(members())
        at = plain.index(b"PK\1\2")
        length = plain.index(b"PK\5\6") - at
        lies = wide_table(
            3 if count is None else count,
            length if size is None else size,
            at if start is None else start,
            end_at=at + length if end_at is None else end_at,
        )
        return zipped(members(), before_end=lies, count=0xFFFF, table_size=0xFFFFFFFF, table_start=0xFFFFFFFF)

    return file(build)


ZIP_FILES = (
    Trick("a zip bomb", End.REFUSED, file(lambda: zipped(members(b"\x80\x04" + b"N" * 80 * MILLION + b".", method=8)))),
    Trick(
        "a zip bomb that says it has a kilobyte",
        End.REFUSED,
        file(lambda: zipped(members(b"\x80\x04" + b"N" * 80 * MILLION + b".", method=8, size=1000))),
    ),
    Trick(
        "a zip bomb that says it is empty",
        End.REFUSED,
        file(lambda: zipped(members(b"\x80\x04" + b"N" * 100 * MILLION + b".", method=8, size=0))),
    ),
    Trick("a pickle of nearly 64 MB of zeros", End.REFUSED, file(lambda: zipped(members(bytes(64 * 2**20), method=8)))),
    Trick("a size of 4 GB", End.REFUSED, file(lambda: zipped(members(size=2**32 - 2, compressed=2**32 - 2)))),
    Trick("a size larger than the data", End.REFUSED, file(lambda: zipped(members(method=8, size=5000)))),
    Trick(
        "data that do not unpack",
        End.REFUSED,
        file(
            lambda: zipped([Member("archive/data.pkl", b"\xff" * 50)]).replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x08\0")
        ),
    ),
    Trick("an unknown way to pack", End.REFUSED, file(lambda: zipped(members(method=99)))),
    Trick("the encrypted flag", End.REFUSED, file(lambda: zipped(members(flags=1)))),
    Trick(
        "entries that overlap", End.ANY, file(lambda: zipped([*members(), Member("archive/data/2", b"xx", offset=20)]))
    ),
    Trick(
        "all entries at one place",
        End.ANY,
        file(lambda: zipped([Member(f"archive/data/{n}", b"", offset=0) for n in range(50)] + members())),
    ),
    Trick("two entries of one name", End.REFUSED, file(lambda: zipped([*members(), *members()]))),
    Trick("two roots", End.REFUSED, file(lambda: zipped([*members(), Member("other/data.pkl", b"N.")]))),
    Trick(
        "a name that leads out",
        End.ANY,
        file(lambda: zipped([*members(), Member("../../evil", b"x"), Member("/etc/evil", b"x")])),
    ),
    Trick(
        "a root that leads out",
        End.ANY,
        file(
            lambda: zipped(
                [
                    Member("../data.pkl", beside_a_layer(b"N")),
                    Member("../data/0", NUMBERS["0"]),
                    Member("../data/1", NUMBERS["1"]),
                ]
            )
        ),
    ),
    Trick(
        "another name in the local header", End.REFUSED, file(lambda: zipped(members(local_name="archive/data.pk2")))
    ),
    Trick("a name of 64 kB", End.ANY, file(lambda: zipped([*members(), Member("x" * 65535, b"")]))),
    Trick(
        "200 names of 64 kB",
        End.ANY,
        file(lambda: zipped([*members(), *(Member(f"{n:05}" * 13107, b"") for n in range(200))])),
    ),
    Trick("a root of 64 kB", End.ANY, file(lambda: zipped([Member("x" * 65000 + "/data.pkl", beside_a_layer(b"N"))]))),
    Trick("names that are no text", End.ANY, file(lambda: zipped([*members(), Member("\udcff\udcfe\x1b[31m", b"")]))),
    Trick("an offset beyond the file", End.REFUSED, file(lambda: zipped(members(offset=10**9)))),
    Trick("a table of contents beyond the file", End.REFUSED, file(lambda: zipped(members(), table_start=10**9))),
    Trick("a table of contents of 4 GB", End.REFUSED, file(lambda: zipped(members(), table_size=2**32 - 2))),
    Trick("a table of contents of no bytes", End.REFUSED, file(lambda: zipped(members(), table_size=0))),
    Trick("65,534 entries announced", End.REFUSED, file(lambda: zipped(members(), count=65534))),
    Trick("no entries announced", End.REFUSED, file(lambda: zipped(members(), count=0))),
    Trick("100,000 empty entries", End.ANY, lambda folder: many_entries(folder, 100_000)),
    Trick("a comment of 64 kB", End.LAYERS, file(lambda: zipped(members(), comment=b"x" * 65535))),
    Trick(
        "a comment with an end in it",
        End.ANY,
        file(lambda: zipped(members(), comment=zipped([Member("archive/data.pkl", b"N.")]))),
    ),
    Trick("a comment longer than the file", End.ANY, file(lambda: zipped(members())[:-2] + b"\xff\xff")),
    Trick("honest ZIP64 numbers", End.LAYERS, wide()),
    Trick("a ZIP64 locator that leads nowhere", End.REFUSED, wide(end_at=2**63)),
    Trick("a ZIP64 locator that leads elsewhere", End.REFUSED, wide(end_at=0)),
    Trick("ZIP64: 2**64 - 1 entries", End.REFUSED, wide(count=2**64 - 1)),
    Trick("ZIP64: a table of 2**64 - 1 bytes", End.REFUSED, wide(size=2**64 - 1)),
    Trick("ZIP64: a table at 2**64 - 1", End.REFUSED, wide(start=2**64 - 1)),
    Trick(
        "ZIP64: sizes of 2**64 - 1",
        End.REFUSED,
        file(
            lambda: zipped(
                members(size=2**32 - 1, compressed=2**32 - 1, extra=struct.pack("<2H2Q", 1, 16, 2**64 - 1, 2**64 - 1))
            )
        ),
    ),
    Trick(
        "ZIP64: sizes that are missing",
        End.REFUSED,
        file(lambda: zipped(members(size=2**32 - 1, compressed=2**32 - 1, extra=b"\1\0\xff\xff"))),
    ),
    Trick("a zip file behind a pickle", End.ANY, zip_after(b"\x80\x02N.")),
    Trick(
        "a zip file behind a legacy file", End.LAYERS, file(lambda: legacy(beside_a_layer(b"N", 2)) + zipped(members()))
    ),
    Trick("a pickle behind the start of a zip file", End.REFUSED, file(lambda: b"PK\3\4" + beside_a_layer(b"N"))),
    Trick(
        "a TorchScript archive",
        End.ANY,
        file(lambda: zipped([*members(), Member("archive/constants.pkl", b"\x80\x02).")])),
    ),
    Trick(
        "a byteorder of a gigabyte",
        End.REFUSED,
        file(lambda: zipped([*members(), Member("archive/byteorder", b"little" * 10**4)])),
    ),
)


def many_entries(folder: Path, count: int) -> Path:
    """An archive of empty members, made by a plain loop: `zipped` adds bytes up, which takes long for so many."""
    names = [b"a/%d" % number for number in range(count)]
    local = b"".join(struct.pack("<4s5H3L2H", b"PK\3\4", 20, *(0,) * 7, len(name), 0) + name for name in names)
    table, offset = [], 0
    for name in names:
        table.append(struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *(0,) * 7, len(name), *(0,) * 5, offset) + name)
        offset += 30 + len(name)
    data = b"".join(table)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(data), len(local), 0)
    path = folder / "model.pt"
    path.write_bytes(local + data + wide_table(count, len(data), len(local), end_at=len(local) + len(data)) + end)
    return path


# -- names


def named(name: str) -> Write:
    return pickled(lambda: b"\x80\x02}(" + batchnorm(name) + b"u.")


def class_named(name: str) -> Write:
    return pickled(lambda: b"\x80\x04" + module(("torch.nn.modules.batchnorm", name), buffers=BUFFERS) + b".")


def below_a_group_named(name: str) -> Write:
    return pickled(lambda: b"\x80\x02}" + text(name) + b"}(" + batchnorm() + b"us.")


RED = "\x1b[31mred\x1b[0m"
ODD = {
    "Unicode": "сеть.層.🙂",
    "control characters": "a\0\x07\x08\r\nb\x7f\x9b31m",
    "ANSI escapes": RED,
    "a link of a terminal": "\x1b]8;;http://example.com\x07click\x1b]8;;\x07",
    "a lone surrogate": "a\ud800b",
    "rich markup": "[bold red]a[/bold red][/x][link=http://example.com]",
    "directional marks": "a\u202e\u2066b",
    "HTML": "<script>alert(1)</script>",
    "only spaces": "   ",
    "10,000 combining marks": "a" + "\u0301" * 10_000,
    "100,000 dots": "." * 100_000,
    "a megabyte": "x" * MILLION,
    "100,000 escapes": "\x1b" * 100_000,
}


def end_of_class(name: str) -> End:
    """A name of torch with dots leads through what its module imports, unless a class stands before them."""
    if len(name) > MAX_NAME_LENGTH:
        return End.REFUSED
    return End.ACCUSED if "." in name else End.LAYERS


NAMES = (
    *(
        Trick(f"a layer named by {what}", End.REFUSED if len(name) > LONGEST_PATH - 20 else End.LAYERS, named(name))
        for what, name in ODD.items()
    ),
    *(
        Trick(
            f"a group named by {what}",
            End.REFUSED if len(name) > LONGEST_PATH else End.LAYERS,
            below_a_group_named(name),
        )
        for what, name in ODD.items()
    ),
    *(Trick(f"a class named by {what}", end_of_class(name), class_named(name)) for what, name in ODD.items()),
    Trick(
        "a class with a Unicode name in protocol 3",  # torch.save writes 2, which has none; pickletools reads ASCII
        End.REFUSED,
        payload(lambda _: name_of("package", "Сеть") + b")\x81", 3),
    ),
    Trick("a storage key with escapes", End.REFUSED, with_mean(tensor(RED))),
    Trick("an unknown dtype with escapes", End.REFUSED, header(lambda: one_layer(dtype="\\u001b[31m"))),
    Trick(
        "metadata with escapes",
        End.LAYERS,
        header(lambda: b'{"__metadata__":{"\\u001b[31m":"\\u001b[31m"},' + one_layer()[1:]),
    ),
    Trick("a function with escapes in its name", End.LAYERS, payload(lambda _: called(name_of("package", RED), b"N"))),
    Trick(
        "a dtype of the meta device with escapes",
        End.LAYERS,
        with_mean(
            called(
                name_of("torch._utils", "_rebuild_meta_tensor_no_storage"),
                name_of("torch", RED),
                integers((1,)),
                b"\x89",
            )
        ),
    ),
    Trick(
        "a file with escapes in its name",
        End.LAYERS,
        lambda folder: save(folder, beside_a_layer(b"N")).rename(folder / f"{RED}.pt"),
    ),
    Trick(
        "a file whose name is no text",
        End.LAYERS,
        lambda folder: save(folder, beside_a_layer(b"N")).rename(folder / "a\udcff.pt"),
    ),
    Trick(
        "a file with a newline in its name",
        End.LAYERS,
        lambda folder: save(folder, beside_a_layer(b"N")).rename(folder / "a\nb.pt"),
    ),
)

TRICKS = (*BAD_INPUT, *TENSORS, *SAFETENSORS, *EXHAUSTION, *EXECUTION, *ZIP_FILES, *NAMES)


# -- the arena

# Seconds of processor time and MiB of memory after which a child is ended; the tests ask for less.
MOST_SECONDS = 35
MOST_MEMORY = 2048
# What reading a file never does.
FORBIDDEN_EVENTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "os.putenv",
    "subprocess.Popen",
    "socket.",
    "shutil.",
    "pickle.find_class",
    "ctypes.",
    "urllib.Request",
    "webbrowser.open",
    "tempfile.",
    "pty.spawn",
    "runpy.",
    "builtins.input",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a child: its exit code or the signal that ended it, what it wrote, did and used."""

    code: int
    signal: int
    stdout: str
    stderr: str
    forbidden: list[str]
    seconds: float
    mebibytes: float


def serve() -> None:
    """Runs `python -m bncheck` with the arguments of each order, one line of JSON each, until there are no more."""
    from bncheck.cli import main

    # Once here, so that each child finds what it needs imported.
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        for form in ("json", "text"):
            sys.argv = ["bncheck", "inspect", str(save(Path(folder), beside_a_layer(b"N"))), "--format", form]
            with suppress(SystemExit):
                main()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            run(order)
        _, status, usage = os.wait4(child, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": usage.ru_utime + usage.ru_stime,
            "mebibytes": usage.ru_maxrss / 1024,
        }
        print(json.dumps(answer), flush=True)


def run(order: Mapping[str, Any]) -> None:
    """The child: runs the command where the order says, and does not return."""
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(4 * MOST_SECONDS)
    os.chdir(order["folder"])
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[stream], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    seen: list[str] = []
    forbidden = os.open(order["forbidden"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        imports = event == "import" and str(arguments[0]).partition(".")[0] in ("hostile_module", "torch", "runpy")
        if writes or imports or event.startswith(FORBIDDEN_EVENTS):
            seen.append(event)
            os.write(forbidden, f"{event} {str(arguments)[:200]!r}\n".encode())

    sys.addaudithook(watch)
    sys.argv = ["bncheck", *order["arguments"]]
    code: object = 1
    try:
        from bncheck.cli import main

        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - it is shown, and the test fails
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
