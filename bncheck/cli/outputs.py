"""Which report goes where, and the writing of it."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from bncheck import reports
from bncheck.cli.errors import complain
from bncheck.errors import UsageError
from bncheck.reports import Format, Style

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.findings.report import Run

# File name suffixes that are not the name of the format.
SUFFIXES = {"xml": "junit", "md": "markdown"}


class Outputs:
    """Which format goes where.

    `--output F=FILE` names both; `--output FILE` takes the single --format, or the format that the suffix names.
    What is left of the formats goes to stdout, text if none is asked for.
    """

    def __init__(self, formats: Sequence[Format], files: Sequence[str], style: Style) -> None:
        self.style = style
        self.files: list[tuple[Format, Path]] = []
        left = list(dict.fromkeys(formats))
        for given in files:
            format_, path, is_bare = destination(given, formats)
            self.files.append((format_, path))
            if is_bare and format_ in left:
                left.remove(format_)
        if len(left) > 1:
            raise UsageError(
                "only one format can go to stdout", f"Give the others a file: --output {left[1].value}=FILE."
            )
        self.on_stdout = left[0] if left else None if formats else Format.TEXT

    def write(self, run: Run) -> None:
        """The report on stdout first, so that an unwritable file loses nothing."""
        if self.on_stdout:
            print_report(self.on_stdout, run, self.style)
        if self.on_stdout is Format.GITHUB:
            append_job_summary(run)
        plain = Style(self.style.width or 80, False, self.style.verbose)
        for format_, path in self.files:
            with opened(path, "Check the path of --output.") as out:
                reports.write(format_, run, out, plain)
        for name, text in run.files:
            with opened(Path(name), "Check the path.") as out:
                out.write(text)
            typer.echo(f"wrote {name}", err=True)


@contextmanager
def opened(path: Path, hint: str) -> Iterator[TextIO]:
    """A file to write; UsageError where it cannot be written."""
    try:
        with path.open("w", encoding="utf-8") as out:
            yield out
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint) from None


def destination(given: str, formats: Sequence[Format]) -> tuple[Format, Path, bool]:
    """Format, path, and whether the format was left to the other options."""
    word, equals, path = given.partition("=")
    names = [format_.value for format_ in Format]
    if equals and word in names:
        return Format(word), Path(path), False
    if equals and "/" not in word:
        raise UsageError(f"--output {given}: there is no format {word!r}", f"Formats: {', '.join(names)}.")
    if len(formats) == 1:
        return formats[0], Path(given), True
    suffix = Path(given).suffix.removeprefix(".")
    suffix = SUFFIXES.get(suffix, suffix)
    if suffix in names:
        return Format(suffix), Path(given), True
    raise UsageError(f"--output {given} does not say in which format", f"Write --output json={given}, say.")


def print_report(format_: Format, run: Run, style: Style) -> None:
    """Writes to stdout; a reader that stops reading (`| head`) does not change the verdict."""
    out: TextIO = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="backslashreplace")
    try:
        reports.write(format_, run, out, style)
        out.flush()
    except BrokenPipeError:
        # Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def append_job_summary(run: Run) -> None:
    """Adds the Markdown report to the page of a job in GitHub Actions; without it, the verdict stands all the same."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as out:
            reports.write(Format.MARKDOWN, run, out, Style())
    except OSError as error:
        complain(f"the job summary {path} cannot be written: {error.strerror}", "Check $GITHUB_STEP_SUMMARY.")
