"""The report for people: the verdict first, what is alike said once, what is odd named.

Names and messages may hold anything that a file holds: they are escaped, and never read as markup.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from bncheck.findings.measurements import PairMeasurements, RecalibrationMeasurements
from bncheck.findings.report import Verdict
from bncheck.findings.rule import Severity
from bncheck.subjects.layer import Known, Normalises
from bncheck.wording import count, escaped, few, number, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bncheck.findings.report import Distribution, Finding, LayerSummary, Report, Run
    from bncheck.reports import Style
    from bncheck.subjects.layer import Behaviour, Setting

# Up to this many layers, each has a row of its own; beyond, the extremes are named and --verbose shows the rows.
MAX_ROWS = 16
# Digits, bars, counters of the table: the first with which every name fits is used.
LAYOUTS = ((3, True, True), (3, False, True), (2, False, True), (2, False, False))
LABEL_WIDTH = 22
DEFAULT_WIDTH = 80
NAMED_LAYERS = 3
BARS = " ▁▂▃▄▅▆▇█"

VERDICTS = {
    Verdict.PASSED: ("PASSED", "bold green"),
    Verdict.FAILED: ("FAILED", "bold red"),
    Verdict.UNDECIDED: ("UNDECIDED", "bold yellow"),
}
SEVERITIES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold blue"}


def write(run: Run, out: TextIO, style: Style) -> None:
    """Writes a run for people to read."""
    Page(out, style).write(run)


class Page:
    """A text report while it is written."""

    def __init__(self, out: TextIO, style: Style) -> None:
        self.style = style
        self.console = Console(
            file=out,
            width=style.width,
            no_color=True if style.color is False else None,
            # A file gets none of what FORCE_COLOR asks for the terminal; a notebook shows what is returned to it.
            force_terminal=False if style.color is False else None,
            force_jupyter=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        if self.console.width < 1:  # COLUMNS=0
            self.console.width = DEFAULT_WIDTH
        self.plain_characters = not (self.console.encoding or "").lower().startswith("utf")

    def line(self, *parts: str | tuple[str, str], indent: int = 0, first: Text | None = None) -> None:
        """Text, wrapped; all lines but the first, which may start with `first`, are indented."""
        text = Text.assemble(*parts)
        if self.plain_characters:
            text = Text(self.spelled(text.plain))
        lines = text.wrap(self.console, max(self.console.width - indent, 20)) if text else [text]
        for index, wrapped in enumerate(lines):
            start = first if first and not index else Text(" " * indent)
            wrapped.rstrip()
            self.console.print(start + wrapped, soft_wrap=True)

    def pair(self, label: str, value: str) -> None:
        """A label in the left column, its value wrapped in the right one."""
        self.line(value, indent=2 + LABEL_WIDTH, first=Text(f"  {label:{LABEL_WIDTH}}", style="dim"))

    def spelled(self, text: str) -> str:
        """The text in characters that the output can hold."""
        return text.replace("…", "..").replace("·", "|") if self.plain_characters else text

    # -- the whole

    def write(self, run: Run) -> None:
        for index, report in enumerate(run.reports):
            if index and not self.style.quiet:
                self.line()
            self.report(report)
        if run.command == "gate":
            from bncheck.reports.text.gate import write_end

            write_end(self, run)
        elif len(run.reports) > 1:
            self.total(run)

    def total(self, run: Run) -> None:
        verdicts = Counter(report.verdict for report in run.reports if not report.error)
        unreadable = sum(1 for report in run.reports if report.error)
        parts = [f"{verdicts[verdict]:,} {verdict.value}" for verdict in Verdict if verdicts[verdict]]
        if unreadable:
            parts.append(f"{unreadable:,} not read")
        if not self.style.quiet:
            self.line()
        self.line((f"{count(len(run.reports), 'input')}: {', '.join(parts)}", "bold"))

    def report(self, report: Report) -> None:
        if report.error:
            message = Text.assemble(("ERROR ", "bold red"), (escaped(report.error.message), "bold"))
            self.console.print(message, soft_wrap=True)  # a path that is broken in two cannot be copied
            if not self.style.quiet:
                self.line(escaped(report.error.hint), indent=8, first=Text("  hint: ", style="dim"))
            return
        word, color = VERDICTS[report.verdict]
        if report.checks and report.verdict is Verdict.UNDECIDED:
            word = "INCONCLUSIVE"
        part = part_for(report)
        end = f": {part.headline(report)}" if part else f": {found_in_layers(report)}" if self.style.quiet else ""
        self.console.print(
            Text.assemble((f"{word} ", color), (escaped(" -> ".join(report.subjects)), "bold"), end), soft_wrap=True
        )
        if self.style.quiet:
            return
        self.line(escaped(summary(report)), indent=2)
        if self.style.verbose and report.facts:
            facts = ", ".join(f"{name} {value}" for name, value in report.facts.items())
            self.line(escaped(facts), indent=2)
        if part:
            part.write_body(self, report)
        else:
            self.groups(report)
        self.findings(report.findings)
        self.suppressed(report)
        if report.notes:
            self.line()
        for note in report.notes:
            self.line(escaped(note), indent=7, first=Text("  note ", style=SEVERITIES[Severity.NOTE]))
        self.undecided(report)

    def groups(self, report: Report) -> None:
        groups = by_group(report.layers)
        for group, layers in groups.items():
            self.group(group, layers, alone=len(groups) == 1)

    # -- the layers of a group

    def group(self, name: str, layers: Sequence[LayerSummary], *, alone: bool) -> None:
        self.line()
        if name or not alone:
            self.pair("group", escaped(name) or "(the whole file)")
        for label, value in settings_of(layers):
            self.pair(label, escaped(value))
        if self.style.verbose or len(layers) <= MAX_ROWS:
            self.table(layers)
        else:
            self.extremes(layers)

    def table(self, layers: Sequence[LayerSummary]) -> None:
        """A row for each layer; a name that is too long for its column has a line of its own.

        The width decides how many digits there are, and whether there is room for the counters and for histograms.
        """
        names = [escaped(layer.name) or "(the module itself)" for layer in layers]
        name_width = max(map(cell_len, [*names, "layer"]))
        for digits, with_bars, with_counters in LAYOUTS:
            with_bars = with_bars and not self.plain_characters  # noqa: PLW2901
            header, *rows = self.cells(layers, digits, with_counters=with_counters)
            widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
            room = self.console.width - 2 - sum(width + 2 for width in widths) - (len(BARS) + 1) * with_bars
            if room >= name_width:
                break
        name_width = max(min(name_width, room), cell_len("layer"))
        self.line()
        self.row("layer", name_width, header, widths, Text(), "dim")
        for layer, name, row in zip(layers, names, rows, strict=True):
            self.row(name, name_width, row, widths, Text(bars(layer.running_var) if with_bars else "", "cyan"))
        if any(layer.running_mean or layer.running_var for layer in layers):
            legend = "min … median … max over the channels" + ("; bars: channels by running_var" * with_bars)
            self.line((self.spelled(f"({legend})"), "dim"), indent=2)

    def cells(self, layers: Sequence[LayerSummary], digits: int, *, with_counters: bool) -> list[list[str]]:
        """The header and the rows of the table, without the names; columns that say nothing are left out."""
        broken = [
            max(buffer.non_finite if buffer else 0 for buffer in (layer.running_mean, layer.running_var))
            for layer in layers
        ]
        with_counters = with_counters and len({layer.num_batches_tracked for layer in layers}) > 1
        columns = [
            ["channels", *(plain_count(layer.num_features) for layer in layers)],
            ["updates", *(plain_count(layer.num_batches_tracked) for layer in layers)] if with_counters else None,
            ["running_mean", *(self.spread(layer.running_mean, digits) for layer in layers)],
            ["running_var", *(self.spread(layer.running_var, digits) for layer in layers)],
            ["not finite", *(plain_count(number or None) for number in broken)] if any(broken) else None,
        ]
        return [list(row) for row in zip(*filter(None, columns), strict=True)]

    def row(
        self, name: str, name_width: int, cells: Sequence[str], widths: Sequence[int], end: Text, style: str = ""
    ) -> None:
        columns = "".join(
            "  " + " " * (width - cell_len(cell)) + cell for cell, width in zip(cells, widths, strict=True)
        )
        if cell_len(name) > name_width:
            self.console.print(Text(f"  {name}", style), soft_wrap=True)
            name = ""
        text = Text.assemble((f"  {name}{' ' * (name_width - cell_len(name))}{columns}", style), "  ", end)
        text.rstrip()
        self.console.print(text, soft_wrap=True)

    def spread(self, distribution: Distribution | None, digits: int) -> str:
        """Minimum, median and maximum of what is finite."""
        if distribution is None or distribution.finite is None:
            return "-"
        return self.spelled(" … ".join(short(value, digits) for value in distribution.finite))

    def extremes(self, layers: Sequence[LayerSummary]) -> None:
        """The least and the greatest value of each buffer, and the layers they stand in."""
        for buffer in ("running_mean", "running_var"):
            held = [(getattr(layer, buffer), layer.name) for layer in layers if getattr(layer, buffer) is not None]
            if not held:
                continue
            finite = [(d.finite, name) for d, name in held if d.finite]
            if finite:
                low, low_at = min(((spread[0], name) for spread, name in finite), key=lambda item: item[0])
                high, high_at = max(((spread[2], name) for spread, name in finite), key=lambda item: item[0])
                self.pair(buffer, f"{short(low)} ({escaped(low_at)}) … {short(high)} ({escaped(high_at)})")
            broken = [escaped(name) for d, name in held if d.non_finite]
            if broken:
                self.pair(buffer, f"not finite in {count(len(broken), 'layer')}: {few(broken)}")
        self.pair("", "--verbose shows each layer")

    # -- what was found

    def findings(self, findings: Sequence[Finding]) -> None:
        folded: defaultdict[tuple[str, Severity, str], list[Finding]] = defaultdict(list)
        for finding in findings:
            folded[finding.rule, finding.severity, finding.fix].append(finding)
        worst_first = sorted(folded.items(), key=lambda item: -list(Severity).index(item[0][1]))
        for (rule, severity, fix), same in worst_first:
            self.line()
            title = Text.assemble("  ", (f"{severity.value} ", SEVERITIES[severity]), (rule, "bold"))
            self.console.print(title, soft_wrap=True)
            names = [escaped(place(finding)) for finding in same if finding.layer is not None]
            if names:
                shown = few(names, len(names) if self.style.verbose else NAMED_LAYERS)
                self.line(f"{count(len(names), 'layer')}: {shown}" if len(names) > 1 else shown, indent=4)
            self.messages(same)
            self.line(escaped(fix), indent=9, first=Text("    fix: ", style="dim"))

    def messages(self, same: Sequence[Finding]) -> None:
        """What was said; of several different messages the first, and where the others are."""
        first_of = {finding.message: finding for finding in reversed(same)}
        for message, finding in reversed(first_of.items()):
            several = len(first_of) > 1 and finding.layer is not None
            self.line(escaped(f"{place(finding)}: {message}" if several else message), indent=4)
            if several and not self.style.verbose:
                self.line((f"({count(len(first_of) - 1, 'other message')} with --verbose)", "dim"), indent=4)
                break

    def suppressed(self, report: Report) -> None:
        """What does not count, and why: once for each rule and reason."""
        alike: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for held in report.suppressed:
            layer = held.finding.layer
            alike[held.finding.rule, held.reason].append("" if layer is None else place(held.finding))
        if alike:
            self.line()
        for (rule, reason), places in alike.items():
            named = [escaped(name) for name in places if name]
            where = f" in {few(named)}" if named else ""
            self.line((f"suppressed {rule}{where}: {escaped(reason)}", "dim"), indent=4, first=Text("  "))

    def undecided(self, report: Report) -> None:
        """Each reason once, with the rules and the layers for which it holds."""
        layers_of: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for open_ in report.undecided:
            layers_of[open_.rule, open_.reason].append(open_.layer or "")
        rules_of: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for (rule, reason), layers in layers_of.items():
            named = [escaped(layer) for layer in layers if layer]
            where = f" ({few(named)})" if named and len(named) < len(report.layers) else ""
            rules_of[reason, where].append(rule)
        if rules_of:
            self.line()
        for (reason, where), rules in rules_of.items():
            self.line((f"not decided: {', '.join(rules)}{where}: {escaped(reason)}", "dim"), indent=4, first=Text("  "))


# -- words for a report


def part_for(report: Report) -> Any:
    """The module that knows the body and the first line of this kind of report; None for that of inspect.

    Each has `headline(report)` and `write_body(page, report)`.
    """
    if report.checks:
        from bncheck.reports.text import gate as text_gate

        return text_gate
    if isinstance(report.measurements, PairMeasurements):
        from bncheck.reports.text import diff as text_diff

        return text_diff
    if isinstance(report.measurements, RecalibrationMeasurements):
        from bncheck.reports.text import recalibration as text_recalibration

        return text_recalibration
    if report.measurements:
        from bncheck.reports.text import evaluation as text_evaluation

        return text_evaluation
    return None


def found_in_layers(report: Report) -> str:
    return found(report) if report.layers else "no BatchNorm layer"


def summary(report: Report) -> str:
    """`torch.save · 53 BatchNorm2d layers`, and what was found."""
    if not report.layers:
        return f"{report.format} · no BatchNorm layer"
    kinds = Counter(layer.kind.value for layer in report.layers)
    named = " and ".join(count(total, f"{kind} layer") for kind, total in kinds.most_common(NAMED_LAYERS))
    if len(kinds) > NAMED_LAYERS:
        named = count(len(report.layers), "layer")
    lenient = report.verdict is Verdict.PASSED and any(f.severity is Severity.WARNING for f in report.findings)
    return f"{report.format} · {named} · {found(report)}" + " (--fail-on warning would fail)" * lenient


def found(report: Report) -> str:
    """`1 error, 2 warnings`."""
    severities = Counter(finding.severity for finding in report.findings)
    counted = [count(severities[severity], severity.value) for severity in reversed(Severity) if severities[severity]]
    return ", ".join(counted) or "no findings"


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


def setting(held: Setting[Any], words: dict[bool, str] | None = None) -> str | None:
    if held.known is Known.UNKNOWN:
        return None
    value = held.value
    if words and isinstance(value, bool):
        shown = words[value]
    elif isinstance(value, float):
        shown = number(value)
    elif value is None:
        shown = "None (cumulative average)"
    else:
        shown = str(value)
    return f"{shown} ({held.known.value})"


def behaviour(held: Behaviour) -> str | None:
    match held.normalises_with:
        case Normalises.RUNNING:
            return "normalises with its running statistics"
        case Normalises.BATCH if held.updates_statistics:
            return "normalises by the batch and rewrites its statistics"
        case Normalises.BATCH:
            return "normalises by the batch"
        case Normalises.FAILS:
            return "raises an error: one of the two buffers is missing"
        case Normalises.UNKNOWN:
            return None


def place(finding: Finding) -> str:
    return f"{finding.group}: {finding.layer}" if finding.group else finding.layer or "(the module itself)"


def plain_count(value: int | float | None) -> str:
    return "-" if value is None else f"{value:,}"


def bars(distribution: Distribution | None) -> str:
    """How the channels spread from minimum to maximum, a block for each eighth of the way."""
    if distribution is None or not distribution.histogram:
        return ""
    highest = max(distribution.histogram)
    return "".join(BARS[-(-held * (len(BARS) - 1) // highest)] for held in distribution.histogram)
