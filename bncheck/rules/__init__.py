"""The catalogue: every rule that bncheck knows, in the order in which they are asked.

A rule is a module named like its id, with a docstring under fixed headings and a constant `RULE`.
"""

from __future__ import annotations

from bncheck.rules.negative_variance import RULE as NEGATIVE_VARIANCE
from bncheck.rules.never_updated_statistics import RULE as NEVER_UPDATED_STATISTICS
from bncheck.rules.no_running_statistics import RULE as NO_RUNNING_STATISTICS
from bncheck.rules.non_finite_statistics import RULE as NON_FINITE_STATISTICS
from bncheck.rules.saved_in_train_mode import RULE as SAVED_IN_TRAIN_MODE
from bncheck.rules.unexpected_globals import RULE as UNEXPECTED_GLOBALS

RULES = (
    NON_FINITE_STATISTICS,
    NEGATIVE_VARIANCE,
    NEVER_UPDATED_STATISTICS,
    NO_RUNNING_STATISTICS,
    SAVED_IN_TRAIN_MODE,
    UNEXPECTED_GLOBALS,
)
