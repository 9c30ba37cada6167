"""The modules of a TorchScript archive, in the form in which torch pickles an nn.Module."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.modules import TORCH_BATCHNORM, items
from bncheck.checkpoints.contents.state_dicts import COUNTER, TENSORS
from bncheck.checkpoints.contents.torch_objects import TensorRecord
from bncheck.checkpoints.encodings.pickles import Dictionary, Global, Object
from bncheck.checkpoints.formats.torchscript.code import Attribute, ClassCode, Value
from bncheck.errors import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Mapping

CLASSES = "__torch__"
# Classes of one name are told apart by a part like "___torch_mangle_7".
MANGLE = re.compile(r"___torch_mangle_\d+\.")
MAX_DEPTH = 1000

Codes = dict[str, ClassCode]


@dataclass(frozen=True, slots=True)
class Tree:
    """The modules of the archive in the form in which torch pickles an nn.Module."""

    root: Object
    codes: Mapping[int, ClassCode]  # by the identity of the module
    class_paths: Mapping[int, str]  # with the part that tells classes of one name apart


def tree_of(script_root: Object, codes: Codes, source_name: str) -> Tree:
    """Modules with `_buffers` and `_modules`, which TorchScript keeps among the other attributes."""
    made = {id(script_root): inert_module(script_root)}
    code_of: dict[int, ClassCode] = {}
    class_paths: dict[int, str] = {}
    seen: set[int] = set()
    waiting: list[tuple[Object, int]] = [(script_root, 0)]
    while waiting:
        original, depth = waiting.pop()
        if id(original) in seen:
            continue
        seen.add(id(original))
        if depth > MAX_DEPTH:
            raise UnreadableError(
                f"{source_name} nests its modules more than {MAX_DEPTH:,} levels deep", "Check what the file holds."
            )
        module = made[id(original)]
        code = codes.get(original.class_path or "", ClassCode())
        code_of[id(module)] = code
        class_paths[id(module)] = original.class_path or ""
        state = module.state
        assert isinstance(state, Dictionary)
        buffers, modules = Dictionary(), Dictionary()
        state.update(code.constants)
        state["_buffers"], state["_modules"] = buffers, modules
        children: list[Object] = []
        for name, value in items(original.state):
            if isinstance(value, TensorRecord) or (value is None and name in (*TENSORS, COUNTER)):
                buffers[name] = value
            elif isinstance(value, Object) and is_script_module(value):
                modules[name] = made.setdefault(id(value), inert_module(value))
                children.append(value)
            elif name not in ("_parameters", "_buffers", "_modules"):
                state[name] = value
        waiting.extend((child, depth + 1) for child in reversed(children))
    return Tree(made[id(script_root)], code_of, class_paths)


def inert_module(original: Object) -> Object:
    """A module of the class that was scripted or traced, `torch.nn.Linear` for `__torch__.torch.nn.Linear`."""
    path = MANGLE.sub("", original.class_path or "")
    inner = path.removeprefix(f"{CLASSES}.")
    module, _, name = inner.rpartition(".")
    made = Object(Global(module or "__main__", name), ())
    made.state = Dictionary()
    return made


def child_of(module: Object, name: str) -> Object | None:
    children = part_of(module, "_modules")
    child = children.get(name)
    return child if isinstance(child, Object) else None


def part_of(module: Object, name: str) -> Dictionary:
    part = module.state.get(name) if isinstance(module.state, Dictionary) else None
    return part if isinstance(part, Dictionary) else Dictionary()


def holder_of(value: Value, module: Object) -> tuple[Object, str] | None:
    """The module that holds an attribute, and the attribute's name in it."""
    if not isinstance(value, Attribute) or not value.path:
        return None
    holder: Object | None = module
    for name in value.path[:-1]:
        holder = child_of(holder, name) if holder else None
    return (holder, value.path[-1]) if holder else None


def is_script_module(value: object) -> bool:
    """A module; objects of other classes of TorchScript hold no tensors that would make a layer of them."""
    return (
        isinstance(value, Object)
        and isinstance(value.state, Dictionary)
        and (value.class_path or "").startswith(f"{CLASSES}.")
    )


def is_of_torch(module: Object) -> bool:
    return (module.class_path or "").startswith(TORCH_BATCHNORM)
