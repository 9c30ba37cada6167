"""Loads an exported program (`.pt2`) onto any device, without unpickling anything in it.

`torch.export.load` unpickles the sample inputs, evaluates the expressions of dynamic shapes and makes Python code of
the graph; its documentation says never to load what one does not trust. So the archive is copied in memory first:
without sample inputs, with its devices replaced, and only if no pickle is left and every text of the graph is a plain
name or arithmetic. This keeps out what is known; it is no sandbox.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from bncheck.checkpoints.encodings.zip_archive import ZipArchive
from bncheck.checkpoints.formats.pt2.archive import CONSTANTS, MODELS, SAMPLE_INPUTS, WEIGHTS
from bncheck.errors import UsageError
from bncheck.evaluation.models.foreign import foreign_code
from bncheck.wording import quoted

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from bncheck.checkpoints.sources import Source

# Names, operators, shapes, equations of einsum: nothing that ends a string or calls a function.
PLAIN = re.compile(r"[\w.,:;/+*<>=#\[\] -]*")
# torch.ops are operators; what else torch holds may do anything.
TARGETS = re.compile(r"(torch\.ops|_operator|math|torch\.sym_\w+)(\.\w+)*")
EXPRESSIONS = {"expr_str", "guards_code"}
NESTED = {"in_spec", "out_spec", "context"}  # JSON in a string
SKIPPED = {"metadata"}  # stack traces and their like, which are only looked up
CALLED = {
    "Symbol", "Integer", "Float", "Rational", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv",
    "ModularIndexing", "Where", "PowByNatural", "FloatPow", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "TruncToFloat",
    "CeilToInt", "FloorToInt", "RoundToInt", "ToFloat", "LShift", "RShift", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And",
    "Or", "Not", "Abs", "abs", "max", "min", "size", "stride", "storage_offset", "dim",
}  # fmt: skip
ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Constant,
    ast.Attribute, ast.Subscript, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
LONGEST_EXPRESSION = 10_000
OPAQUE = "opaque_obj_"  # objects that torch unpickles without any restriction
CUSTOM = "custom_obj_"


class Refused(Exception):
    """What in an archive could run code."""


def load_program(path: Path, source: Source, device: torch.device, *, trusted: bool) -> ExportedProgram:
    """The program in a `.pt2` file, on the device, wherever it was exported.

    Raises:
        UsageError: the file could run code while it is loaded, and is not trusted.
        ModelError: torch cannot load it.
    """
    try:
        archive: Any = harmless_copy(source, device)
    except Refused as reason:
        if not trusted:
            raise UsageError(
                f"{path} could run code while it is loaded: {reason}",
                "If you trust whoever made it, add --trust-pickle, which allows that.",
            ) from None
        archive = path
    hint = "Export and save it again with the torch that is installed here."
    with warnings.catch_warnings(), foreign_code(f"{path} cannot be loaded", hint):
        warnings.simplefilter("ignore")
        return torch.export.load(archive)


def harmless_copy(source: Source, device: torch.device) -> io.BytesIO:
    """The archive with all devices replaced and without sample inputs. Raises Refused where code is left in it."""
    archive = ZipArchive(source)
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as new:
        for name, entry in archive.entries.items():
            inside = name.partition("/")[2]
            data = archive.read(name, entry.size)
            if inside.startswith(SAMPLE_INPUTS):
                data = b""
            elif inside.startswith((WEIGHTS, CONSTANTS, MODELS)) and name.endswith(".json"):
                values = json.loads(data, object_hook=Devices(device))
                check(values, label=inside)
                data = json.dumps(values).encode()
            elif inside.startswith((WEIGHTS, CONSTANTS)) and name.endswith(".pt"):
                raise Refused("its weights are pickled, as torch 2.8 and older did")
            new.writestr(name, data)
    if not any(name.partition("/")[2].startswith(MODELS) for name in archive.entries):
        raise Refused("it has no graph where torch 2.9 and later put it")
    copy.seek(0)
    return copy


class Devices:
    """Puts one device wherever JSON names one."""

    def __init__(self, device: torch.device) -> None:
        self.device = {"type": device.type, "index": device.index}

    def __call__(self, value: dict[str, Any]) -> dict[str, Any]:
        return self.device if value.keys() == self.device.keys() and isinstance(value["type"], str) else value


def check(value: object, label: str, key: str = "") -> None:
    """Refuses pickles, and texts that are more than their key needs."""
    if isinstance(value, dict):
        if value.get("use_pickle"):
            raise Refused(f"{label} has pickled tensors")
        for name, inner in value.items():
            if name not in SKIPPED:
                check(name, label)
                check(inner, label, name)
    elif isinstance(value, list):
        for item in value:
            check(item, label, key)
    elif isinstance(value, str):
        check_text(value, label, key)


def check_text(text: str, label: str, key: str) -> None:
    if key in NESTED and text[:1] in tuple('[{"'):
        check(json.loads(text), label, key)
        return
    if key in EXPRESSIONS:
        harmless = is_arithmetic(text)
    elif key == "target":
        harmless = bool(TARGETS.fullmatch(text))
    else:
        harmless = bool(PLAIN.fullmatch(text))
    if not harmless:
        raise Refused(f"{label} has {quoted(text)}")
    if key == "path_name" and text.startswith((OPAQUE, CUSTOM)):
        raise Refused(f"{label} has pickled objects")


def is_arithmetic(text: str) -> bool:
    """Whether an expression is made of names, numbers and the functions of symbolic shapes."""
    if len(text) > LONGEST_EXPRESSION:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        if not isinstance(node, ARITHMETIC):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not PLAIN.fullmatch(node.value):
            return False
        if isinstance(node, ast.Attribute) and node.attr not in CALLED:
            return False
        if isinstance(node, ast.Call):
            function = node.func
            if not isinstance(function, ast.Attribute) and not (
                isinstance(function, ast.Name) and function.id in CALLED
            ):
                return False
    return True


def input_tensors(program: ExportedProgram) -> list[torch.Tensor]:
    """What the program was exported for: a tensor without numbers for each input that is a tensor."""
    names = set(program.graph_signature.user_inputs)
    placeholders = [
        node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names
    ]
    return [value for value in placeholders if isinstance(value, torch.Tensor)]


def fixed_batch_size(program: ExportedProgram) -> int | None:
    """The only batch size that the program accepts; None if it takes any, or has no batches."""
    first = next((tensor for tensor in input_tensors(program) if tensor.dim()), None)
    size = None if first is None else first.shape[0]
    return size if isinstance(size, int) else None
