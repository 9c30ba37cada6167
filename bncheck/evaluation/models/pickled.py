"""A pickled module: what trusting it means, and how it is unpickled once the user does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bncheck.errors import ModelError, UsageError
from bncheck.evaluation.models.foreign import SCRIPT, as_main, foreign_code, importable
from bncheck.wording import few, quoted

if TYPE_CHECKING:
    from bncheck.options.model import ModelOptions
    from bncheck.subjects.checkpoint import Checkpoint, Group

NAMED_GLOBALS = 5
USUAL = ("torch.", "collections.OrderedDict", "__builtin__.set", "builtins.set")
# Where modules are looked for in what a pickle holds; deeper than anybody saves them.
MAX_DEPTH = 20


def untrusted(path: Path, checkpoint: Checkpoint) -> UsageError:
    """Says what `--trust-pickle` allows. What not every module refers to comes first."""
    names = {reference.path for reference in checkpoint.globals}
    ordered = sorted(names, key=lambda name: (name.startswith(USUAL), name))
    return UsageError(
        f"{path} is a pickled module: loading it runs code that the file names ({few(ordered, NAMED_GLOBALS)})",
        "If you trust whoever made it, add --trust-pickle, which allows that. Or name the network with --model: "
        "then only numbers are read.",
    )


def unpickled(path: Path, checkpoint: Checkpoint, group: Group, options: ModelOptions) -> torch.nn.Module:
    """The module of the group, from a file that the user trusts."""
    hint = "Its classes must be importable: see --python-path; the current directory is."
    if options.main is None and any(reference.module == SCRIPT for reference in checkpoint.globals):
        hint = "It was saved by a script that defines its classes: give the script with --main train.py."
    main = None if options.main is None else Path(options.main)
    folders = [*options.python_path, *([main.parent] if main else [])]
    with (
        importable(folders),
        as_main(main),
        warnings.catch_warnings(),
        foreign_code(f"{path} cannot be unpickled", hint),
    ):
        warnings.simplefilter("ignore")  # that the source of a class has changed
        value = torch.load(path, map_location="cpu", weights_only=False)  # noqa: TID251 - the user trusts it
    modules = modules_in(value)
    if group.name not in modules and len(modules) != 1:
        raise ModelError(f"{path} has no module at {quoted(group.name)}", "Save the module alone, with torch.save.")
    return modules[group.name] if group.name in modules else next(iter(modules.values()))


def modules_in(value: object) -> dict[str, torch.nn.Module]:
    """The modules in what a file holds, by the names that the reader of the file gives their places."""
    modules: dict[str, torch.nn.Module] = {}
    seen: set[int] = set()

    def visit(met: object, name: str, depth: int) -> None:
        if isinstance(met, torch.nn.Module):
            modules[name] = met
            return
        if depth > MAX_DEPTH or id(met) in seen or isinstance(met, (type, torch.Tensor)):
            return
        seen.add(id(met))
        parts: Any = ()
        if isinstance(met, dict):
            parts = met.items()
        elif isinstance(met, (list, tuple)):
            parts = enumerate(met)
        elif hasattr(met, "__dict__"):
            parts = vars(met).items()
        for part, inner in list(parts):
            visit(inner, f"{name}.{part}" if name else str(part), depth + 1)

    visit(value, "", 0)
    return modules
