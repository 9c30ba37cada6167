"""The first line of a report in words: what was found, or what is certain."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from bncheck.findings.report import Verdict
from bncheck.findings.rule import Severity
from bncheck.wording import count, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bncheck.findings.measurements import ChangeNumbers, RecalibrationMeasurements
    from bncheck.findings.report import Finding, Report

NAMED_KINDS = 3


def headline(report: Report) -> str | None:
    """What the first line says behind the names; None for a report of `inspect`, whose second line says it."""
    if report.checks:
        return of_gate(report)
    if report.measurements is None:
        return None
    from bncheck.findings.measurements import PairMeasurements, RecalibrationMeasurements  # `inspect` needs none

    match report.measurements:
        case PairMeasurements():
            return of_pair(report)
        case RecalibrationMeasurements():
            return of_recalibration(report)
        case _:
            return of_evaluation(report)


def found_in_layers(report: Report) -> str:
    return found(report) if report.layers else "no BatchNorm layer"


def summary(report: Report) -> str:
    """`torch.save · 53 BatchNorm2d layers`, and what was found."""
    if not report.layers:
        return f"{report.format} · no BatchNorm layer"
    kinds = Counter(layer.kind.value for layer in report.layers)
    named = " and ".join(count(total, f"{kind} layer") for kind, total in kinds.most_common(NAMED_KINDS))
    if len(kinds) > NAMED_KINDS:
        named = count(len(report.layers), "layer")
    lenient = report.verdict is Verdict.PASSED and any(f.severity is Severity.WARNING for f in report.findings)
    return f"{report.format} · {named} · {found(report)}" + " (--fail-on warning would fail)" * lenient


def found(report: Report) -> str:
    """`1 error, 2 warnings`."""
    severities = Counter(finding.severity for finding in report.findings)
    counted = [count(severities[severity], severity.value) for severity in reversed(Severity) if severities[severity]]
    return ", ".join(counted) or "no findings"


def foremost(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of the rule whose headline prevails, of equal ones the first that was asked; empty without any."""
    told = [finding for finding in findings if finding.headline]
    if not told:
        return []
    first = max(told, key=lambda finding: finding.prevails)
    return [finding for finding in told if finding.rule == first.rule]


# -- by kind of report


def of_evaluation(report: Report) -> str:
    """The verdict in words: the gravest finding, or what is certain without one."""
    told = foremost([finding for finding in report.findings if finding.severity is not Severity.NOTE])
    if told:
        named = [finding for finding in told if finding.layer is not None]
        shown = f"{len(named):,} of {count(len(report.layers), 'BatchNorm layer')}" if named else "the model"
        return told[0].headline.format(layers=shown)
    if not report.layers:
        return "no BatchNorm layer"
    return ", ".join(report.all_clear) or "nothing found, and not all decided"


def of_pair(report: Report) -> str:
    """What happened, in words: the gravest finding, or what moved."""
    layers = changes_of(report)
    for severity in (Severity.ERROR, Severity.WARNING):
        told = foremost([one for one in report.findings if one.severity.at_least(severity)])
        if told:
            same_rule = [one for one in report.findings if one.rule == told[0].rule]
            return told[0].headline.format(layers=of_layers(same_rule, len(report.layers))) + batches(same_rule)
    return unremarkable(list(layers.values()))


def changes_of(report: Report) -> Mapping[str, ChangeNumbers]:
    from bncheck.findings.measurements import PairMeasurements

    return report.measurements.layers if isinstance(report.measurements, PairMeasurements) else {}


def of_layers(findings: Sequence[Finding], layers: int) -> str:
    return f"{len({(one.group, one.layer) for one in findings}):,} of {count(layers, 'layer')}"


def batches(findings: Sequence[Finding]) -> str:
    """` (24 train-mode batches)`, where the counters tell."""
    told = {one.measured.get("train_mode_batches") for one in findings}
    numbers = sorted(number for number in told if isinstance(number, int))
    if not numbers:
        return ""
    fewest, most = numbers[0], numbers[-1]
    shown = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return f" ({shown} train-mode {plural('batch', most)})"


def unremarkable(layers: Sequence[ChangeNumbers]) -> str:
    """What moved where nothing is found."""
    if not layers:
        return "no BatchNorm layer"
    total = count(len(layers), "layer")
    weights = sum(layer.same_parameters is False for layer in layers)
    statistics = sum(layer.same_statistics is False for layer in layers)
    if not weights and not statistics:
        return f"{total}, equal weights and statistics" if unknown(layers) == 0 else f"{total}, equal statistics"
    return f"weights changed in {weights:,} of {total}, statistics in {statistics:,}"


def unknown(layers: Sequence[ChangeNumbers]) -> int:
    return sum(layer.same_parameters is None for layer in layers)


def of_recalibration(report: Report) -> str:
    """What was done, in words."""
    numbers = recalibration_of(report)
    layers = count(len(numbers.layers), "BatchNorm layer")
    of = f"of {numbers.copied_from}" if numbers.copied_from else "of the data"
    done = "has" if numbers.target else "would have"
    return f"{done} the statistics {of} in {layers}"


def recalibration_of(report: Report) -> RecalibrationMeasurements:
    from bncheck.findings.measurements import RecalibrationMeasurements

    assert isinstance(report.measurements, RecalibrationMeasurements)
    return report.measurements


def of_gate(report: Report) -> str:
    """`2 errors`, `no findings, 3 suppressed`."""
    said = found_in_layers(report)
    return f"{said}, {len(report.suppressed):,} suppressed" if report.suppressed else said
