"""What the commands share that run a model on data: which checkpoint, which data, and what the configuration says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.config import configured
from bncheck.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def with_configuration(command: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, and where no checkpoint is named, what the configuration says of its own.

    Raises:
        UsageError: no checkpoint is named anywhere, or the configuration is wrong.
    """
    if said.get("checkpoint"):
        return dict(said)
    values = dict(configured(Path.cwd()).values)
    named = values.pop("checkpoint", None)
    names = [named] if isinstance(named, (str, os.PathLike)) else named or []
    if len(names) != 1:
        raise UsageError("no model is named", f"bncheck {command} MODEL, or checkpoint = ... under [tool.bncheck].")
    judging = ("fail_on", "select", "ignore")  # those of the gate
    values = {name: value for name, value in values.items() if name not in judging}
    return {**values, "checkpoint": names[0], **said}
