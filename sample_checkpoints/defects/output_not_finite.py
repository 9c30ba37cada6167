"""A release in half precision of a network whose softmax was fine in float32.

exp(12) is more than float16 holds: infinity over infinity is NaN, for the digits that the network is surest of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import ProbabilityClassifier

if TYPE_CHECKING:
    from sample_checkpoints.network import DigitNet
    from sample_checkpoints.training import Digits

COMMAND, OPTIONS = "repeat", ["--trust-pickle"]
FINDS = [("low-precision-statistics", "note", None)]
RUNS = [("output-not-finite", "error", None)]


def make(trained: DigitNet, digits: Digits) -> object:
    classifier = ProbabilityClassifier(trained.classifier.in_features, trained.classifier.out_features)
    classifier.load_state_dict(trained.classifier.state_dict())
    trained.classifier = classifier
    return trained.eval().half()
