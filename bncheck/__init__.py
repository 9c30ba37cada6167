"""bncheck: can the BatchNorm layers of this checkpoint be trusted?"""

from bncheck.errors import BncheckError

__all__ = ["BncheckError", "__version__"]

__version__ = "0.1.0"
