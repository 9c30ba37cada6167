"""Runs the code that the user named, and only what they named: imports it, calls it, turns its errors into ours."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bncheck.errors import BncheckError, ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.options.option import StrPath

SCRIPT = "__main__"  # what a pickle calls the script that it was saved from


@contextlib.contextmanager
def foreign_code(failure: str, hint: str) -> Iterator[None]:
    """Around code that is not ours: what it prints goes to stderr, what it raises becomes a ModelError.

    Args:
        failure: how the message starts, "--model net:Net fails", say.
        hint: what the user can do.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except BncheckError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{failure}: {described(error)}", hint) from error


def described(error: BaseException) -> str:
    """Type and message in one line. The traceback of TorchScript ends with what matters, other texts start with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines[: 2 if lines[0].endswith(':') else 1])}"


@contextlib.contextmanager
def importable(folders: Sequence[StrPath]) -> Iterator[None]:
    """Makes the folders and the current directory importable: a console script does not see the latter by itself."""
    before = list(sys.path)
    sys.path[:0] = [str(Path(folder).resolve()) for folder in folders] + [str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def load_callable(spec: str, option: str = "--model") -> Any:
    """What `module:name` or `file.py:name` refers to; `option` is where the user gave it."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(
            f"{option} {spec} does not name a callable", "Write module:callable or path/to/file.py:callable."
        )
    hint = "Check the name, and --python-path; the current directory is importable."
    with foreign_code(f"{option} {spec} cannot be loaded", hint):
        named: Any = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        for part in name.split("."):
            named = getattr(named, part)
    return named


def load_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles look their module up there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def as_main(path: Path | None) -> Iterator[None]:
    """While it lasts, `__main__` has what a script defines. The script is not run as a program."""
    if path is None:
        yield
        return
    with foreign_code(f"--main {path} cannot be loaded", "Give the script that defines the classes of the file."):
        defined = {name: value for name, value in vars(load_file(path)).items() if not name.startswith("__")}
    main = vars(sys.modules[SCRIPT])
    before = {name: main[name] for name in defined if name in main}
    main.update(defined)
    try:
        yield
    finally:
        for name in defined:
            main.pop(name, None)
        main.update(before)


def build(named: Any, spec: str, arguments: dict[str, Any]) -> tuple[torch.nn.Module, str | None]:
    """The module, without memory for its numbers where its constructor allows that, and a note where not."""
    note = None
    try:
        with torch.device("meta"):
            made = construct(named, spec, arguments)
    except ModelError as error:  # constructors that read numbers fail on the meta device
        made = construct(named, spec, arguments)
        note = f"{spec} was built on the CPU: on the meta device it raises {type(error.__cause__).__name__}"
    return made, note


def construct(named: Any, spec: str, arguments: dict[str, Any]) -> torch.nn.Module:
    """The module that a class or function makes, as it makes it; an instance is taken as it is."""
    if isinstance(named, torch.nn.Module):
        return named
    with foreign_code(f"--model {spec} fails", "Pass what it needs with --model-arg NAME=VALUE."):
        made = named(**arguments)
    if not isinstance(made, torch.nn.Module):
        raise ModelError(
            f"--model {spec} gives a {type(made).__name__}, not a torch.nn.Module",
            "Name a class or a factory function.",
        )
    return made
