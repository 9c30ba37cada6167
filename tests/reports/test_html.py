"""What a notebook and print() show of a report: read back by an HTML parser, names from files are never obeyed."""

import builtins
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings

import bncheck
from bncheck.findings.report import Report, Suppressed, Undecided
from bncheck.findings.rule import Severity
from bncheck.reports.html import as_html
from bncheck.reports.phrases import shown_path
from bncheck.reports.text.printed import as_text
from bncheck.wording import escaped
from tests.reports.runs import HOSTILE, SAMPLES, every_sample, found, layer, reports, run_of

TAGS = {"div", "p", "b", "br", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
VOID = {"br"}


class Reader(HTMLParser):
    """The cells of the rows, and whatever is not as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"style", "class"}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if "tr" in self.open:
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        pytest.fail(f"a declaration: {decl!r}")

    def handle_pi(self, data: str) -> None:
        pytest.fail(f"an instruction: {data!r}")


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    return reader


def report_of(**fields: object) -> Report:
    [report] = run_of(**fields).reports  # type: ignore[arg-type]
    return report


def test_the_rows_tell_what_was_found() -> None:
    findings = (found(layer="a"), found(layer="b"), found("zero-scale", "a", severity=Severity.NOTE, fix="None."))
    [report] = run_of(
        *findings,
        undecided=(Undecided("lost-eps", None, None, "the file does not hold eps"),),
        suppressed=(Suppressed(found("dead-channels", "c"), "meant so"),),
        notes=("layers were found below 'model.'",),
    ).reports
    reader = read(as_html(report))
    assert "FAILED model.pt" in reader.words
    assert reader.rows == [
        ["severity", "rule", "where", "finding", "fix"],
        ["error", "negative-variance", "a, b", "it is negative", "Mend it."],
        ["note", "zero-scale", "a", "it is negative", "None."],
        ["suppressed", "where", "finding", "reason"],
        ["dead-channels", "c", "it is negative", "meant so"],
        ["not decided", "where", "reason"],
        ["lost-eps", "", "the file does not hold eps"],
        ["note"],
        ["layers were found below 'model.'"],
        ["layer", "kind", "channels", "updates", "running_mean", "running_var"],
        ["bn", "BatchNorm2d (inferred)", "64", "inf", "-", "0 … 0.5 … 1, 1 not finite"],
    ]


def test_every_sample_is_shown_with_its_verdict() -> None:
    for report in every_sample().reports:
        reader = read(as_html(report))
        assert ("NOT READ" if report.error else report.verdict.value.upper()) in reader.words
        assert shown_path(report.subjects[0]) in reader.words


def test_it_needs_nothing_from_elsewhere() -> None:
    shown = bncheck.inspect(SAMPLES / "non-finite-statistics.pt")._repr_html_()
    assert not any(word in shown for word in ("http", "<script", "<link", "<img", "url("))


def test_of_very_many_layers_the_first_are_shown() -> None:
    shown = read(as_html(report_of(layers=tuple(layer(f"bn{index}") for index in range(1000)))))
    assert "1,000 layers, the first 300 of them" in shown.words
    assert len(shown.rows) == 301


@pytest.mark.parametrize("text", HOSTILE, ids=[f"{index}" for index in range(len(HOSTILE))])
def test_a_hostile_name_is_read_as_it_is(text: str) -> None:
    [report] = run_of(found(layer="bn", message=text), layers=(layer(text),), notes=(text,)).reports
    document = as_html(report)
    document.encode("utf-8")
    assert "$" not in document
    rows = read(document).rows
    assert escaped(text) == rows[1][3]
    assert [escaped(text)] == rows[3]
    assert (escaped(text) or "(the module itself)") == rows[-1][0]


@given(reports())
@settings(deadline=None)
def test_whatever_a_report_holds_the_document_is_sound(report: Report) -> None:
    reader = read(as_html(report))
    assert shown_path(report.subjects[0]) in reader.words
    if not report.error:
        shown = {text for row in reader.rows for text in row}
        assert all(escaped(note) in shown for note in report.notes)
        assert all(escaped(finding.rule) in shown for finding in report.findings)


# -- print


def test_a_report_prints_as_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = str(bncheck.inspect(SAMPLES / "healthy_module.pt")).splitlines()
    assert lines[0].startswith("PASSED ")
    assert "layers · no findings" in lines[1]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(("name", "value"), [("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1"), ("CLICOLOR_FORCE", "1")])
def test_a_printed_report_has_no_colors(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert "\x1b" not in as_text(report_of())


def test_a_report_prints_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich asks `get_ipython` whether it is in a notebook, and would then show the text by itself."""

    class ZMQInteractiveShell:
        pass

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert as_text(report_of()).startswith("PASSED model.pt\n")


@pytest.mark.parametrize("text", HOSTILE, ids=[f"{index}" for index in range(len(HOSTILE))])
def test_a_printed_report_spells_out_what_a_terminal_would_obey(text: str) -> None:
    [report] = run_of(found(layer=text, message=text, fix=text), layers=(layer(text),), notes=(text,)).reports
    assert all(line.isprintable() for line in as_text(report).splitlines())
