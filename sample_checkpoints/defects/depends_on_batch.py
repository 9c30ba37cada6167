"""Features that were to be centered per image and are centered over the batch: a wrong dimension, and no BatchNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import CenteredClassifier

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

COMMAND, OPTIONS = "repeat", ["--trust-pickle"]
FINDS: list[tuple[str, str, str | None]] = []
RUNS = [("depends-on-batch", "error", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    classifier = CenteredClassifier(trained.classifier.in_features, trained.classifier.out_features)
    classifier.load_state_dict(trained.classifier.state_dict())
    trained.classifier = classifier
    return trained.eval()
