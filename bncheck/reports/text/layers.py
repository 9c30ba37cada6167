"""The part of the text report that is about layers: settings that they share, and their statistics in a table."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.text import Text

from bncheck.reports.phrases import behaviour, plain_count, setting
from bncheck.reports.text.table import MAX_ROWS, Table, draw, first_that_fits, write_legend
from bncheck.wording import count, escaped, few, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bncheck.findings.report import Distribution, LayerSummary, Report
    from bncheck.reports.text.page import Page

# Digits, bars, counters of the table: the first with which every name fits is used.
LAYOUTS = ((3, True, True), (3, False, True), (2, False, True), (2, False, False))
NAMED_LAYERS = 3
BARS = " ▁▂▃▄▅▆▇█"


def write_groups(page: Page, report: Report) -> None:
    groups = by_group(report.layers)
    for group, layers in groups.items():
        write_group(page, group, layers, alone=len(groups) == 1)


def write_group(page: Page, name: str, layers: Sequence[LayerSummary], *, alone: bool) -> None:
    page.line()
    if name or not alone:
        page.pair("group", escaped(name) or "(the whole file)")
    for label, value in settings_of(layers):
        page.pair(label, escaped(value))
    if page.style.verbose or len(layers) <= MAX_ROWS:
        write_table(page, layers)
    else:
        write_extremes(page, layers)


def write_table(page: Page, layers: Sequence[LayerSummary]) -> None:
    """A row for each layer; the width decides how many digits there are, and whether there is room for more columns."""
    table, beside = first_that_fits(page, layouts_of(page, layers))
    draw(page, table, beside, [Text(histogram(layer.running_var) if beside else "", "cyan") for layer in layers])
    if any(layer.running_mean or layer.running_var for layer in layers):
        write_legend(page, "min … median … max over the channels" + ("; bars: channels by running_var" * (beside > 0)))


def layouts_of(page: Page, layers: Sequence[LayerSummary]) -> Iterator[tuple[Table, int]]:
    """The table with less and less in it, and the room that histograms take behind it."""
    for digits, with_bars, with_counters in LAYOUTS:
        header, *rows = cells(page, layers, digits, with_counters=with_counters)
        beside = (len(BARS) + 1) * (with_bars and not page.plain_characters)
        yield Table([layer.name for layer in layers], header, rows), beside


def cells(page: Page, layers: Sequence[LayerSummary], digits: int, *, with_counters: bool) -> list[list[str]]:
    """The header and the rows of the table, without the names; columns that say nothing are left out."""
    broken = [
        max(buffer.non_finite if buffer else 0 for buffer in (layer.running_mean, layer.running_var))
        for layer in layers
    ]
    with_counters = with_counters and len({layer.num_batches_tracked for layer in layers}) > 1
    columns = [
        ["channels", *(plain_count(layer.num_features) for layer in layers)],
        ["updates", *(plain_count(layer.num_batches_tracked) for layer in layers)] if with_counters else None,
        ["running_mean", *(spread(page, layer.running_mean, digits) for layer in layers)],
        ["running_var", *(spread(page, layer.running_var, digits) for layer in layers)],
        ["not finite", *(plain_count(number or None) for number in broken)] if any(broken) else None,
    ]
    return [list(row) for row in zip(*filter(None, columns), strict=True)]


def spread(page: Page, distribution: Distribution | None, digits: int) -> str:
    """Minimum, median and maximum of what is finite."""
    if distribution is None or distribution.finite is None:
        return "-"
    return page.spelled(" … ".join(short(value, digits) for value in distribution.finite))


def write_extremes(page: Page, layers: Sequence[LayerSummary]) -> None:
    """The least and the greatest value of each buffer, and the layers they stand in."""
    for buffer in ("running_mean", "running_var"):
        held = [(getattr(layer, buffer), layer.name) for layer in layers if getattr(layer, buffer) is not None]
        if not held:
            continue
        finite = [(d.finite, name) for d, name in held if d.finite]
        if finite:
            low, low_at = min(((spread[0], name) for spread, name in finite), key=lambda item: item[0])
            high, high_at = max(((spread[2], name) for spread, name in finite), key=lambda item: item[0])
            page.pair(buffer, f"{short(low)} ({escaped(low_at)}) … {short(high)} ({escaped(high_at)})")
        broken = [escaped(name) for d, name in held if d.non_finite]
        if broken:
            page.pair(buffer, f"not finite in {count(len(broken), 'layer')}: {few(broken)}")
    page.pair("", "--verbose shows each layer")


def by_group(layers: Iterable[LayerSummary]) -> dict[str, list[LayerSummary]]:
    groups: defaultdict[str, list[LayerSummary]] = defaultdict(list)
    for layer in layers:
        groups[layer.group].append(layer)
    return groups


def settings_of(layers: Sequence[LayerSummary]) -> list[tuple[str, str]]:
    """Each setting on a line: what most layers have, then the odd ones by name; the unknown ones together."""
    lines: list[tuple[str, str]] = []
    columns: list[tuple[str, Callable[[LayerSummary], str | None]]] = [
        ("kind", lambda layer: setting(layer.kind)),
        ("affine", lambda layer: setting(layer.affine)),
        ("track_running_stats", lambda layer: setting(layer.track_running_stats)),
        ("momentum", lambda layer: setting(layer.momentum)),
        ("eps", lambda layer: setting(layer.eps)),
        ("mode", lambda layer: setting(layer.training, {True: "train", False: "eval"})),
        ("num_batches_tracked", lambda layer: plain_count(layer.num_batches_tracked)),
        ("dtype of statistics", lambda layer: layer.dtype or "-"),
        ("as saved", lambda layer: behaviour(layer.behaviour)),
    ]
    unknown = []
    for label, value_of in columns:
        value = common_and_odd(layers, value_of)
        if value is None:
            unknown.append(label)
        else:
            lines.append((label, value))
    if unknown:
        lines.append(("not in the file", ", ".join(label for label in unknown if label != "as saved")))
    return lines


def common_and_odd(layers: Sequence[LayerSummary], value_of: Callable[[LayerSummary], str | None]) -> str | None:
    """`0.1 (stored); 0.01 (stored) in 2 layers: a, b`; None where no layer has a known value."""
    places: defaultdict[str | None, list[str]] = defaultdict(list)
    for layer in layers:
        places[value_of(layer)].append(layer.name)
    if set(places) == {None}:
        return None
    (usual, _), *odd = sorted(places.items(), key=lambda item: -len(item[1]))
    parts = [usual or "unknown"]
    for value, names in odd[:NAMED_LAYERS]:
        parts.append(f"{value or 'unknown'} in {count(len(names), 'layer')}: {few(names)}")
    if len(odd) > NAMED_LAYERS:
        parts.append(f"and {count(len(odd) - NAMED_LAYERS, 'other value')}")
    return "; ".join(parts)


def histogram(distribution: Distribution | None) -> str:
    """How the channels spread from minimum to maximum, a block for each eighth of the way."""
    if distribution is None or not distribution.histogram:
        return ""
    highest = max(distribution.histogram)
    return "".join(BARS[-(-held * (len(BARS) - 1) // highest)] for held in distribution.histogram)
