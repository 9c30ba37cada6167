"""bncheck: can the BatchNorm layers of this checkpoint be trusted?

    report = bncheck.inspect("model.pt")   # or a live nn.Module
    report.verdict, report.findings

The functions are imported when they are first used: the command line needs none of them to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.errors import BncheckError

if TYPE_CHECKING:
    from bncheck.api import inspect

__all__ = ["BncheckError", "__version__", "inspect"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in __all__:
        from bncheck import api

        return getattr(api, name)
    raise AttributeError(f"module 'bncheck' has no attribute {name!r}")
