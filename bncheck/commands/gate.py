"""`bncheck gate`: every check that the project configures, for each checkpoint, as one report."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.commands.diff import Comparison
from bncheck.commands.drift import drift
from bncheck.commands.inspect import Inspection, architecture_of
from bncheck.commands.many import cores, examine_all, find_all
from bncheck.commands.progress import SILENT
from bncheck.commands.repeat import repeat
from bncheck.config import configured
from bncheck.errors import BncheckError, UsageError
from bncheck.findings.measurements import GateMeasurements
from bncheck.findings.report import Check, Run
from bncheck.judgement.baseline import baseline_of, fingerprints_in
from bncheck.judgement.diagnosis import unreadable
from bncheck.judgement.policy import policy_of
from bncheck.judgement.selection import Selection, chosen
from bncheck.judgement.verdicts import gate_exit_code, gated, gravity, remarks
from bncheck.options.comparing import DiffOptions
from bncheck.options.gating import GateOptions
from bncheck.options.option import make
from bncheck.rules import DIFF_RULES, DRIFT_RULES, INSPECT_RULES, REPEAT_RULES, RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from bncheck.commands.progress import Progress
    from bncheck.findings.report import Report
    from bncheck.findings.rule import Rule

OPTIONS = (GateOptions,)
EXAMPLES = ("bncheck gate", "bncheck gate release/*.pth --reference last.pth --data val/ --model net.py:Net")
CHECKS = {"inspect": INSPECT_RULES, "drift": DRIFT_RULES, "repeat": REPEAT_RULES, "diff": DIFF_RULES}
UNCONFIGURED = {
    "drift": "no data is configured",
    "repeat": "no data is configured",
    "diff": "no reference is configured",
}


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> Run:
    """The reports on all checkpoints, as the policy of the project sees them.

    Raises:
        UsageError: the configuration is wrong, or no checkpoint is named.
    """
    config = configured(Path.cwd(), said.get("config"))
    options = make(GateOptions, said, config.values)
    policy = policy_of(options, [rule.id for rule in RULES], config.path or "the command line")
    items = list(find_all(map(str, options.checkpoint)))
    if not items:
        raise UsageError("no checkpoint is named", "bncheck gate PATH, or checkpoint = ... under [tool.bncheck].")
    found = list(examined(items, options, progress, debug=bool(said.get("debug"))))
    files: tuple[tuple[str, str], ...] = ()
    if options.write_baseline:
        baseline = baseline_of(found)
        files = ((str(options.write_baseline), baseline),)
        policy = replace(policy, baseline=policy.baseline | fingerprints_in(baseline))
    today = datetime.date.today()
    reports = tuple(gated(report, policy, today) for report in found)
    return Run("gate", reports, gate_exit_code(reports), remarks(reports, policy, today), RULES, files)


def examined(
    items: Sequence[Path | Report], options: GateOptions, progress: Progress, *, debug: bool = False
) -> Iterator[Report]:
    """The report on each checkpoint, in their order, as soon as it is there."""
    rules = {check: rules_of(options, catalogue) for check, catalogue in CHECKS.items()}
    complete = architecture_of(options) if options.model else None
    jobs = 1 if complete else options.jobs or cores()  # what the user's code made does not go to other processes
    examine = inspected_elsewhere(rules["inspect"]) if jobs > 1 else inspection(rules["inspect"], complete).report
    reports = examine_all(items, examine, jobs=jobs, debug=debug)
    for item, report in zip(items, reports, strict=True):
        if isinstance(item, Path) and not report.error:
            report = merged([report, *others(item, options, rules, progress)])  # noqa: PLW2901
        yield report


def inspection(rules: Sequence[Rule], complete: Any = None) -> Inspection:
    return Inspection(rules, None, Selection(), complete)


@dataclass(frozen=True, slots=True)
class InspectedElsewhere:
    """Inspects a file in another process, to which rules go by their names."""

    ids: tuple[str, ...]

    def __call__(self, path: Path) -> Report:
        return inspection([rule for rule in INSPECT_RULES if rule.id in self.ids]).report(path)


def inspected_elsewhere(rules: Sequence[Rule]) -> Callable[[Path], Report]:
    return InspectedElsewhere(tuple(rule.id for rule in rules))


def rules_of(options: GateOptions, catalogue: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a check that the options select; globs that fit none of this check fit others."""
    everything = [rule for rules in CHECKS.values() for rule in rules]
    ignore = [entry for entry in options.ignore if isinstance(entry, str)]
    wanted = {rule.id for rule in chosen(everything, options.select, ignore)}
    return tuple(rule for rule in catalogue if rule.id in wanted)


# -- the checks that need more than the file


def others(path: Path, options: GateOptions, rules: Mapping[str, tuple[Rule, ...]], progress: Progress) -> list[Report]:
    """Drift and repeat where data is configured, diff where a reference is; one that fails says so in its report."""
    checks: dict[str, Callable[[], Report]] = {}
    if options.data is not None:
        checks["drift"] = lambda: drift(path, options.data, options, progress, rules=rules["drift"])
        checks["repeat"] = lambda: repeat(path, options.data, options, progress, rules=rules["repeat"])
    if options.reference:
        reference = options.reference
        checks["diff"] = lambda: Comparison(reference, rules["diff"], DiffOptions()).report(path)
    reports = []
    for name, check in checks.items():
        try:
            reports.append(replace(check(), checks=(Check(name, True),)))
        except BncheckError as error:
            failed = unreadable(str(path), BncheckError(f"{name}: {error.message}", error.hint))
            reports.append(replace(failed, checks=(Check(name, False, error.message),)))
    return reports


# -- one report


def merged(reports: Sequence[Report]) -> Report:
    """The reports of all checks of one checkpoint as one, with what was checked and what was not."""
    first, *more = reports
    failed = next((report.error for report in more if report.error), None)
    checks = [Check("inspect", True), *(check for report in more for check in report.checks)]
    names = {check.name for check in checks}
    left_out = [Check(name, False, reason) for name, reason in UNCONFIGURED.items() if name not in names]
    findings = [finding for report in reports for finding in report.findings]
    measured = {report.checks[0].name: report.measurements for report in more if not report.error}
    return replace(
        first,
        error=failed,
        findings=tuple(sorted(findings, key=lambda finding: -gravity(finding.severity))),
        undecided=tuple(undecided for report in reports for undecided in report.undecided),
        rules=tuple(rule for report in reports for rule in report.rules),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        measurements=GateMeasurements(measured) if measured else None,
        checks=(*checks, *left_out),
    )
