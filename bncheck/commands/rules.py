"""`bncheck rules`: the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.commands.progress import SILENT
from bncheck.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bncheck.commands.progress import Progress
    from bncheck.findings.rule import Rule

OPTIONS = ()
EXAMPLES = ("bncheck rules", "bncheck rules -f json")


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> tuple[Rule, ...]:
    """Every rule, in the order of the catalogue."""
    return tuple(RULES)
