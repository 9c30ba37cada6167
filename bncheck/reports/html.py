"""A single report as a notebook shows it: a small table, which needs nothing from anywhere else.

What comes from files is escaped, so that it is read and never obeyed. Colors are few, and readable on white and black.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from bncheck.findings.report import Verdict
from bncheck.findings.rule import Severity
from bncheck.reports.headlines import summary
from bncheck.reports.markdown import verdict_row
from bncheck.reports.phrases import THE_MODULE, open_questions, plain_count, setting, suppressed, worst_first
from bncheck.wording import count, escaped, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bncheck.findings.report import Distribution, LayerSummary, Report

COLORS = {
    Verdict.PASSED: "#2e8b57",
    Verdict.FAILED: "#d9483b",
    Verdict.UNDECIDED: "#b8860b",
    Severity.ERROR: "#d9483b",
    Severity.WARNING: "#b8860b",
    Severity.NOTE: "#4682b4",
}
# A notebook keeps what it shows in its file: of more layers than any usual network has, the first will do.
MOST_LAYERS = 300


def as_html(report: Report) -> str:
    """The verdict, what was found, and the layers behind a click."""
    parts = [f'<div class="bncheck">{head(report)}']
    if not report.error:
        rows = [
            (colored(a.severity.value, COLORS[a.severity]), *cells(a.rule, a.where, a.message, a.fix))
            for a in worst_first(report.findings)
        ]
        parts.append(table(("severity", "rule", "where", "finding", "fix"), rows))
        parts.append(table(("suppressed", "where", "finding", "reason"), cell_rows(map(suppressed, report.suppressed))))
        questions = ((", ".join(open_.rules), open_.where, open_.reason) for open_ in open_questions(report))
        parts.append(table(("not decided", "where", "reason"), cell_rows(questions)))
        parts.append(table(("note",), cell_rows((escaped(note),) for note in report.notes)))
        parts.append(layers(report.layers))
    return "".join([*parts, "</div>"])


def head(report: Report) -> str:
    verdict, path, result = verdict_row(report)
    shown = result if report.error or report.measurements else escaped(summary(report))
    color = COLORS[Verdict.FAILED if report.error else report.verdict]
    return f"<p>{colored(verdict, color)} <b>{cell(path)}</b><br>{cell(shown)}</p>"


def layers(held: Sequence[LayerSummary]) -> str:
    if not held:
        return ""
    header = ("layer", "kind", "channels", "updates", "running_mean", "running_var")
    rows = (
        (
            escaped(f"{layer.group}: {layer.name}" if layer.group else layer.name) or THE_MODULE,
            escaped(setting(layer.kind) or "-"),
            plain_count(layer.num_features),
            plain_count(layer.num_batches_tracked),
            spread(layer.running_mean),
            spread(layer.running_var),
        )
        for layer in held[:MOST_LAYERS]
    )
    title = count(len(held), "layer") + (f", the first {MOST_LAYERS} of them" if len(held) > MOST_LAYERS else "")
    return f"<details><summary>{cell(title)}</summary>{table(header, cell_rows(rows))}</details>"


def spread(distribution: Distribution | None) -> str:
    """Minimum, median and maximum of what is finite, and how many channels are not."""
    if distribution is None:
        return "-"
    text = " … ".join(map(short, distribution.finite)) if distribution.finite else "-"
    return f"{text}, {distribution.non_finite:,} not finite" if distribution.non_finite else text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; nothing where there is no row."""
    body = "".join(f"<tr>{''.join(map(data, row))}</tr>" for row in rows)
    if not body:
        return ""
    titles = "".join(f'<th style="text-align:left">{cell(title)}</th>' for title in header)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def data(content: str) -> str:
    return f'<td style="text-align:left">{content}</td>'


def colored(word: str, color: str) -> str:
    return f'<b style="color:{color}">{cell(word)}</b>'


def cell_rows(rows: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    return [cells(*row) for row in rows]


def cells(*texts: str) -> tuple[str, ...]:
    return tuple(map(cell, texts))


def cell(text: str) -> str:
    """The text as it is to be read. A notebook takes $ for the start of a formula, in HTML too."""
    return html.escape(text).replace("$", "&#36;")
