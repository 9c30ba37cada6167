"""The part of the text report that is about two checkpoints: what happened between them, in words and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from bncheck.findings.measurements import PairMeasurements
from bncheck.findings.rule import Severity
from bncheck.reports.headlines import foremost
from bncheck.reports.text.page import MAX_ROWS, Page
from bncheck.wording import count, escaped, few, plural, short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bncheck.findings.measurements import ChangeNumbers
    from bncheck.findings.report import Finding, Report

# What a row shows of each shift, and the width of its bar: the first with which every name fits is used.
LAYOUTS = ((("median", "max"), 10), (("median", "max"), 0), (("median",), 0))
TITLES = {"max": "at most"}
EQUALITY = {True: "equal", False: "changed", None: "-"}


def changes_of(report: Report) -> Mapping[str, ChangeNumbers]:
    return report.measurements.layers if isinstance(report.measurements, PairMeasurements) else {}


def headline(report: Report) -> str:
    """What happened, in words: the gravest finding, or what moved."""
    layers = changes_of(report)
    for severity in (Severity.ERROR, Severity.WARNING):
        told = foremost([one for one in report.findings if one.severity.at_least(severity)])
        if told:
            same_rule = [one for one in report.findings if one.rule == told[0].rule]
            return told[0].headline.format(layers=of_layers(same_rule, len(report.layers))) + batches(same_rule)
    return unremarkable(list(layers.values()))


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


def write_body(page: Page, report: Report) -> None:
    """What is equal and what is not; the findings follow after it."""
    layers = changes_of(report)
    if not layers:
        return
    page.line()
    for label, value in lines(layers):
        page.pair(label, escaped(value))
    table(page, layers)


def lines(layers: Mapping[str, ChangeNumbers]) -> list[tuple[str, str]]:
    found = [
        ("weights", equality(layers, "same_parameters")),
        ("statistics", equality(layers, "same_statistics")),
        ("num_batches_tracked", alike({name: counter(layer) for name, layer in layers.items()})),
    ]
    names = dict.fromkeys(name for layer in layers.values() for name in layer.settings)
    for setting in names:
        changed = {name: arrow(layer.settings.get(setting)) for name, layer in layers.items()}
        found.append((setting if setting != "dtype" else "dtype of statistics", alike(changed)))
    return found


def equality(layers: Mapping[str, ChangeNumbers], fact: str) -> str:
    """`equal in 3 of 5 layers, changed in 2`."""
    values = [getattr(layer, fact) for layer in layers.values()]
    parts = [
        f"{word} in {'all ' if values.count(value) == len(values) > 1 else ''}{count(values.count(value), 'layer')}"
        for value, word in ((True, "equal"), (False, "changed"), (None, "not comparable"))
        if values.count(value)
    ]
    return ", ".join(parts)


def counter(layer: ChangeNumbers) -> str:
    change = layer.counter_change
    return "not known of both" if change is None else "equal" if not change else f"{change:+,}"


def arrow(change: tuple[object, object] | None) -> str:
    return "equal" if change is None else " -> ".join(map(worded, change))


def worded(value: object) -> str:
    return short(value) if isinstance(value, float) else str(value)


def alike(values: Mapping[str, str]) -> str:
    """`+22 in 4 layers, equal in 1 layer: head.bn`; the most frequent value first."""
    places: dict[str, list[str]] = {}
    for name, value in values.items():
        places.setdefault(value, []).append(name)
    ordered = sorted(places.items(), key=lambda item: -len(item[1]))
    if len(ordered) == 1:
        return ordered[0][0]
    (usual, names), *others = ordered
    parts = [f"{usual} in {count(len(names), 'layer')}"]
    parts += [f"{value} in {count(len(names), 'layer')} ({few(names)})" for value, names in others[:2]]
    return ", ".join(parts) + (f" and {count(len(others) - 2, 'other value')}" if len(others) > 2 else "")


def table(page: Page, layers: Mapping[str, ChangeNumbers]) -> None:
    """The layers whose statistics moved, the farthest first."""
    moved = {name: layer for name, layer in layers.items() if layer.same_statistics is False}
    if not moved:
        return
    by_distance = sorted(moved, key=lambda name: -distance(moved[name]))
    shown = by_distance if page.style.verbose else by_distance[:MAX_ROWS]
    names = [escaped(name) or "(the module itself)" for name in shown]
    longest = max(map(cell_len, [*names, "layer"]))
    for parts, bar_width in LAYOUTS:
        header = ["weights", "mean", *parts[1:], "variance", *parts[1:]]
        rows = [[EQUALITY[moved[name].same_parameters], *shifts(moved[name], parts)] for name in shown]
        header = [TITLES.get(title, title) for title in header]
        widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
        room = page.console.width - 2 - sum(width + 2 for width in widths) - bar_width - 2 * (bar_width > 0)
        if room >= longest:
            break
    name_width = max(min(longest, room), cell_len("layer"))
    farthest = min(distance(moved[by_distance[0]]), 1e6)
    page.line()
    page.row("layer", name_width, header, widths, Text(), "dim")
    for name, label, row in zip(shown, names, rows, strict=True):
        length = round(bar_width * min(distance(moved[name]), 1e6) / farthest) if farthest else 0
        bar = ("#" if page.plain_characters else "█") * length
        page.row(label, name_width, row, widths, Text(bar, "red"))
    if len(shown) < len(by_distance):
        page.line((f"({len(by_distance) - len(shown):,} more with --verbose)", "dim"), indent=2)
    legend = (
        "(shift of the mean in standard deviations, of the variance as half its logarithm; median and maximum of the "
        "channels)"
    )
    page.line((legend, "dim"), indent=2)


def shifts(layer: ChangeNumbers, parts: Sequence[str]) -> list[str]:
    both = (layer.mean_shift, layer.variance_shift)
    return [short(min(getattr(spread, part), 1e6), 2) if spread else "-" for spread in both for part in parts]


def distance(layer: ChangeNumbers) -> float:
    """The larger of the two shifts; one is None where no channel is finite, or the variances are negative."""
    return max((spread.median for spread in (layer.mean_shift, layer.variance_shift) if spread), default=0.0)
