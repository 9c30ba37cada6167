"""The part of the text report that is about findings: what was found, what is lived with, what was not decided."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.text import Text

from bncheck.reports.phrases import by_reason, folded, whole_place
from bncheck.reports.style import SEVERITIES
from bncheck.wording import count, escaped, few

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.findings.report import Finding, Report
    from bncheck.reports.text.page import Page

NAMED_LAYERS = 3


def write_findings(page: Page, findings: Sequence[Finding]) -> None:
    """What was found, the gravest first, and what is alike once."""
    for (rule, severity, fix), same in folded(findings):
        page.line()
        title = Text.assemble("  ", (f"{severity.value} ", SEVERITIES[severity]), (rule, "bold"))
        page.console.print(title, soft_wrap=True)
        names = [whole_place(finding) for finding in same if finding.layer is not None]
        if names:
            shown = few(names, len(names) if page.style.verbose else NAMED_LAYERS)
            page.line(f"{count(len(names), 'layer')}: {shown}" if len(names) > 1 else shown, indent=4)
        write_messages(page, same)
        page.line(escaped(fix), indent=9, first=Text("    fix: ", style="dim"))


def write_messages(page: Page, same: Sequence[Finding]) -> None:
    """What was said; of several different messages the first, and where the others are."""
    first_of = {finding.message: finding for finding in reversed(same)}
    for message, finding in reversed(first_of.items()):
        several = len(first_of) > 1 and finding.layer is not None
        page.line(f"{whole_place(finding)}: {escaped(message)}" if several else escaped(message), indent=4)
        if several and not page.style.verbose:
            page.line((f"({count(len(first_of) - 1, 'other message')} with --verbose)", "dim"), indent=4)
            break


def write_suppressed(page: Page, report: Report) -> None:
    """What does not count, and why: once for each rule and reason."""
    alike: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for held in report.suppressed:
        finding = held.finding
        alike[finding.rule, held.reason].append("" if finding.layer is None else whole_place(finding))
    if alike:
        page.line()
    for (rule, reason), places in alike.items():
        named = [name for name in places if name]
        where = f" in {few(named)}" if named else ""
        page.line((f"suppressed {rule}{where}: {escaped(reason)}", "dim"), indent=4, first=Text("  "))


def write_undecided(page: Page, report: Report) -> None:
    """Each reason once, with the rules and the layers for which it holds."""
    rules_of: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for (rule, reason), same in by_reason(report).items():
        named = [escaped(undecided.layer) for undecided in same if undecided.layer]
        where = f" ({few(named)})" if named and len(named) < len(report.layers) else ""
        rules_of[reason, where].append(rule)
    if rules_of:
        page.line()
    for (reason, where), rules in rules_of.items():
        page.line((f"not decided: {', '.join(rules)}{where}: {escaped(reason)}", "dim"), indent=4, first=Text("  "))
