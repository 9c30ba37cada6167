"""The part of the text report that is about a repair: what was written, and what it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from bncheck.reports.text.page import MAX_ROWS, Page
from bncheck.wording import count, escaped, few, short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.findings.report import Report

    Numbers = Mapping[str, Any]

VARIANCES = {
    "within-batch": "within-batch, what running_var follows in training",
    "pooled": "pooled, of all samples together",
}


def headline(report: Report) -> str:
    """What was done, in words."""
    numbers: Numbers = report.measurements["recalibration"]  # type: ignore[assignment]
    layers = count(len(numbers["layers"]), "BatchNorm layer")
    of = f"of {numbers['from']}" if numbers["from"] else "of the data"
    done = "has" if numbers["target"] else "would have"
    return f"{done} the statistics {of} in {layers}"


def write_body(page: Page, report: Report) -> None:
    """How the statistics were found, what the model does with the old and the new ones, and how far each layer went."""
    numbers: Numbers = report.measurements["recalibration"]  # type: ignore[assignment]
    page.line()
    for label, value in lines(numbers):
        page.pair(label, escaped(value))
    table(page, numbers["layers"])


def lines(numbers: Numbers) -> list[tuple[str, str]]:
    target = numbers["target"]
    told = [("input", numbers["source"]), ("output", target or "none: this was a dry run")]
    if numbers["from"]:
        told.append(("statistics of", numbers["from"]))
        return told
    batches = f"{numbers['batches']:,} batch{'es' * (numbers['batches'] != 1)}"
    passes = f"{numbers['passes']:,} pass{'es' * (numbers['passes'] != 1)}"
    told.append(("statistics of", f"{count(numbers['images'], 'sample')} in {batches} on {numbers['device']}"))
    told.append(("method", f"{numbers['method']}, {passes}"))
    told.append(("variance", VARIANCES[numbers["variance"]]))
    for when in ("before", "after"):
        if numbers[when]:
            told.append((when, consequence(numbers[when])))
    reasons: dict[str, list[str]] = {}
    for name, reason in numbers["kept"].items():
        reasons.setdefault(reason, []).append(name)
    told += [("kept as they are", f"{few(names)}: {reason}") for reason, names in reasons.items()]
    return told


def consequence(agreement: Numbers) -> str:
    """`accuracy 10.0 %; 86 % of the predictions differ from those with the data's statistics`."""
    accuracy = agreement["accuracy_before"]
    start = f"accuracy {accuracy:.1%}; " if accuracy is not None else ""
    flips = agreement["predictions_changed"]
    if flips is None:
        return f"{start}the output is {agreement['output_change']:.2g} of its size off that with the data's statistics"
    share = f"{flips:.1%}" if 0 < flips < 0.1 else f"{flips:.0%}"
    return f"{start}{share} of the predictions differ from those with the data's statistics"


def table(page: Page, layers: Mapping[str, Numbers]) -> None:
    """The layers by how far they went, the farthest first."""
    known = {name: layer for name, layer in layers.items() if layer.get("mean_shift") and layer.get("variance_shift")}
    if not known:
        return
    farthest = sorted(known, key=lambda name: -known[name]["mean_shift"]["median"])
    shown = farthest if page.style.verbose else farthest[:MAX_ROWS]
    header = ["mean", "std", "updates"]
    rows = [
        [
            short(known[name]["mean_shift"]["median"], 2),
            short(known[name]["variance_shift"]["median"], 2),
            counters(known[name]["num_batches_tracked"]),
        ]
        for name in shown
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    names = [escaped(name) or "(the module itself)" for name in shown]
    name_width = min(max(map(len, [*names, "layer"])), max(page.console.width - sum(widths) - 10, 5))
    page.line()
    page.row("layer", name_width, header, widths, Text(), "dim")
    for name, row in zip(names, rows, strict=True):
        page.row(name, name_width, row, widths, Text())
    if len(shown) < len(farthest):
        page.line((f"({len(farthest) - len(shown):,} more with --verbose)", "dim"), indent=2)
    page.line(
        ("(how far they go: mean in standard deviations, std as logarithm; median of the channels)", "dim"), indent=2
    )


def counters(held: Numbers) -> str:
    before, after = ("-" if held[key] is None else f"{held[key]:,}" for key in ("before", "after"))
    return f"{before} -> {after}"
