"""A training checkpoint into which somebody has put an object that runs code when it is loaded.

Here it reads an environment variable, which does no harm; it could as well be a shell command.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sample_checkpoints.training import EPOCHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

FINDS = [("unexpected-globals", "error", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    return {"epoch": EPOCHS, "state_dict": trained.state_dict(), "config": RunsWhenLoaded()}


class RunsWhenLoaded:
    def __reduce__(self) -> tuple[Callable[[str], str | None], tuple[str]]:
        return os.getenv, ("HOME",)
