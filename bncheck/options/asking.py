"""What is judged, by which rules, and from when on a run fails."""

from collections.abc import Sequence
from dataclasses import dataclass

from bncheck.findings.rule import Severity
from bncheck.options.model import Architecture
from bncheck.options.option import Options, Panel, StrPath, option

NEVER = "never"
LEVELS = ("error", "warning", "note", NEVER)
FAIL_ON = "Fail from this severity on: error, warning, note, never."


@dataclass(kw_only=True, eq=False, repr=False)
class Asking(Options):
    """Which rules are asked, and what fails."""

    fail_on: str | None = option("error", FAIL_ON, Panel.JUDGEMENT, metavar="LEVEL", choices=LEVELS)
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
