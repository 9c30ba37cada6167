"""The part of the text report that is about a model that ran: what was measured, in words and bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

from bncheck.findings.measurements import DriftMeasurements, RepeatMeasurements
from bncheck.reports.text.table import GAP, TITLE, Table, bars, draw, shown_of, write_legend
from bncheck.wording import count, escaped, few, percent, short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.findings.measurements import LayerNumbers, RunMeasurements, ShiftNumbers
    from bncheck.findings.report import Report
    from bncheck.reports.text.page import Page
    from bncheck.subjects.evaluation import Agreement, Repeat

BAR_WIDTH, LEAST_BAR_WIDTH = 20, 8
ARTEFACTS = {
    "state_dict": "state_dict",
    "module": "pickled module",
    "torchscript": "TorchScript",
    "exported": "exported program",
}
TRAIN_MODE = "cost of train mode"  # the name of the probe


def write_body(page: Page, report: Report) -> None:
    """What was measured; of which findings are made follows after it."""
    page.line()
    match report.measurements:
        case RepeatMeasurements() as numbers:
            page.pair("ran", ran(numbers))
            for label, value in repeat_lines(numbers.repeat):
                page.pair(label, escaped(value))
        case DriftMeasurements() as numbers:
            page.pair("ran", ran(numbers))
            for label, value in drift_lines(numbers):
                page.pair(label, escaped(value))
            write_table(page, numbers.layers)
        case _:
            raise AssertionError("a report of an evaluation has its measurements")


def ran(numbers: RunMeasurements) -> str:
    artefact = ARTEFACTS.get(numbers.artefact, numbers.artefact)
    samples, batches = count(numbers.images, "sample"), count(numbers.batches, "batch")
    return f"{artefact} on {numbers.device}: {samples} in {batches}, {count(numbers.passes, 'pass')} over the data"


def drift_lines(numbers: DriftMeasurements) -> list[tuple[str, str]]:
    layers = numbers.layers
    lines = []
    if numbers.watched:
        moved = [name for name, layer in layers.items() if layer.moved]
        modes = [name for name, layer in layers.items() if layer.training]
        text = f"{len(moved):,} of {count(len(layers), 'layer')} ({numbers.watched})"
        if modes:
            everywhere = "all" if len(modes) == len(layers) else few(modes)
            text += f"; in train mode: {everywhere}"
        lines.append(("moved in evaluation", text))
    never = [name for name, layer in layers.items() if layer.called == 0]
    if never:
        lines.append(("never called", few(never)))
    if numbers.train_mode:
        lines.append(("a pass in train mode", f"{consequence(numbers.train_mode)}{intervals(numbers.by_batches)}"))
    elif TRAIN_MODE in numbers.not_measured:
        lines.append(("a pass in train mode", f"not measured: {numbers.not_measured[TRAIN_MODE]}"))
    if numbers.fit:
        lines.append(("data's statistics", f"{consequence(numbers.fit)} if they replace the stored ones"))
    return lines


def consequence(agreement: Agreement) -> str:
    """`would change 44 % of the predictions (accuracy 97.5 % before, 55.0 % after)`."""
    changed = agreement.predictions_changed
    if changed is None:
        return f"would change the output by {agreement.output_change:.2g} of its size"
    text = f"would change {percent(changed)} of the predictions"
    if agreement.accuracy_before is not None:
        text += f" (accuracy {agreement.accuracy_before:.1%} before, {agreement.accuracy_after:.1%} after)"
    return text


# The share of changed predictions of which the report says when it is reached.
NOTABLE = 0.1


def intervals(by_batches: Mapping[int, float]) -> str:
    """`; 10 % between 4 and 8 batches`: the first doubling at which the share is reached."""
    previous = 0
    for batches, share in by_batches.items():
        if share >= NOTABLE:
            return f"; {NOTABLE:.0%} " + (f"between {previous} and {batches} batches" if previous else "after 1 batch")
        previous = batches
    return ""


def repeat_lines(repeat: Repeat) -> list[tuple[str, str]]:
    identical = {True: "the same both times", False: "differ", None: "not compared"}[repeat.identical_inputs]
    lines = [("inputs", identical)]
    if repeat.same_batches_max_difference is not None:
        difference = repeat.same_batches_max_difference
        text = "equal bit for bit" if not difference else f"differ by up to {short(difference)} of the largest output"
        if repeat.predictions_changed:
            change = "changes" if repeat.predictions_changed == 1 else "change"
            text += f", {count(repeat.predictions_changed, 'prediction')} {change}"
        lines.append((f"{repeat.runs} runs", text))
    if repeat.other_company_max_difference is not None and repeat.company_tolerance is not None:
        within = repeat.other_company_max_difference <= repeat.company_tolerance
        lines.append(
            (
                "in other batches",
                f"{short(repeat.other_company_max_difference)} of the largest output in "
                f"{repeat.company_dtype}, {'within' if within else 'beyond'} rounding "
                f"({short(repeat.company_tolerance)})",
            )
        )
    for number, metrics in enumerate(repeat.metrics, 1):
        if metrics:
            told = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
            lines.append((f"evaluation {number}", told))
    return lines


COLUMNS = (("as_shipped", "moved"), ("train_mode", "train mode"), ("fit", "data"))


def write_table(page: Page, layers: Mapping[str, LayerNumbers]) -> None:
    """The layers by damage: how far the mean moved, and a bar for the largest of the columns."""
    damage = {name: worst(layer) for name, layer in layers.items()}
    known = {name: value for name, value in damage.items() if value is not None}
    if not known:
        return
    shown = shown_of(page, sorted(known, key=lambda name: -known[name]))
    columns = [(part, title) for part, title in COLUMNS if any(getattr(layers[name], part) for name in shown)]
    rows = [[median(getattr(layers[name], part)) for part, _ in columns] for name in shown]
    table = Table(shown, [title for _, title in columns], rows)
    bar_width = room_for_bars(table, table.room(page))
    beside = bar_width + GAP * (bar_width > 0)
    draw(page, table, beside, bars(page, [known[name] for name in shown], bar_width))
    write_legend(
        page,
        "shift of the mean in standard deviations, or of their logarithm if that is more; median of the channels",
        len(known) - len(shown),
    )


def room_for_bars(table: Table, room: int) -> int:
    """The width of the longest bar; 0 where even a short one leaves no room for names."""
    width = min(BAR_WIDTH, max(room - table.longest - GAP, LEAST_BAR_WIDTH))
    return width if room >= cell_len(TITLE) + GAP + width else 0


def worst(layer: LayerNumbers) -> float | None:
    values = [value for part, _ in COLUMNS if (value := farther(getattr(layer, part))) is not None]
    return max(values) if values else None


def farther(shift: ShiftNumbers | None) -> float | None:
    """The median over the channels of the shift of the mean, or of the spread if that moved more."""
    if not shift or not shift.mean_shift or not shift.variance_shift:
        return None
    return max(shift.mean_shift.median, shift.variance_shift.median)


def median(shift: ShiftNumbers | None) -> str:
    value = farther(shift)
    return "-" if value is None else short(value, 2)
