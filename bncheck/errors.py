"""What bncheck says instead of a traceback: one sentence, and a hint what to do."""

from __future__ import annotations

LONGEST = 600
REPORT_IT = "This is a defect of bncheck; run again with --debug and report what it prints."
DAMAGED_HINT = "The file is truncated or damaged: copy, download or save it again."


class BncheckError(Exception):
    """No verdict is possible. Caught in one place, `bncheck.cli.main`, which exits with 2."""

    def __init__(self, message: str, hint: str) -> None:
        if len(message) > LONGEST:  # a file may have its say in it
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BncheckError):
    """What was asked for cannot be done: a path, an option or a name is wrong."""


class UnreadableError(BncheckError):
    """A file is damaged, truncated, or contradicts itself."""


class UnsupportedError(BncheckError):
    """A file is of a kind that this version does not read."""


class ModelError(BncheckError):
    """The code that the user named with `--model` could not be loaded or run."""


class BatchNormDriftError(BncheckError):
    """Statistics of BatchNorm layers changed where they must not: see `bncheck.guard`.

    `layers` has the names of all of them, `details` a line on each of the first.
    """

    def __init__(self, message: str, hint: str, layers: tuple[str, ...] = (), details: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.layers = layers
        self.details = details

    def __str__(self) -> str:
        """All of it: this error is read in a traceback, where nobody prints the hint."""
        lines = [f"  {line}" for line in self.details]
        if self.details and len(self.layers) > len(self.details):
            lines.append(f"  and {len(self.layers) - len(self.details):,} more")
        return "\n".join([self.message, *lines, self.hint])

    def __reduce__(self) -> tuple[type[BatchNormDriftError], tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
        """Processes hand errors on by pickling them."""
        return type(self), (self.message, self.hint, self.layers, self.details)
