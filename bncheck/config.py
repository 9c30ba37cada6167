"""The configuration: `[tool.bncheck]` of pyproject.toml, or bncheck.toml.

The options of the gate say what there is; reading, the JSON schema and `bncheck config` all follow them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from bncheck.errors import UsageError
from bncheck.judgement.policy import as_date
from bncheck.options.gating import GateOptions
from bncheck.options.option import Counted, dashed, kind_of, option_of
from bncheck.wording import nearest, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = "pyproject.toml"
OWN_FILE = "bncheck.toml"


KEYS: dict[str, Field[Any]] = {dashed(held.name): held for held in fields(GateOptions) if option_of(held).in_file}
# What a key was called once.
FORMER = {"ignore-rules": "ignore"}


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says: values by the name of their option."""

    values: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __getitem__(self, key: str) -> Any:
        """The value of a key, or its default."""
        held = KEYS[key]
        return self.values.get(held.name, held.default)

    def origin(self, key: str) -> str:
        """Where the value of a key comes from."""
        return str(self.path) if KEYS[key].name in self.values else "default"


def configured(folder: Path, file: str | os.PathLike[str] | None = None) -> Config:
    """The configuration of a folder: bncheck.toml, or pyproject.toml with [tool.bncheck], there or in a folder above.

    Args:
        folder: where the search starts.
        file: the file to read instead.

    Raises:
        UsageError: the file cannot be read, or a key or value is not one of those that there are.
    """
    found = (Path(file), parsed(Path(file))) if file else find(folder)
    if found is None:
        return Config()
    path, document = found
    table = table_of(path, document, asked=file is not None)
    table = with_present_names(table, path)
    check(table, path)
    return Config({KEYS[key].name: placed(KEYS[key], value, path.parent) for key, value in table.items()}, path)


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


def with_present_names(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The table with former names of keys replaced; said twice, a key is refused."""
    for former, present in FORMER.items():
        if former in table and present in table:
            raise UsageError(f"{path} has both {former} and {present}", f"Put all of it under {present}.")
    return {FORMER.get(key, key): value for key, value in table.items()}


# -- what is allowed


def check(table: Mapping[str, Any], path: Path) -> None:
    """Refuses keys that there are not, and values of another form."""
    for key, value in table.items():
        if key not in KEYS:
            raise UsageError(f"unknown key {quoted(key)} in {path}", nearest(key, KEYS, "`bncheck config --schema`"))
        complaint = misfit(value, schema_of(KEYS[key]))
        if complaint:
            raise UsageError(f"{key} in {path} {complaint}", f"{key}: {option_of(KEYS[key]).help}")


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
        # Of several forms, the one of its own type says best what is wrong.
        alike = [option for option in schema["anyOf"] if isinstance(value, KINDS[option["type"]])]
        complaints = [misfit(value, option) for option in alike or schema["anyOf"]]
        return None if None in complaints else complaints[0]
    if "enum" in schema:
        allowed = schema["enum"]
        return None if value in allowed else f"is {value!r}, and must be one of {', '.join(allowed)}"
    kind = schema["type"]
    if schema.get("format") == "date":
        return None if as_date(value) else f"is {value!r}, and must be a date: 2027-06-30"
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


def placed(held: Field[Any], value: Any, folder: Path) -> Any:
    """Paths seen from the folder of the configuration; everything else as it is."""
    match option_of(held).counted:
        case Counted.PATH:
            return [seen_from(item, folder) for item in value] if isinstance(value, list) else seen_from(value, folder)
        case Counted.CODE | Counted.DATA:
            return spec_seen_from(value, folder)
        case None:
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

SCHEMAS: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "string": {"type": "string"},
    "path": {"type": "string"},
    "strings": {"type": "array", "items": {"type": "string"}},
    "paths": {"type": "array", "items": {"type": "string"}},
}


def schema_of(held: Field[Any]) -> dict[str, Any]:
    """The JSON schema of the value of an option in a file."""
    said = option_of(held)
    found = dict(said.schema or SCHEMAS[kind_of(held)])
    return found if said.least is None else {**found, "minimum": said.least}


def schema() -> dict[str, Any]:
    """The JSON schema of [tool.bncheck]."""
    properties = {}
    for key, held in KEYS.items():
        described = {**schema_of(held), "description": option_of(held).help}
        if held.default not in (None, ()):
            described["default"] = held.default
        properties[key] = described
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "[tool.bncheck]",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
