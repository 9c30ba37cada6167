"""Dropout that was rewritten as a function, without training=self.training: eval() does not reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import ForgetfulClassifier

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

COMMAND, OPTIONS = "repeat", ["--trust-pickle"]
FINDS: list[tuple[str, str, str | None]] = []
RUNS = [("differs-between-runs", "error", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    classifier = ForgetfulClassifier(trained.classifier.in_features, trained.classifier.out_features)
    classifier.load_state_dict(trained.classifier.state_dict())
    trained.classifier = classifier
    return trained.eval()
