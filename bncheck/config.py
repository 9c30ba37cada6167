"""The configuration: `[tool.bncheck]` of pyproject.toml, or bncheck.toml.

One table of keys says what there is; reading, the JSON schema and `bncheck config` all follow it.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bncheck.errors import UsageError
from bncheck.wording import nearest, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = "pyproject.toml"
OWN_FILE = "bncheck.toml"
SEVERITIES = ("note", "warning", "error")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the configuration: its JSON schema without the description, its meaning, its default."""

    schema: Mapping[str, Any]
    meaning: str
    default: Any = None


STRING = {"type": "string"}
INTEGER = {"type": "integer", "minimum": 1}
BOOLEAN = {"type": "boolean"}
STRINGS = {"type": "array", "items": STRING}
NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
IGNORE = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "rule": STRING,
            "layer": STRING,
            "reason": {"type": "string", "minLength": 1},
            "expires": {"type": "string", "format": "date"},
        },
        "required": ["rule", "reason"],
        "additionalProperties": False,
    },
}
KEYS: dict[str, Key] = {
    "checkpoint": Key({"anyOf": [STRING, STRINGS]}, "what to examine: paths, folders or patterns"),
    "model": Key(STRING, "the architecture of a state_dict: module:callable or file.py:callable"),
    "model-args": Key({"type": "object"}, "arguments for the callable, by name", {}),
    "trust-pickle": Key(BOOLEAN, "whether a whole module may be unpickled, which runs whatever the file says", False),
    "evaluator": Key(STRING, "your own evaluation, which is watched: module:function"),
    "main": Key(STRING, "the script whose classes a pickle calls __main__.Net"),
    "python-path": Key(STRINGS, "folders to import from, besides the current one", []),
    "group": Key(STRING, "which state dict or module of the file: a name or glob"),
    "data": Key(STRING, "what drift and repeat run on: a folder, a file, or module:callable"),
    "input-key": Key(STRINGS, "the arrays or keys that the model takes", []),
    "size": Key(STRING, "size of the image that the model sees: 224 or 224x160"),
    "resize": Key(INTEGER, "length of the shorter side before size is cut out"),
    "mean": Key(NUMBERS, "subtracted from pixels between 0 and 1"),
    "std": Key(NUMBERS, "what is left is divided by these"),
    "grayscale": Key(BOOLEAN, "images of one channel", False),
    "channels-last": Key(BOOLEAN, "images of shape (N, H, W, C)", False),
    "limit": Key(INTEGER, "samples to read, and no more"),
    "batch-size": Key(INTEGER, "samples in a batch", 32),
    "workers": Key({"type": "integer", "minimum": 0}, "threads that decode images ahead", 2),
    "skip-unreadable": Key(BOOLEAN, "leave out images that cannot be read", False),
    "in-distribution": Key(BOOLEAN, "the data are like those of the training: misfits are errors", False),
    "device": Key(STRING, "auto, cpu, cuda, cuda:1, mps", "auto"),
    "dtype": Key(STRING, "float32, float64, bfloat16 or float16"),
    "threads": Key(INTEGER, "threads of the CPU"),
    "runs": Key({"type": "integer", "minimum": 2}, "how often repeat evaluates the same batches", 2),
    "reference": Key(STRING, "a checkpoint to compare with: diff"),
    "select": Key(STRINGS, "the only rules to ask: ids or globs", []),
    "ignore-rules": Key(STRINGS, "rules to leave out altogether: ids or globs", []),
    "fail-on": Key({"enum": [*SEVERITIES, "never"]}, "the severity from which on the gate fails", "warning"),
    "require": Key(STRINGS, "rules that must be decided: undecided, the gate is inconclusive", []),
    "require-batchnorm": Key(BOOLEAN, "whether a checkpoint without BatchNorm is inconclusive", True),
    "severity": Key(
        {"type": "object", "additionalProperties": {"enum": list(SEVERITIES)}}, "other severities, by rule", {}
    ),
    "ignore": Key(IGNORE, "findings to suppress: rule, layer (a glob), reason, expires", []),
    "baseline": Key(STRING, "a file of known findings, written by gate --write-baseline"),
}
# Paths are relative to the folder of the configuration.
PATHS = ("checkpoint", "reference", "baseline", "main", "python-path")


@dataclass(frozen=True, slots=True)
class Config:
    """Values by key, and where each came from: a file, "command line" or "default"."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def __getitem__(self, key: str) -> Any:
        value = self.values.get(key)
        return KEYS[key].default if value is None else value

    def origin(self, key: str) -> str:
        return self.origins.get(key, "default")

    def with_options(self, given: Mapping[str, Any]) -> Config:
        """The same with what the command line says instead, where it says something."""
        said = {key: value for key, value in given.items() if value not in (None, [], ())}
        return Config({**self.values, **said}, {**self.origins, **dict.fromkeys(said, "command line")}, self.path)


def configured(folder: Path, file: Path | None = None) -> Config:
    """The configuration of a folder: bncheck.toml, or pyproject.toml with [tool.bncheck], there or in a folder above.

    Args:
        folder: where the search starts.
        file: the file to read instead.

    Raises:
        UsageError: the file cannot be read, or a key or value is not one of those that there are.
    """
    found = (file, parsed(file)) if file else find(folder)
    if found is None:
        return Config()
    path, document = found
    table = table_of(path, document, asked=file is not None)
    check(table, path)
    values = {key: normalised(key, value, path.parent) for key, value in table.items()}
    return Config(values, dict.fromkeys(values, str(path)), path)


def find(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The nearest file with a configuration, and what it holds."""
    for place in (folder, *folder.parents):
        if (place / OWN_FILE).is_file():
            return place / OWN_FILE, parsed(place / OWN_FILE)
        if (place / PYPROJECT).is_file():
            document = parsed(place / PYPROJECT)
            if "bncheck" in tools_of(document):
                return place / PYPROJECT, document
    return None


def table_of(path: Path, document: dict[str, Any], *, asked: bool) -> dict[str, Any]:
    """The table of bncheck in what a file holds."""
    if path.name != PYPROJECT and "tool" not in document:
        return document
    table = tools_of(document).get("bncheck")
    if table is None and asked:
        raise UsageError(f"{path} has no [tool.bncheck]", "Add the table, or name another file with --config.")
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"tool.bncheck in {path} is no table", "Write [tool.bncheck] and its keys below.")
    return table or {}


def tools_of(document: dict[str, Any]) -> dict[str, Any]:
    """The table `tool`; empty where that is something else, which is for others to complain about."""
    tools = document.get("tool")
    return tools if isinstance(tools, dict) else {}


def parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "Mend the file, or name another with --config.") from None


# -- what is allowed


def check(table: Mapping[str, Any], path: Path) -> None:
    """Refuses keys that there are not, and values of another form."""
    for key, value in table.items():
        if key not in KEYS:
            raise UsageError(f"unknown key {quoted(key)} in {path}", nearest(key, KEYS, "`bncheck config --schema`"))
        complaint = misfit(value, KEYS[key].schema)
        if complaint:
            raise UsageError(f"{key} in {path} {complaint}", f"{key}: {KEYS[key].meaning}.")


KINDS: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def misfit(value: Any, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a value, by the part of JSON Schema that KEYS uses; None if nothing is."""
    if "anyOf" in schema:
        complaints = [misfit(value, option) for option in schema["anyOf"]]
        return None if None in complaints else complaints[0]
    if "enum" in schema:
        allowed = schema["enum"]
        return None if value in allowed else f"is {value!r}, and must be one of {', '.join(allowed)}"
    kind = schema["type"]
    if schema.get("format") == "date":
        return None if isinstance(as_date(value), datetime.date) else f"is {value!r}, and must be a date: 2027-06-30"
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"is {value!r}, and must be {'an' if kind[0] in 'aio' else 'a'} {kind}"
    if kind in ("integer", "number") and value < schema.get("minimum", value):
        return f"is {value!r}, and must be at least {schema['minimum']}"
    if kind in ("string", "array") and len(value) < schema.get("minLength", schema.get("minItems", 0)):
        return "is empty"
    if kind == "array":
        return next((found for item in value if (found := misfit(item, schema["items"]))), None)
    if kind == "object":
        return misfit_of_table(value, schema)
    return None


def misfit_of_table(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            return f"has an entry without {name}"
    for name, held in value.items():
        if name in properties:
            complaint = misfit(held, properties[name])
        elif others is False:
            return f"has an entry with the unknown key {name!r}; {nearest(name, properties, ', '.join(properties))}"
        else:
            complaint = None if others is True else misfit(held, others)
        if complaint:
            return f"has {name!r}, which {complaint}"
    return None


def as_date(value: Any) -> datetime.date | None:
    """A TOML date, or a text of one."""
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def normalised(key: str, value: Any, folder: Path) -> Any:
    """Paths seen from the folder of the configuration; everything else as it is."""
    if key in PATHS:
        return [seen_from(item, folder) for item in value] if isinstance(value, list) else seen_from(value, folder)
    if key in ("model", "evaluator", "data"):
        return spec_seen_from(value, folder)
    return value


def seen_from(path: str, folder: Path) -> str:
    """Seen from where the command runs, as short as that is."""
    whole = str(folder / path)
    short = os.path.relpath(whole)
    return whole if short.startswith(os.pardir) or Path(path).is_absolute() else short


def spec_seen_from(spec: str, folder: Path) -> str:
    """`file.py:callable` and folders of data are paths; `module:callable` is not."""
    place, colon, name = spec.rpartition(":")
    if colon and place.endswith(".py"):
        return f"{seen_from(place, folder)}:{name}"
    return spec if colon and not (folder / spec).exists() else seen_from(spec, folder)


# -- what is said of it


def schema() -> dict[str, Any]:
    """The JSON schema of [tool.bncheck]."""
    properties = {}
    for name, key in KEYS.items():
        described = {**key.schema, "description": key.meaning}
        if key.default not in (None, [], {}):
            described["default"] = key.default
        properties[name] = described
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "[tool.bncheck]",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
