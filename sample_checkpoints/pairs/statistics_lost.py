"""A release that was made of parameters(): what an optimizer knows, and no buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sample_checkpoints.network import LAYERS, DigitNet

if TYPE_CHECKING:
    from sample_checkpoints.training import Digits

FINDS = [("statistics-lost", "error", layer) for layer in LAYERS]


def make(trained: DigitNet, digits: Digits) -> tuple[object, object]:
    return trained.state_dict(), {name: parameter.detach() for name, parameter in trained.named_parameters()}
