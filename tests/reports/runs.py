"""Runs for the tests of the formats: the samples as they are examined, and reports that hold whatever a file may."""

import io
from pathlib import Path

from hypothesis import strategies as st
from typer.testing import CliRunner

from bncheck.cli import app
from bncheck.commands.inspect import run as inspect
from bncheck.findings.measurements import DriftMeasurements, LayerNumbers, ShiftNumbers, Spread
from bncheck.findings.report import (
    Distribution,
    Finding,
    LayerSummary,
    Problem,
    Report,
    Run,
    Suppressed,
    Undecided,
    Verdict,
)
from bncheck.findings.rule import Severity
from bncheck.reports import Format, Style, write
from bncheck.rules import RULES
from bncheck.subjects.layer import UNKNOWN, Behaviour, Normalises, inferred, stored

SAMPLES = Path(__file__).parent.parent.parent / "sample_checkpoints"


def written(format_: Format, run: Run) -> str:
    out = io.StringIO()
    write(format_, run, out, Style(width=80))
    return out.getvalue()


def written_by_name(name: str, folder: Path) -> str:
    """What the command writes to a file of that name, whose suffix names the format."""
    sample, target = SAMPLES / "healthy.pt", folder / name
    result = CliRunner().invoke(app, ["inspect", str(sample), "--quiet", "--output", str(target)])
    assert result.exit_code == 0, result.output
    return target.read_text("utf-8")


def inspected(*names: str, fail_on: Severity | None = Severity.ERROR) -> Run:
    """The run of `inspect` on samples; a name that is none gives a report with an error."""
    level = fail_on.value if fail_on else "never"
    return inspect({"paths": [SAMPLES / name for name in names], "fail_on": level})


def every_sample() -> Run:
    return inspected(*sorted(path.name for path in SAMPLES.glob("*.pt")), "missing.pt")


def run_of(*findings: Finding, **fields: object) -> Run:
    """A run with one report."""
    made = {"layers": (layer("bn"),), "rules": tuple({finding.rule: None for finding in findings}), **fields}
    verdict = Verdict.FAILED if any(finding.severity is Severity.ERROR for finding in findings) else Verdict.PASSED
    report = Report(("model.pt",), "torch.save", verdict, findings=findings, **made)  # type: ignore[arg-type]
    return Run("inspect", (report,), 1 if verdict is Verdict.FAILED else 0, catalogue=RULES)


def found(rule: str = "negative-variance", layer: str | None = "bn", **fields: object) -> Finding:
    made = {"severity": Severity.ERROR, "group": "", "message": "it is negative", "measured": {}, "fix": "Mend it."}
    return Finding(rule=rule, layer=layer, **{**made, **fields})  # type: ignore[arg-type]


def layer(name: str, group: str = "") -> LayerSummary:
    broken = Distribution(float("nan"), float("nan"), float("nan"), 1, (0.0, 0.5, 1.0), (1, 0, 0, 0, 0, 0, 0, 1))
    return LayerSummary(
        name, group, name, None, inferred("BatchNorm2d"), 64, "float32", float("inf"), UNKNOWN, stored(0.1),
        inferred(True), inferred(True), UNKNOWN, Behaviour(Normalises.UNKNOWN, None), None, broken,
    )  # fmt: skip


# What each format, the terminal and the shell around it would obey.
HOSTILE = (
    "", " ", "a|b", "\\", "\\|", "`x`", "``", "*a*", "_a_", "__a__", "running_var", "~~a~~", "# a", "| --- |", "- a",
    "1. a", "<script>alert(1)</script>", "<!--", "-->", "]]>", "<![CDATA[", "&amp;", "&#124;", "&lt", "\x1b[31m", "\0",
    "a\nb", "a\r\nb", "\u2028", "\u202ea", "\ufffe", "\ud800", "\udc80", "[a](b)", "![a](b)", "](", "{0}", "{{", "}",
    "::error::a", "::stop-commands::a", "%0A::error::a", "%", "%25", "a,b=c", "a:b", "##[error]a", "http://a.b",
    "www.a.b", "@a", ":smile:", "$x$", "/a b/../c?d#e", "//a", "C:\\a", "../a", "größe.层", "é" * 300, "\u00a0", "'\"",
)  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    """Any text, lone surrogates and control characters among it, and the hostile ones alone and joined."""
    anything = st.text(st.characters(exclude_categories=()), max_size=8)
    hostile = st.sampled_from(HOSTILE)
    return hostile | anything | st.lists(hostile, min_size=2, max_size=3).map("".join)


def names() -> st.SearchStrategy[str | None]:
    return st.none() | texts()


def rules() -> st.SearchStrategy[str]:
    return st.sampled_from([rule.id for rule in RULES[:3]]) | texts()


def findings() -> st.SearchStrategy[Finding]:
    measured = st.dictionaries(
        texts(), texts() | st.floats() | st.lists(st.floats(), max_size=2).map(tuple), max_size=2
    )
    return st.builds(Finding, rules(), st.sampled_from(Severity), names(), names(), texts(), measured, texts())


def measurements() -> st.SearchStrategy[DriftMeasurements]:
    """Those of a model that ran, whose names hold anything."""
    spread = st.none() | st.builds(Spread, st.floats(), st.floats())
    shift = st.none() | st.builds(ShiftNumbers, spread, spread)
    flag = st.none() | st.booleans()
    numbers = st.integers(0, 9)
    layer_numbers = st.builds(LayerNumbers, numbers, flag, flag, st.none() | numbers, numbers, shift, shift, shift)
    return st.builds(
        DriftMeasurements,
        images=numbers,
        batches=numbers,
        passes=numbers,
        device=texts(),
        artefact=texts(),
        watched=st.none() | texts(),
        data=st.dictionaries(texts(), texts() | st.floats() | st.none(), max_size=2),
        not_measured=st.dictionaries(texts(), texts(), max_size=2),
        in_distribution=st.booleans(),
        layers=st.dictionaries(texts(), layer_numbers, max_size=2),
        train_mode=st.none(),
        by_batches=st.just({}),
        fit=st.none(),
    )


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """A report whose names, messages, facts and paths hold anything."""
    subject, note = draw(texts()), draw(texts())
    if draw(st.integers(0, 5)) == 0:
        return Report((subject,), None, Verdict.UNDECIDED, Problem(draw(texts()), draw(texts())))
    measured = st.dictionaries(texts(), texts() | st.floats() | st.none(), max_size=2)
    return Report(
        (subject,),
        draw(names()),
        draw(st.sampled_from(Verdict)),
        layers=tuple(layer(draw(texts()), draw(texts())) for _ in range(draw(st.integers(0, 2)))),
        findings=tuple(draw(st.lists(findings(), max_size=3))),
        undecided=tuple(draw(st.lists(st.builds(Undecided, rules(), names(), names(), texts()), max_size=3))),
        measurements=draw(st.none() | measurements()),
        facts=draw(measured),
        globals=((draw(texts()), draw(texts())),),
        rules=tuple(draw(st.lists(rules(), max_size=2, unique=True))),
        notes=(note,),
        suppressed=tuple(draw(st.lists(st.builds(Suppressed, findings(), texts()), max_size=2))),
        fail_on=draw(st.none() | st.sampled_from(Severity)),
    )


def runs() -> st.SearchStrategy[Run]:
    made = st.lists(reports(), max_size=2).map(tuple)
    return st.builds(Run, st.sampled_from(["inspect", "drift"]) | texts(), made, st.integers(0, 3))
