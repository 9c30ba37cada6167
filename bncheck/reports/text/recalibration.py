"""The part of the text report that is about a repair: what was written, and what it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from bncheck.findings.measurements import RecalibrationMeasurements
from bncheck.reports.headlines import recalibration_of
from bncheck.reports.text.table import GAP, Table, draw, shown_of, write_legend
from bncheck.wording import count, escaped, few, percent, short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.findings.measurements import NewNumbers
    from bncheck.findings.report import Report
    from bncheck.reports.text.page import Page
    from bncheck.subjects.evaluation import Agreement

VARIANCES = {
    "within-batch": "within-batch, what running_var follows in training",
    "pooled": "pooled, of all samples together",
}


def write_body(page: Page, report: Report) -> None:
    """How the statistics were found, what the model does with the old and the new ones, and how far each layer went."""
    numbers = recalibration_of(report)
    page.line()
    for label, value in lines(numbers):
        page.pair(label, escaped(value))
    write_table(page, numbers.layers)


def lines(numbers: RecalibrationMeasurements) -> list[tuple[str, str]]:
    told = [("input", numbers.source), ("output", numbers.target or "none: this was a dry run")]
    estimated = numbers.estimated
    if estimated is None:
        told.append(("statistics of", str(numbers.copied_from)))
        return told
    samples, batches = count(estimated.images, "sample"), count(estimated.batches, "batch")
    told.append(("statistics of", f"{samples} in {batches} on {estimated.device}"))
    told.append(("method", f"{numbers.method}, {count(estimated.passes, 'pass')}"))
    told.append(("variance", VARIANCES[estimated.variance]))
    told += [
        (when, consequence(agreement))
        for when, agreement in (("before", estimated.before), ("after", estimated.after))
        if agreement
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in numbers.kept.items():
        reasons.setdefault(reason, []).append(name)
    told += [("kept as they are", f"{few(names)}: {reason}") for reason, names in reasons.items()]
    return told


def consequence(agreement: Agreement) -> str:
    """`accuracy 10.0 %; 86 % of the predictions differ from those with the data's statistics`."""
    start = f"accuracy {agreement.accuracy_before:.1%}; " if agreement.accuracy_before is not None else ""
    flips = agreement.predictions_changed
    if flips is None:
        return f"{start}the output is {agreement.output_change:.2g} of its size off that with the data's statistics"
    return f"{start}{percent(flips)} of the predictions differ from those with the data's statistics"


def write_table(page: Page, layers: Mapping[str, NewNumbers]) -> None:
    """The layers by how far they went, the farthest first."""
    known = {
        name: (new.shift.mean_shift.median, new.shift.variance_shift.median, new.counter)
        for name, new in layers.items()
        if new.shift and new.shift.mean_shift and new.shift.variance_shift
    }
    if not known:
        return
    shown = shown_of(page, sorted(known, key=lambda name: -known[name][0]))
    rows = [
        [short(mean, 2), short(std, 2), counters(counter)] for mean, std, counter in (known[name] for name in shown)
    ]
    draw(page, Table(shown, ["mean", "std", "updates"], rows), GAP, [Text()] * len(shown))
    write_legend(
        page,
        "how far they go: mean in standard deviations, std as logarithm; median of the channels",
        len(known) - len(shown),
    )


def counters(counter: tuple[int | float | None, int | float | None]) -> str:
    return " -> ".join("-" if value is None else f"{value:,}" for value in counter)
