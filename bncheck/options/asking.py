"""What is judged, by which rules, and from when on a run fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bncheck.findings.rule import Severity
from bncheck.options.model import Architecture
from bncheck.options.option import Options, Panel, StrPath, WrongOption, option

NEVER = "never"
LEVELS = ("error", "warning", "note", NEVER)
FAIL_ON = "Fail from this severity on: error, warning, note, never."


@dataclass(kw_only=True, eq=False, repr=False)
class Asking(Options):
    """Which rules are asked, and what fails."""

    fail_on: str | None = option(
        "error", FAIL_ON, Panel.JUDGEMENT, metavar="LEVEL", choices=LEVELS, schema={"enum": list(LEVELS)}
    )
    select: Sequence[str] = option((), "Only these rules: ids or globs; may repeat.", Panel.JUDGEMENT, metavar="RULE")
    ignore: Sequence[str] = option((), "Not these rules: ids or globs; may repeat.", Panel.JUDGEMENT, metavar="RULE")

    @property
    def threshold(self) -> Severity | None:
        """The severity from which on a finding fails its input; None for never."""
        return None if self.fail_on in (None, NEVER) else Severity(self.fail_on)


@dataclass(kw_only=True, eq=False, repr=False)
class Narrowing(Options):
    """Which layers of a file are looked at."""

    group: Sequence[str] = option(
        (), "Only these state dicts (model, ema, ...); may repeat.", Panel.WHAT, metavar="GLOB"
    )
    kind: Sequence[str] = option((), "Only layers of this kind: BatchNorm2d; may repeat.", Panel.WHAT, metavar="GLOB")
    layer: Sequence[str] = option((), "Only layers of this name; may repeat.", Panel.WHAT, metavar="GLOB")


@dataclass(kw_only=True, eq=False, repr=False)
class Files(Options):
    """The checkpoints that are examined."""

    paths: Sequence[StrPath] = option(
        (), "Checkpoints, folders to search, or patterns.", Panel.WHAT, metavar="PATH...", argument=True
    )


@dataclass(kw_only=True, eq=False, repr=False)
class InspectOptions(Architecture, Narrowing, Asking):
    """The options of `inspect`."""

    deep: bool = option(False, "Ask the rules that read more of the file, too.", Panel.JUDGEMENT)


@dataclass(kw_only=True, eq=False, repr=False)
class TwoFiles(Options):
    """The checkpoints that are compared."""

    before: StrPath = option("", "The earlier checkpoint.", Panel.WHAT, metavar="BEFORE", argument=True)
    after: Sequence[StrPath] = option(
        (),
        "The later one; or several, such as the ranks of a run.",
        Panel.WHAT,
        metavar="AFTER...",
        argument=True,
    )


@dataclass(kw_only=True, eq=False, repr=False)
class DiffOptions(Asking):
    """The options of `diff`."""

    before_group: Sequence[str] = option(
        (), "Only these state dicts of BEFORE; may repeat.", Panel.WHAT, metavar="GLOB"
    )
    after_group: Sequence[str] = option((), "Only these state dicts of AFTER; may repeat.", Panel.WHAT, metavar="GLOB")
    map: Mapping[str, str] | Sequence[str] = option(
        (), "Names that begin with FROM in BEFORE begin with TO in AFTER.", Panel.WHAT, metavar="FROM=TO"
    )

    def check(self) -> None:
        super().check()
        _ = self.prefixes

    @property
    def prefixes(self) -> tuple[tuple[str, str], ...]:
        """`map`: a prefix of names in the first file, and what stands for it in the second.

        Raises:
            WrongOption: a text has no `=`.
        """
        if isinstance(self.map, Mapping):
            return tuple(self.map.items())
        return tuple(map(mapped, (self.map,) if isinstance(self.map, str) else self.map))


def mapped(text: str) -> tuple[str, str]:
    """`model_A.=` and its like."""
    before, equals, after = text.partition("=")
    if not equals:
        hint = "Write --map FROM=TO; either may be empty, as in --map =model."
        raise WrongOption("map", text, "has no '='", hint)
    return before, after
