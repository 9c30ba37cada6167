"""The pairs of samples are what they claim to be, and make.py can build them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bncheck.commands.diff import run
from bncheck.findings.report import Report
from bncheck.rules import DIFF_RULES
from sample_checkpoints import make, training
from sample_checkpoints.network import DigitNet

SAMPLES = Path(make.__file__).parent


def compare(rule: str, folder: Path = SAMPLES) -> Report:
    [report] = run({"before": folder / rule / "before.pt", "after": [folder / rule / "after.pt"]}).reports
    assert report.error is None
    return report


def findings(rule: str, folder: Path = SAMPLES) -> list[tuple[str, str, str | None]]:
    return sorted(((f.rule, f.severity.value, f.layer) for f in compare(rule, folder).findings), key=str)


def test_every_rule_about_two_checkpoints_has_a_pair_and_every_pair_a_rule() -> None:
    rules = sorted(rule.id for rule in DIFF_RULES)
    assert rules == sorted(make.PAIRS)
    assert rules == sorted(path.parent.name for path in SAMPLES.glob("*/before.pt"))
    assert rules == sorted(path.parent.name for path in SAMPLES.glob("*/after.pt"))


@pytest.mark.parametrize("rule", sorted(make.PAIRS))
def test_a_pair_sets_off_what_it_was_made_for_and_nothing_else(rule: str) -> None:
    assert sorted(make.PAIRS[rule].FINDS, key=str) == findings(rule)


def test_joint_training_is_told_by_its_batches_and_undone_by_the_old_buffers() -> None:
    report = compare("frozen-but-drifting")
    digits = training.read_digits(SAMPLES / "digits")
    joint = torch.load(SAMPLES / "frozen-but-drifting" / "after.pt", weights_only=True)
    before = torch.load(SAMPLES / "frozen-but-drifting" / "before.pt", weights_only=True)
    after = {name.removeprefix("model_A."): held for name, held in joint.items() if name.startswith("model_A.")}

    def accuracy(state: dict[str, torch.Tensor]) -> float:
        network = DigitNet()
        network.load_state_dict(state)
        return training.accuracy(network.eval(), digits)

    assert {22} == {finding.measured["train_mode_batches"] for finding in report.findings}
    assert accuracy(after) < 0.5
    buffers = {name: held for name, held in before.items() if name.endswith(("running_mean", "running_var"))}
    assert accuracy(before) == accuracy({**after, **buffers}) > 0.97


def test_the_pairs_are_small() -> None:
    sizes = [path.stat().st_size for path in SAMPLES.glob("*/*.pt")]
    assert max(sizes) < 150_000
    assert sum(sizes) < 1_000_000


@pytest.mark.slow
def test_the_pairs_can_be_built_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", SAMPLES / "make.py", tmp_path, *make.PAIRS], check=True)
    for rule in make.PAIRS:
        assert findings(rule) == findings(rule, tmp_path), rule
