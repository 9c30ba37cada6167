"""The catalogue: every rule that bncheck knows, by the command that asks it, in the order in which they are asked.

A rule is a module named like its id, with a docstring under fixed headings and a constant `RULE`. It is imported when
its command asks for it: `inspect` has to begin before torch could be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bncheck.findings.rule import Rule

INSPECT = (
    "non-finite-statistics",
    "negative-variance",
    "never-updated-statistics",
    "dummy-input-statistics",
    "under-converged-statistics",
    "low-precision-statistics",
    "dead-channels",
    "extreme-gain",
    "zero-scale",
    "no-running-statistics",
    "saved-in-train-mode",
    "tracking-switched-off",
    "swapped-momentum",
    "invalid-momentum",
    "lost-eps",
    "unusable-counter",
    "sync-batchnorm",
    "unusable-buffers",
    "mixed-modes",
    "inconsistent-settings",
    "uneven-counters",
    "counter-without-history",
    "more-updates-than-steps",
    "stale-averaged-statistics",
    "architecture-mismatch",
    "unexpected-globals",
    "statistics-do-not-fit-weights",
)
DRIFT = ("changed-in-evaluation", "statistics-do-not-fit-data")
REPEAT = ("differs-between-runs", "depends-on-batch", "output-not-finite")
# Of two files; the last of `diff` judges one file as well.
PAIR = ("statistics-lost", "impossible-lineage", "frozen-but-drifting", "ranks-disagree", "settings-changed")
CATALOGUE = {
    "INSPECT_RULES": INSPECT,
    "DRIFT_RULES": DRIFT,
    "REPEAT_RULES": REPEAT,
    "PAIR_RULES": PAIR,
    "DIFF_RULES": (*PAIR, "stale-averaged-statistics"),
    "RULES": (*INSPECT, *DRIFT, *REPEAT, *PAIR),
}

INSPECT_RULES: tuple[Rule, ...]
DRIFT_RULES: tuple[Rule, ...]
REPEAT_RULES: tuple[Rule, ...]
PAIR_RULES: tuple[Rule, ...]
DIFF_RULES: tuple[Rule, ...]
RULES: tuple[Rule, ...]


def __getattr__(name: str) -> tuple[Rule, ...]:
    if name not in CATALOGUE:
        raise AttributeError(f"module 'bncheck.rules' has no attribute {name!r}")
    rules = tuple(importlib.import_module(f"bncheck.rules.{id_.replace('-', '_')}").RULE for id_ in CATALOGUE[name])
    globals()[name] = rules
    return rules
