"""The options of a command as the signature that typer reads: one parameter for each field."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bncheck.options.option import Panel, dashed, kind_of, option_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import Field

    from bncheck.options.option import Options

# What typer turns a text into; None stands for what is not said, so that a configuration may say it.
TYPES: dict[str, Any] = {
    "boolean": bool | None,
    "integer": int | None,
    "path": Path | None,
    "strings": list[str] | None,
    "paths": list[Path] | None,
}


def signature_of(kinds: Sequence[type[Options]]) -> inspect.Signature:
    """A parameter for each option that the command line can say, in the order of the panels."""
    order = list(Panel)
    held = [one for kind in kinds for one in fields(kind) if option_of(one).on_command_line]
    # In a panel, those that have a letter come first.
    held.sort(key=lambda one: (order.index(option_of(one).panel), len(option_of(one).flags) < 2))
    return inspect.Signature([parameter(one) for one in held])


def parameter(held: Field[Any]) -> inspect.Parameter:
    said = option_of(held)
    more: dict[str, Any] = {
        "help": f"{said.help}{shown_default(held)}",
        "metavar": said.metavar,
        "min": said.least,
        "show_default": False,
    }
    kind = type_of(held)
    default: Any = None
    info: Any
    if said.argument:
        required = not (said.metavar or "").startswith("[")
        kind, default = required_type(held) if required else kind, inspect.Parameter.empty if required else None
        info = typer.Argument(**more)
    else:
        flags = said.flags or (f"--{dashed(held.name)}",)
        panel = None if said.panel is Panel.WHAT else said.panel.value
        info = typer.Option(*flags, rich_help_panel=panel, **more)
    return inspect.Parameter(
        held.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def type_of(held: Field[Any]) -> Any:
    said = option_of(held)
    if said.choices:
        words = Enum(held.name, {word.upper(): word for word in said.choices})  # type: ignore[misc]
        return list[words] | None if is_repeatable(held) else words | None
    return TYPES.get("strings" if is_repeatable(held) and kind_of(held) == "other" else kind_of(held), str | None)


def is_repeatable(held: Field[Any]) -> bool:
    """Whether an option takes several values, one each time that it is given."""
    return held.default == ()


def required_type(held: Field[Any]) -> Any:
    return list[str] if is_repeatable(held) else str


def shown_default(held: Field[Any]) -> str:
    """What `--help` says of the default; typer sees None, since nothing is said."""
    silent = isinstance(held.default, bool) or held.default in (None, (), "")
    return "" if silent else f" Default: {held.default}."


def said_by(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the user said: the values of the options that were given."""
    return {name: plain(value) for name, value in arguments.items() if value is not None and value != []}


def plain(value: Any) -> Any:
    """The words of choices, not their members."""
    if isinstance(value, Enum):
        return value.value
    return [plain(item) for item in value] if isinstance(value, list) else value


def with_signature(function: Callable[..., None], signature: inspect.Signature) -> Callable[..., None]:
    """The function as typer reads it."""
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    return function
