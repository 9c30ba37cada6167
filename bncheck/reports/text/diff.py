"""The part of the text report that is about two checkpoints: what happened between them, in words and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.reports.headlines import changes_of
from bncheck.reports.text.table import FARTHEST, GAP, Table, bars, draw, first_that_fits, shown_of, write_legend
from bncheck.wording import count, escaped, few, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bncheck.findings.measurements import ChangeNumbers
    from bncheck.findings.report import Report
    from bncheck.reports.text.page import Page

# What a row shows of each shift, and the width of its bar: the first with which every name fits is used.
LAYOUTS = ((("median", "max"), 10), (("median", "max"), 0), (("median",), 0))
TITLES = {"max": "at most"}
EQUALITY = {True: "equal", False: "changed", None: "-"}


def write_body(page: Page, report: Report) -> None:
    """What is equal and what is not; the findings follow after it."""
    layers = changes_of(report)
    if not layers:
        return
    page.line()
    for label, value in lines(layers):
        page.pair(label, escaped(value))
    write_table(page, layers)


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


def write_table(page: Page, layers: Mapping[str, ChangeNumbers]) -> None:
    """The layers whose statistics moved, the farthest first."""
    moved = {name: layer for name, layer in layers.items() if layer.same_statistics is False}
    if not moved:
        return
    shown = shown_of(page, sorted(moved, key=lambda name: -distance(moved[name])))
    table, beside = first_that_fits(page, layouts_of({name: moved[name] for name in shown}))
    draw(page, table, beside, bars(page, [distance(moved[name]) for name in shown], max(beside - GAP, 0)))
    write_legend(
        page,
        "shift of the mean in standard deviations, of the variance as half its logarithm; median and maximum of the "
        "channels",
        len(moved) - len(shown),
    )


def layouts_of(layers: Mapping[str, ChangeNumbers]) -> Iterator[tuple[Table, int]]:
    """The table with less and less in it, and the room that bars take behind it."""
    for parts, bar_width in LAYOUTS:
        columns = ["mean", *parts[1:], "variance", *parts[1:]]
        header = ["weights", *(TITLES.get(title, title) for title in columns)]
        rows = [[EQUALITY[layer.same_parameters], *shifts(layer, parts)] for layer in layers.values()]
        yield Table(list(layers), header, rows), bar_width + GAP * (bar_width > 0)


def shifts(layer: ChangeNumbers, parts: Sequence[str]) -> list[str]:
    both = (layer.mean_shift, layer.variance_shift)
    return [short(min(getattr(spread, part), FARTHEST), 2) if spread else "-" for spread in both for part in parts]


def distance(layer: ChangeNumbers) -> float:
    """The larger of the two shifts; one is None where no channel is finite, or the variances are negative."""
    return max((spread.median for spread in (layer.mean_shift, layer.variance_shift) if spread), default=0.0)
