"""The options that say how a report looks and where it goes."""

from collections.abc import Sequence
from dataclasses import dataclass

from bncheck.options.option import Options, Panel, option
from bncheck.reports import Format

FORMATS = tuple(format_.value for format_ in Format)


@dataclass(kw_only=True, eq=False, repr=False)
class Debugging(Options):
    """What every command has."""

    debug: bool = option(False, "Show the traceback of an error.", Panel.REPORT)


@dataclass(kw_only=True, eq=False, repr=False)
class Looking(Debugging):
    """How text looks."""

    no_color: bool = option(False, "No colors; NO_COLOR does the same.", Panel.REPORT)
    width: int | None = option(None, "Columns of text. Default: the terminal's.", Panel.REPORT, metavar="N", least=40)


@dataclass(kw_only=True, eq=False, repr=False)
class Formatting(Looking):
    """In which format."""

    format: Sequence[str] = option(
        (),
        f"{', '.join(FORMATS)}; may repeat, with --output.",
        Panel.REPORT,
        metavar="FORMAT",
        flags=("--format", "-f"),
        choices=FORMATS,
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Printing(Formatting):
    """How much a report says."""

    quiet: bool = option(False, "Print the verdicts only.", Panel.REPORT, flags=("--quiet", "-q"))
    verbose: bool = option(False, "Show every layer.", Panel.REPORT, flags=("--verbose", "-v"))


@dataclass(kw_only=True, eq=False, repr=False)
class Reporting(Printing):
    """Where it goes, besides the terminal."""

    output: Sequence[str] = option(
        (), "Write the report, in format F; may repeat.", Panel.REPORT, metavar="[F=]FILE", flags=("--output", "-o")
    )
