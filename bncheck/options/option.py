"""An option as one field of a dataclass.

The field carries its type, default, bounds, help, metavar and panel. The command line, the configuration file with its
JSON schema, the keywords of the Python functions and the documentation follow from it, and all of them check a value
here. Types are real objects at run time: these files do without `from __future__ import annotations`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args

from bncheck.errors import UsageError
from bncheck.wording import nearest

StrPath = str | PathLike[str]


class Panel(Enum):
    """The parts of `--help`, in their order."""

    WHAT = "Arguments"
    MODEL = "Model"
    DATA = "Data"
    EXPERIMENT = "Experiment"
    JUDGEMENT = "Judgement"
    REPORT = "Report"


class Counted(Enum):
    """From where a configuration file counts the paths of an option."""

    PATH = "path"  # from its own folder
    CODE = "code"  # `file.py:callable` from its own folder; `module:callable` is no path
    DATA = "data"  # either of the two


class Option:
    """What stands in the metadata of a field.

    `flags` are the spellings on the command line where they are not `--` and the name of the field; `least` is the
    smallest number; `choices` are the only words. `schema` describes the value in a configuration file where its type
    does not; `in_file` and `on_command_line` say whether it can stand there. An `argument` has no name before it.
    """

    def __init__(
        self,
        help: str,
        panel: Panel,
        *,
        metavar: str | None = None,
        flags: tuple[str, ...] = (),
        least: int | None = None,
        choices: tuple[str, ...] = (),
        counted: Counted | None = None,
        schema: Mapping[str, Any] | None = None,
        in_file: bool = True,
        on_command_line: bool = True,
        argument: bool = False,
    ) -> None:
        self.help = help
        self.panel = panel
        self.metavar = metavar
        self.flags = flags
        self.least = least
        self.choices = choices
        self.counted = counted
        self.schema = schema
        self.in_file = in_file
        self.on_command_line = on_command_line
        self.argument = argument


def option(default: Any, help: str, panel: Panel, **more: Any) -> Any:
    """A field of a dataclass that is an option; `more` as `Option` takes it."""
    return field(default=default, metadata={"option": Option(help, panel, **more)})


class WrongOption(UsageError):
    """A value that an option does not take. Each door says it in its own words: this is that of Python."""

    def __init__(self, name: str, value: object, complaint: str, hint: str) -> None:
        super().__init__(f"{name}={value!r} {complaint}", hint)
        self.name = name
        self.value = value
        self.complaint = complaint


@dataclass(kw_only=True, eq=False, repr=False)
class Options:
    """What a command is asked for. Sequences become tuples, and paths `Path`, when it is made.

    Raises:
        WrongOption: a value is of another type, below the bound, or none of the choices.
    """

    def __post_init__(self) -> None:
        for held in fields(self):
            value = getattr(self, held.name)
            if value is not held.default and not (value is None and type(None) in get_args(held.type)):
                setattr(self, held.name, checked(held, value))
        self.check()

    def check(self) -> None:
        """Refuses texts that cannot be followed, before anything is done; WrongOption says which."""


Asked = TypeVar("Asked", bound=Options)


def option_of(held: "Field[Any]") -> Option:
    """What a field says of itself."""
    said: Option = held.metadata["option"]
    return said


def of_kind(kind: type[Options]) -> list["Field[Any]"]:
    """The options of a command, a panel after the other, each in the order in which they are declared."""
    order = list(Panel)
    return sorted(fields(kind), key=lambda held: order.index(option_of(held).panel))


def dashed(name: str) -> str:
    """`batch_size` as the command line and the configuration have it; `from_` is `from`."""
    return name.rstrip("_").replace("_", "-")


def make(kind: type[Asked], *said: Mapping[str, Any]) -> Asked:
    """The options, each as the first that says something of it has it.

    Args:
        kind: which options there are.
        said: values by the name of their field; what is an option of others is passed over.
    """
    known = {held.name for held in fields(kind)}
    values: dict[str, Any] = {}
    for one in reversed(said):
        values |= {name: value for name, value in one.items() if name in known}
    return kind(**values)


# -- what is allowed


def checked(held: "Field[Any]", value: Any) -> Any:
    """The value in the type of its field."""
    said = option_of(held)
    if said.choices:
        words = value if isinstance(value, (list, tuple)) else [value]
        wrong = next((word for word in words if word not in said.choices), None)
        complaint = None if wrong is None else f"must be one of {', '.join(said.choices)}"
        allowed(held, value, complaint, nearest(str(wrong), said.choices, ", ".join(said.choices)))
    match kind_of(held):
        case "boolean":
            complaint = None if isinstance(value, bool) else "must be True or False"
        case "integer":
            complaint = wrong_number(value, said.least)
        case "string":
            complaint = None if isinstance(value, str) else "must be a text"
        case "path":
            complaint = None if isinstance(value, (str, PathLike)) else "must be a path"
            value = value if complaint else Path(value)
        case "strings":
            value, complaint = sequence_of(value, str, "texts")
        case "paths":
            value, complaint = sequence_of(value, (str, PathLike), "paths")
            value = value if complaint else tuple(map(Path, value))
        case _:
            complaint = None
    return allowed(held, value, complaint, said.help)


def allowed(held: "Field[Any]", value: Any, complaint: str | None, hint: str) -> Any:
    if complaint:
        raise WrongOption(held.name, value, complaint, hint)
    return value


def wrong_number(value: object, least: int | None) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return "must be a whole number"
    return f"must be at least {least}" if least is not None and value < least else None


def sequence_of(value: Any, kind: type | tuple[type, ...], words: str) -> tuple[Any, str | None]:
    """A tuple of what a sequence holds; one alone is a sequence of one."""
    if isinstance(value, kind):
        return (value,), None
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        return value, f"must be a list of {words}"
    items = tuple(value)
    return items, None if all(isinstance(item, kind) for item in items) else f"must be a list of {words}"


KINDS: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    int | None: "integer",
    str: "string",
    str | None: "string",
    Sequence[str]: "strings",
    StrPath: "path",
    StrPath | None: "path",
    Sequence[StrPath]: "paths",
}


def kind_of(held: "Field[Any]") -> str:
    """`boolean`, `integer`, `string`, `path`, `strings`, `paths`; `other` is checked by the options themselves."""
    return KINDS.get(held.type, "other")
