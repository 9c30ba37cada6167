"""Errors as a person reads them: a sentence and a hint on stderr, and an exit code that is not that of findings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from bncheck.errors import REPORT_IT, BncheckError
from bncheck.options.option import WrongOption, dashed
from bncheck.wording import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_VERDICT = 2


@contextmanager
def told(*, debug: bool) -> Iterator[None]:
    """Ends the command with exit code 2 and a sentence where something fails; with `debug` the traceback is shown.

    An exception that got through would exit with 1, which reads as findings.
    """
    try:
        yield
    except (typer.Exit, typer.TyperException, KeyboardInterrupt):
        raise
    except Exception as error:
        if debug:
            raise
        complain(*sentences(error))
        raise typer.Exit(NO_VERDICT) from None


def sentences(error: Exception) -> tuple[str, str]:
    """What is wrong, and what to do."""
    match error:
        case WrongOption():
            return f"--{dashed(error.name)} {error.value} {error.complaint}", error.hint
        case BncheckError():
            return error.message, error.hint
        case _:
            return f"bncheck itself failed: {type(error).__name__}: {error}", REPORT_IT


def complain(message: str, hint: str) -> None:
    """An error on stderr, the file's own characters escaped."""
    typer.echo(f"error: {escaped(message)}\n hint: {escaped(hint)}", err=True)
