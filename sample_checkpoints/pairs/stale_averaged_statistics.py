"""The last weights of a training in one file, their average by AveragedModel in another, without update_bn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.defects import stale_averaged_statistics
from sample_checkpoints.network import DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("stale-averaged-statistics", "warning", None)]


def make(trained: DigitNet, digits: Digits) -> tuple[object, object]:
    both = stale_averaged_statistics.make(trained, digits)
    assert isinstance(both, dict)
    return both["model"], both["ema"]
