"""The command line: reads arguments, hands them to a command, prints what it gives, and exits.

The only room that prints, opens output files or exits. What a command does not need is imported where it is needed:
numpy takes 60 ms, torch more than a second.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bncheck.cli.errors import NO_VERDICT, complain, sentences, told
from bncheck.cli.flat import said_by, signature_of, with_signature
from bncheck.cli.outputs import Outputs
from bncheck.cli.printing import Debugging, Formatting, Looking, Printing, Reporting
from bncheck.cli.progress import ShownProgress, somebody_watches
from bncheck.commands import COMMANDS
from bncheck.commands.progress import SILENT, Progress
from bncheck.findings.report import Run
from bncheck.options.option import make, of_kind
from bncheck.reports import Format, Style
from bncheck.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from bncheck.options.option import Options

EXIT_CODES = (
    "Exit codes: 0 passed, 1 findings at or above --fail-on, 2 no verdict (usage, unreadable input), "
    "3 no BatchNorm layer in any input."
)
# How the commands print that give something else than reports.
LOOKS: dict[str, type[Options]] = {"rules": Formatting, "explain": Looking, "config": Debugging}


def main() -> None:
    """The console script. Whatever goes wrong, it does not exit with 1, which means findings."""
    asked = sys.argv[1:2]
    try:
        # Only the command that is asked: typer would build each option of each, a tenth of the time of `inspect`.
        build(asked if asked and asked[0] in COMMANDS else COMMANDS)()
    except Exception as error:  # noqa: BLE001 - before a command has its own net
        if "--debug" in sys.argv:
            import traceback

            traceback.print_exc()
        else:
            complain(*sentences(error))
        sys.exit(NO_VERDICT)


def __getattr__(name: str) -> object:
    """`app`: the program with all its commands."""
    if name == "app":
        return build(COMMANDS)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build(names: Iterable[str]) -> typer.Typer:
    """The program with some of its commands."""
    app = typer.Typer(
        name="bncheck",
        help="Can the BatchNorm layers of this checkpoint be trusted?",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=EXIT_CODES,
    )
    app.callback()(version_option)
    for name in names:
        add(app, name)
    return app


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bncheck {__version__}")
        raise typer.Exit


def version_option(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def add(app: typer.Typer, name: str) -> None:
    """A command, with the options of its file and those of its printing."""
    with one_numpy_thread():
        command: Any = import_module(f"bncheck.commands.{name}")
    looks = looks_of(name, command.OPTIONS)

    def run(**arguments: object) -> None:
        with told(debug=bool(arguments.get("debug"))):
            perform(command.run, said_by(arguments), looks)

    examples = "\n\n".join(f"  {example}" for example in command.EXAMPLES)
    decorate = app.command(name, help=COMMANDS[name], epilog=f"Examples:\n\n{examples}")
    decorate(with_signature(run, signature_of([*command.OPTIONS, looks])))


def looks_of(name: str, kinds: Iterable[type[Options]]) -> type[Options]:
    """The options of printing; a command whose own --output is another file writes its report to the terminal."""
    if name in LOOKS:
        return LOOKS[name]
    return Printing if any(held.name == "output" for kind in kinds for held in of_kind(kind)) else Reporting


def perform(
    run: Callable[[Mapping[str, Any], Progress], object], said: Mapping[str, Any], looks: type[Options]
) -> None:
    """Runs a command, prints what it gives, and exits."""
    outputs = outputs_of(make(looks, said))
    with shown_progress() as progress:
        result = run(said, progress)
    match result:
        case Run():
            outputs.write(result)
            raise typer.Exit(result.exit_code)
        case str():
            typer.echo(result)
        case _:
            from bncheck.reports import manual

            manual.write(cast("Any", result), outputs.on_stdout or Format.TEXT, sys.stdout, outputs.style)


def outputs_of(asked: Any) -> Outputs:
    """Where the options want the report, and how it looks."""
    style = Style(
        getattr(asked, "width", None),
        False if getattr(asked, "no_color", False) else None,
        getattr(asked, "verbose", False),
        getattr(asked, "quiet", False),
    )
    return Outputs(list(map(Format, getattr(asked, "format", ()))), getattr(asked, "output", ()), style)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    if not somebody_watches():
        yield SILENT
        return
    with closing(ShownProgress()) as progress:
        yield progress


@contextmanager
def one_numpy_thread() -> Iterator[None]:
    """Imports numpy without the threads of its linear algebra: starting them costs as much as the rest of it."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        import numpy  # noqa: F401

        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
