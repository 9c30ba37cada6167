"""What a team has decided: how severe, what it lives with and until when, what must be decided."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bncheck.config import as_date
from bncheck.errors import UsageError
from bncheck.findings.report import fingerprint
from bncheck.findings.rule import Severity
from bncheck.wording import nearest, quoted

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bncheck.config import Config
    from bncheck.findings.report import Finding, Report

BASELINE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Ignore:
    """Findings that do not count: of a rule (a glob), in a layer (a glob; None for all), with a reason."""

    rule: str
    layer: str | None
    reason: str
    expires: datetime.date | None = None

    def is_expired(self, today: datetime.date) -> bool:
        """The day itself still counts."""
        return self.expires is not None and today > self.expires


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a gate."""

    fail_on: Severity | None = Severity.WARNING
    severities: Mapping[str, Severity] = field(default_factory=dict)
    ignores: tuple[Ignore, ...] = ()
    require: tuple[str, ...] = ()
    require_batchnorm: bool = True
    baseline: frozenset[str] = frozenset()

    def fails(self, findings: Iterable[Finding]) -> bool:
        return self.fail_on is not None and any(finding.severity.at_least(self.fail_on) for finding in findings)


def policy_of(config: Config, rules: Sequence[str]) -> Policy:
    """The policy that a configuration describes.

    Raises:
        UsageError: it names a rule that there is not, or its baseline cannot be read.
    """
    where = config.path or "the command line"
    for key in ("require", "severity"):
        for name in config[key]:
            if name not in rules:
                hint = nearest(name, rules, "`bncheck rules`")
                raise UsageError(f"{key} in {where} names the unknown rule {quoted(name)}", hint)
    fail_on = config["fail-on"]
    return Policy(
        fail_on=None if fail_on == "never" else Severity(fail_on),
        severities={rule: Severity(name) for rule, name in config["severity"].items()},
        ignores=tuple(ignore_of(entry, rules, where) for entry in config["ignore"]),
        require=tuple(config["require"]),
        require_batchnorm=config["require-batchnorm"],
        baseline=read_baseline(config["baseline"]) if config["baseline"] else frozenset(),
    )


def ignore_of(entry: Mapping[str, Any], rules: Sequence[str], where: object) -> Ignore:
    from fnmatch import fnmatchcase

    rule = entry["rule"]
    if not any(fnmatchcase(name, rule) for name in rules):
        hint = nearest(rule, rules, "`bncheck rules`")
        raise UsageError(f"ignore in {where} names the unknown rule {quoted(rule)}", hint)
    return Ignore(rule, entry.get("layer"), entry["reason"], as_date(entry.get("expires")))


def read_baseline(path: str) -> frozenset[str]:
    """The fingerprints of known findings."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        return frozenset(str(entry["fingerprint"]) for entry in document["findings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Write it anew with `bncheck gate --write-baseline`."
        raise UsageError(f"the baseline {path} cannot be read: {error}", hint) from None


def baseline_of(reports: Iterable[Report]) -> str:
    """The findings of reports as the text of a baseline: same findings, same text."""
    known = {
        fingerprint(finding): {"fingerprint": fingerprint(finding), "rule": finding.rule, "layer": finding.layer}
        for report in reports
        for finding in report.findings
    }
    entries = sorted(known.values(), key=lambda entry: (entry["rule"], entry["layer"] or "", entry["fingerprint"]))
    return json.dumps({"version": BASELINE_VERSION, "findings": entries}, indent=2) + "\n"


def write_baseline(path: Path, reports: Iterable[Report]) -> None:
    """Writes the baseline; UsageError where it cannot be written."""
    try:
        path.write_text(baseline_of(reports), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "Check the path.") from None
