"""bncheck as a library."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import bncheck
from bncheck.findings.report import Verdict
from sample_checkpoints.network import DigitNet

SAMPLES = Path(__file__).parent.parent / "sample_checkpoints"


def test_a_live_module_gives_the_report_of_its_file(tmp_path: Path) -> None:
    modules: dict[str, nn.Module] = {
        "healthy": torch.load(SAMPLES / "healthy_module.pt", weights_only=False),
        "fresh": DigitNet(),
        "without statistics": DigitNet(track_running_stats=False).eval(),
        "half": DigitNet().half().eval(),
        "no BatchNorm": nn.Linear(2, 3),
    }
    for name, module in modules.items():
        torch.save(module, tmp_path / "model.pt")
        saved = bncheck.inspect(tmp_path / "model.pt")
        live = bncheck.inspect(module)
        assert replace(saved, subjects=(), format=None, globals=()) == replace(
            live, subjects=(), format=None, globals=()
        ), name
        assert live.subjects == (type(module).__name__,)


def test_inspecting_a_module_changes_nothing() -> None:
    module = DigitNet()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = bncheck.inspect(module)
    assert report.verdict is Verdict.FAILED
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_rules_are_chosen_as_on_the_command_line() -> None:
    path = SAMPLES / "never-updated-statistics.pt"
    assert {finding.rule for finding in bncheck.inspect(path).findings} == {"never-updated-statistics"}
    assert bncheck.inspect(path, ignore=["never-*"]).findings == ()
    assert bncheck.inspect(path, select=["negative-variance"]).rules == ("negative-variance",)
    assert bncheck.inspect(path, fail_on=None).verdict is Verdict.PASSED


def test_what_cannot_be_read_is_an_exception() -> None:
    with pytest.raises(bncheck.BncheckError, match="does not exist"):
        bncheck.inspect("absent.pt")
    with pytest.raises(bncheck.BncheckError, match="no such rule"):
        bncheck.inspect(SAMPLES / "healthy.pt", select=["dead-chanels"])
    with pytest.raises(bncheck.BncheckError, match=r"holds \d+ checkpoints"):
        bncheck.inspect(SAMPLES)
    with pytest.raises(AttributeError):
        bncheck.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_bncheck_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, bncheck; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def batches() -> list[torch.Tensor]:
    return list(torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split(16))


def test_a_live_module_is_watched_and_given_back() -> None:
    module = torch.load(SAMPLES / "healthy_module.pt", weights_only=False).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = bncheck.drift(module, batches())
    assert {finding.rule for finding in report.findings} >= {"changed-in-evaluation"}
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    report = bncheck.drift(module, batches(), evaluator=lambda model: model.eval()(batches()[0]), select=["changed-*"])
    assert report.verdict is Verdict.PASSED
    assert module.training


def test_a_module_in_train_mode_depends_on_the_batch() -> None:
    module = torch.load(SAMPLES / "healthy_module.pt", weights_only=False)
    assert bncheck.repeat(module, batches()).verdict is Verdict.PASSED
    [finding] = bncheck.repeat(module.train(), batches()).findings
    assert finding.rule == "depends-on-batch"


def test_the_gate_is_a_function_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bncheck.toml").write_text(f'checkpoint = "{SAMPLES / "saved-in-train-mode.pt"}"')
    [report] = bncheck.gate()
    assert report.verdict is Verdict.FAILED
    [report] = bncheck.gate(fail_on="error")
    assert report.verdict is Verdict.PASSED
    assert report.measurements is None
    assert "5 BatchNorm2d layers" in report._repr_html_()
    [report] = bncheck.gate(config=str(tmp_path / "bncheck.toml"))
    assert report.verdict is Verdict.FAILED
    [report] = bncheck.gate(SAMPLES / "healthy.pt", require=["depends-on-batch"])
    assert report.verdict is Verdict.UNDECIDED
    with pytest.raises(TypeError, match="fails_on"):
        bncheck.gate(fails_on="error")
