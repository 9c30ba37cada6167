"""The entries of an export archive: tables in JSON, weights, and pickles, which torch.export.load would unpickle."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bncheck.checkpoints.encodings.json import parse_json
from bncheck.checkpoints.encodings.pickles import MAX_BYTES, read_pickle
from bncheck.checkpoints.encodings.tensors import MAX_DIMENSIONS, is_count, strided_tensor
from bncheck.checkpoints.encodings.zip_archive import STORED, Entry, ZipArchive
from bncheck.checkpoints.sources.part import Part
from bncheck.errors import DAMAGED_HINT, UnreadableError, UnsupportedError
from bncheck.subjects.checkpoint import GlobalReference, Tensor
from bncheck.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

MARK = "archive_format"
# What torch wrote before it had this archive.
OLD_GRAPH = "serialized_exported_program.json"
MODELS = "models/"
WEIGHTS = "data/weights/"
CONSTANTS = "data/constants/"
SAMPLE_INPUTS = "data/sample_inputs/"
# In the folder of constants, the files of objects that are pickled without torch.save.
OPAQUE = "opaque_obj_"
SAVED_AGAIN = "With torch 2.9 or later: torch.export.save(torch.export.load(path), new_path)."
# A graph has about two kilobytes for each node, most of it stack traces.
MAX_JSON = 64 * 2**20
# An archive holds a pickle of the sample inputs of each model, and a few of objects that are no plain tensors.
MAX_PICKLES = 1000
# torch._export.serde.schema.ScalarType
DTYPE_NAMES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu",
    34: "uint32", 35: "uint64",
}  # fmt: skip
STRIDED_LAYOUT = 7


def is_mark(name: str) -> bool:
    return name == OLD_GRAPH or name.partition("/")[2] == MARK or name.endswith(f"/{MODELS}model.json")


class Archive:
    """The entries of an export archive by their names below its root folder."""

    def __init__(self, archive: ZipArchive) -> None:
        self.archive = archive
        self.source = archive.source
        roots = [name.removesuffix(MARK) for name in archive.entries if is_mark(name) and name.endswith(MARK)]
        self.root = roots[0] if roots else ""
        self.pickled: list[str] = []
        self.big_endian = archive.is_big_endian(self.root)

    def names(self, folder: str) -> list[str]:
        """The names of the entries in a folder, without it."""
        start = f"{self.root}{folder}"
        return [name.removeprefix(start) for name in self.archive.entries if name.startswith(start)]

    def models(self) -> list[str]:
        """The names of the exported programs."""
        name = self.source.name
        models = [entry.removesuffix(".json") for entry in self.names(MODELS) if entry.endswith(".json")]
        weights = set(self.names(WEIGHTS))
        old = not models and OLD_GRAPH in self.archive.entries
        if old or any(f"{model}.pt" in weights for model in models):
            raise UnsupportedError(
                f"{name} is in a layout that torch.export of torch 2.8 and older wrote, which is not read", SAVED_AGAIN
            )
        if not models:
            raise UnsupportedError(
                f"{name} is an archive of torch.export without an exported program, such as compiled code",
                "Give the file that torch.export.save wrote.",
            )
        return models

    def entry(self, name: str) -> Entry:
        entry = self.archive.entries.get(f"{self.root}{name}")
        if entry is None:
            raise UnreadableError(f"{self.source.name} misses its entry {quoted(name)}", DAMAGED_HINT)
        return entry

    def json(self, name: str) -> Json:
        entry = self.entry(name)
        label = f"{quoted(name)} in {self.source.name}"
        if entry.size > MAX_JSON:
            raise UnreadableError(
                f"{label} has {entry.size:,} bytes; at most {MAX_JSON:,} are read", "Check what the file holds."
            )
        return parse_json(self.archive.read(entry.name, MAX_JSON), label)

    def tensors(self, folder: str, config: str) -> dict[str, Tensor]:
        """The tensors that a table of contents of the archive lists, by name."""
        payloads = self.json(f"{folder}{config}").get("config")
        if not isinstance(payloads, dict):
            raise UnreadableError(f"{self.source.name} has no table in {quoted(config)}", DAMAGED_HINT)
        tensors = {}
        for name, payload in payloads.items():
            path = payload.get("path_name") if isinstance(payload, dict) else None
            # torch.export.load unpickles opaque objects whatever use_pickle says of them.
            if isinstance(path, str) and (payload.get("use_pickle") or path.startswith(OPAQUE)):
                self.pickled.append(f"{folder}{path}")
            tensor = self.tensor(folder, name, payload)
            if tensor:
                tensors[name] = tensor
        return tensors

    def tensor(self, folder: str, name: str, payload: object) -> Tensor | None:
        """The tensor of an entry of the table; None for an object of another kind."""
        label = f"{quoted(name)} in {self.source.name}"
        match payload:
            case {"tensor_meta": None}:
                return None
            case {
                "path_name": str(path),
                "use_pickle": bool(pickled),
                "tensor_meta": {
                    "dtype": int(code),
                    "layout": int(layout),
                    "sizes": list(sizes),
                    "strides": list(strides),
                    "storage_offset": offset,
                },
            } if len(sizes) <= MAX_DIMENSIONS and len(strides) <= MAX_DIMENSIONS:
                pass
            case _:
                raise UnreadableError(f"{label} has no dtype, shape or place", DAMAGED_HINT)
        dtype = DTYPE_NAMES.get(code, "unknown")
        entry = self.entry(f"{folder}{path}")
        shape = tuple(count(size, label) for size in sizes)
        holds_numbers = entry.size or 0 in shape
        if pickled or layout != STRIDED_LAYOUT or dtype == "unknown" or not holds_numbers:
            return Tensor(dtype, shape, None)  # a subclass of Tensor, a sparse one, or one without numbers
        return strided_tensor(
            label,
            dtype,
            shape,
            tuple(count(stride, label) for stride in strides),
            count(offset, label),
            entry.size,
            partial(self.archive.read_range, entry),
            big_endian=self.big_endian,
        )

    def globals(self) -> set[GlobalReference]:
        """What the pickles of the archive refer to: torch.export.load unpickles them, sample inputs included."""
        names = [*(f"{SAMPLE_INPUTS}{name}" for name in self.names(SAMPLE_INPUTS)), *self.pickled]
        if len(names) > MAX_PICKLES:
            raise UnreadableError(
                f"{self.source.name} holds more than {MAX_PICKLES:,} pickles", "Check what the file holds."
            )
        references: set[GlobalReference] = set()
        for name in names:
            entry = self.entry(name)
            opaque = name.startswith(f"{CONSTANTS}{OPAQUE}")
            for data in [self.archive.read(entry.name, MAX_BYTES)] if opaque else self.nested_pickles(entry):
                # Only the names matter here, so that storages need no meaning.
                label = f"{quoted(name)} in {self.source.name}"
                references |= read_pickle(data, label, {}, lambda _: None).globals
        return references

    def nested_pickles(self, entry: Entry) -> Iterator[bytes]:
        """The pickles of a file of torch.save that is an entry of the archive."""
        if entry.method != STORED:
            raise UnreadableError(f"{self.source.name} packs {quoted(entry.name)}, as torch never does", DAMAGED_HINT)
        nested = ZipArchive(Part(self.source, self.archive.start(entry), entry.size))
        for name in nested.entries:
            if name.endswith(".pkl"):
                yield nested.read(name, MAX_BYTES)


def count(value: object, label: str) -> int:
    match value:
        case {"as_int": int(number)} if is_count(number):
            return number
        case _:
            raise UnreadableError(f"{label} has an impossible shape, stride or offset", DAMAGED_HINT)
