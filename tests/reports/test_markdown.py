"""The Markdown summary, read back by a Markdown parser: names from files are read, never obeyed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from inline_snapshot import snapshot
from markdown_it import MarkdownIt
from markdown_it.token import Token

from bncheck.findings.report import Run, Suppressed, Undecided
from bncheck.findings.rule import Severity
from bncheck.reports import Format
from bncheck.reports.markdown import cell
from bncheck.reports.phrases import shown_path
from bncheck.wording import escaped
from tests.reports.runs import HOSTILE, every_sample, found, inspected, run_of, runs, written, written_by_name

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def tokens(run: Run) -> list[Token]:
    return PARSER.parse(written(Format.MARKDOWN, run))


def plain(token: Token) -> str:
    """The text of an inline token in which there is nothing but text."""
    assert {child.type for child in token.children or []} <= {"text"}, token
    return "".join(child.content for child in token.children or [])


def tables(run: Run) -> list[list[list[str]]]:
    """The cells of the rows of the tables."""
    found_: list[list[list[str]]] = []
    for before, token in zip([None, *(held := tokens(run))], held, strict=False):
        if token.type == "table_open":
            found_.append([])
        elif token.type == "tr_open":
            found_[-1].append([])
        elif token.type == "inline" and before and before.type in ("td_open", "th_open"):
            found_[-1][-1].append(plain(token))
    return found_


def test_the_document() -> None:
    findings = (
        found(layer="a"),
        found(layer="b"),
        found("zero-scale", "a", severity=Severity.NOTE, message="it is 0", fix="None."),
    )
    run = run_of(
        *findings,
        undecided=(Undecided("lost-eps", None, None, "the file does not hold eps"),),
        suppressed=(Suppressed(found("dead-channels", "c"), "meant so"),),
        notes=("layers were found below 'model.'",),
    )
    assert written(Format.MARKDOWN, run) == snapshot("""\
## bncheck inspect

1 input: 1 failed

| verdict | input | result |
| --- | --- | --- |
| FAILED | model.pt | 2 errors, 1 note, 1 suppressed |

### model.pt

| severity | rule | where | finding | fix |
| --- | --- | --- | --- | --- |
| error | negative-variance | a, b | it is negative | Mend it. |
| note | zero-scale | a | it is 0 | None. |

| suppressed | where | finding | reason |
| --- | --- | --- | --- |
| dead-channels | c | it is negative | meant so |

| not decided | where | reason |
| --- | --- | --- |
| lost-eps |  | the file does not hold eps |

| note |
| --- |
| layers were found below 'model.' |
""")


def test_a_run_that_passed_is_a_line() -> None:
    (verdicts,) = tables(inspected("healthy_module.pt"))
    assert verdicts[0] == ["verdict", "input", "result"]
    assert (verdicts[1][0], verdicts[1][2]) == ("PASSED", "no findings")


def test_every_input_has_its_verdict() -> None:
    run = every_sample()
    _, *rows = tables(run)[0]
    expected = ["NOT READ" if report.error else report.verdict.value.upper() for report in run.reports]
    assert expected == [verdict for verdict, _, _ in rows]
    assert "does not exist (hint: Check the path" in rows[-1][2]


def test_a_file_without_batchnorm_says_so() -> None:
    [_, [_, _, result]], *_ = tables(run_of(layers=()))
    assert result == "there is no BatchNorm layer to judge"


@pytest.mark.parametrize("text", HOSTILE, ids=[f"{index}" for index in range(len(HOSTILE))])
def test_a_cell_is_read_as_it_is(text: str) -> None:
    shown = escaped(text)
    row = f"| a | b |\n| --- | --- |\n| {cell(shown)} | end |\n"
    inlines = [token for token in PARSER.parse(row) if token.type == "inline"]
    assert not set("<>") & set(cell(shown))
    assert [shown.strip(), "end"] == [plain(token) for token in inlines[2:]]


def test_ordinary_names_stay_readable() -> None:
    text = "ema: layer1.0.bn_1: running_var is -0.5 (1e-05, assumed)!"
    assert text == cell(text)


def test_the_suffix_md_names_the_format(tmp_path: Path) -> None:
    assert written_by_name("summary.md", tmp_path).startswith("## bncheck inspect\n")


@given(runs())
@settings(deadline=None)
def test_whatever_a_report_holds_the_tables_have_their_cells(run: Run) -> None:
    text = written(Format.MARKDOWN, run)
    assert text == written(Format.MARKDOWN, run)
    text.encode("utf-8")
    kinds = {token.type.removesuffix("_open").removesuffix("_close") for token in tokens(run)}
    assert kinds <= {"heading", "paragraph", "inline", "table", "thead", "tbody", "tr", "th", "td"}
    verdicts, *others = tables(run)
    for table in [verdicts, *others]:
        assert len({len(row) for row in table}) == 1
    assert [shown_path(report.subjects[0]).strip() for report in run.reports] == [row[1] for row in verdicts[1:]]
    shown = {text for table in others for row in table for text in row}
    for report in run.reports:
        assert all(escaped(finding.rule).strip() in shown for finding in report.findings)
        assert all(escaped(note).strip() in shown for note in report.notes)
