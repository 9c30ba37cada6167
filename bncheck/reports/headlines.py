"""Which finding the first line of a report is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.findings.report import Finding


def foremost(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of the rule whose headline prevails, of equal ones the first that was asked; empty without any."""
    told = [finding for finding in findings if finding.headline]
    if not told:
        return []
    first = max(told, key=lambda finding: finding.prevails)
    return [finding for finding in told if finding.rule == first.rule]
