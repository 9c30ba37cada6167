"""What bncheck says instead of a traceback: one sentence, and a hint what to do."""

LONGEST = 600
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
