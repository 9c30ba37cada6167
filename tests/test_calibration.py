"""The thresholds of the rules lie between the healthy and the defective: tools/calibration.py on few subjects."""

from __future__ import annotations

import pytest

from tools import calibration


def test_every_threshold_is_measured_or_says_why_not() -> None:
    measured = {constant for line in calibration.lines(quick=True) for constant in line.constants}
    assert measured.isdisjoint(calibration.NOT_MEASURED)
    assert sorted(calibration.thresholds()) == sorted(measured | calibration.NOT_MEASURED.keys())


def test_the_healthy_and_the_defective_lie_on_their_sides_of_each_threshold() -> None:
    assert [line.shown() for line in calibration.lines(quick=True) if not line.is_right()] == []


def test_the_table_of_the_calibration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibration.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    assert "NOT SEPARATED" not in printed
    assert all(constant in printed for constant in calibration.thresholds())
