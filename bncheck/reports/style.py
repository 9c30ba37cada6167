"""How reports look: the options of whoever reads them, and the colors of verdicts and severities."""

from __future__ import annotations

from dataclasses import dataclass

from bncheck.findings.report import Verdict
from bncheck.findings.rule import Severity


@dataclass(frozen=True, slots=True)
class Style:
    """How the text report looks. `width` and `color` None: as the terminal has it."""

    width: int | None = None
    color: bool | None = None
    verbose: bool = False
    quiet: bool = False


VERDICTS = {
    Verdict.PASSED: ("PASSED", "bold green"),
    Verdict.FAILED: ("FAILED", "bold red"),
    Verdict.UNDECIDED: ("UNDECIDED", "bold yellow"),
}
INCONCLUSIVE = "INCONCLUSIVE"  # what a gate calls undecided
SEVERITIES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold blue"}
