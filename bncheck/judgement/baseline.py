"""Findings that a team knows: a file of fingerprints, which do not count."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bncheck.errors import UsageError
from bncheck.findings.report import fingerprint

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from bncheck.findings.report import Report

BASELINE_VERSION = 1


def read_baseline(path: str | os.PathLike[str]) -> frozenset[str]:
    """The fingerprints of known findings."""
    try:
        with open(path, encoding="utf-8") as file:
            return fingerprints_in(file.read())
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Write it anew with `bncheck gate --write-baseline`."
        raise UsageError(f"the baseline {path} cannot be read: {error}", hint) from None


def fingerprints_in(text: str) -> frozenset[str]:
    """The fingerprints in the text of a baseline."""
    return frozenset(str(entry["fingerprint"]) for entry in json.loads(text)["findings"])


def baseline_of(reports: Iterable[Report]) -> str:
    """The findings of reports as the text of a baseline: same findings, same text."""
    known = {
        fingerprint(finding): {"fingerprint": fingerprint(finding), "rule": finding.rule, "layer": finding.layer}
        for report in reports
        for finding in report.findings
    }
    entries = sorted(known.values(), key=lambda entry: (entry["rule"], entry["layer"] or "", entry["fingerprint"]))
    return json.dumps({"version": BASELINE_VERSION, "findings": entries}, indent=2) + "\n"
