"""bncheck: can the BatchNorm layers of this checkpoint be trusted?

    report = bncheck.inspect("model.pt")   # or a live nn.Module
    report.verdict, report.findings

    with bncheck.guard(model):             # raises BatchNormDriftError if statistics move inside
        evaluate(model)

The functions are imported when they are first used: the command line needs none of them to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.errors import BatchNormDriftError, BncheckError
from bncheck.version import __version__

if TYPE_CHECKING:
    from bncheck.api import diff, drift, gate, inspect, recalibrate, repeat
    from bncheck.integrations.guard import guard

__all__ = [
    "BatchNormDriftError",
    "BncheckError",
    "__version__",
    "diff",
    "drift",
    "gate",
    "guard",
    "inspect",
    "recalibrate",
    "repeat",
]


def __getattr__(name: str) -> object:
    if name == "guard":
        from bncheck.integrations.guard import guard

        return guard
    if name in __all__:
        from bncheck import api

        return getattr(api, name)
    raise AttributeError(f"module 'bncheck' has no attribute {name!r}")
