"""`[tool.bncheck]` in pyproject.toml: what the commands need not be told each time."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bncheck.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

FILE = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Config:
    """What the project says. Paths are relative to the folder of the file."""

    checkpoint: str | None = None


def configured(folder: Path) -> Config:
    """The configuration of a folder, or of the nearest one above it that has a pyproject.toml.

    Raises:
        UsageError: the file cannot be read, or a value has the wrong type.
    """
    path = next((place / FILE for place in (folder, *folder.parents) if (place / FILE).is_file()), None)
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            table = tomllib.load(file).get("tool", {}).get("bncheck", {})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "Mend the file.") from None
    checkpoint = table.get("checkpoint")
    if checkpoint is not None and not isinstance(checkpoint, str):
        raise UsageError(f"checkpoint in {path} is not a path", 'Write checkpoint = "release/model.pt".')
    return Config(str(path.parent / checkpoint) if checkpoint else None)
