"""What a team has decided: how severe, what it lives with and until when, what must be decided."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from bncheck.errors import UsageError
from bncheck.findings.rule import Severity
from bncheck.judgement.baseline import read_baseline
from bncheck.wording import nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bncheck.findings.report import Finding
    from bncheck.options.gating import GateOptions


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


def policy_of(options: GateOptions, rules: Sequence[str], where: object = "the command line") -> Policy:
    """The policy that the options describe.

    Args:
        options: those of the gate.
        rules: the ids that there are.
        where: who said so, for the message of an error.

    Raises:
        UsageError: a rule is named that there is not, or the baseline cannot be read.
    """
    severities = options.severity or {}
    for key, names in (("require", options.require), ("severity", severities)):
        for name in names:
            if name not in rules:
                hint = nearest(name, rules, "`bncheck rules`")
                raise UsageError(f"{key} in {where} names the unknown rule {quoted(name)}", hint)
    return Policy(
        fail_on=options.threshold,
        severities={rule: Severity(name) for rule, name in severities.items()},
        ignores=tuple(ignore_of(entry, rules, where) for entry in options.ignore if isinstance(entry, Mapping)),
        require=tuple(options.require),
        require_batchnorm=options.require_batchnorm,
        baseline=read_baseline(options.baseline) if options.baseline else frozenset(),
    )


def ignore_of(entry: Mapping[str, Any], rules: Sequence[str], where: object) -> Ignore:
    rule = entry["rule"]
    if not any(fnmatchcase(name, rule) for name in rules):
        hint = nearest(rule, rules, "`bncheck rules`")
        raise UsageError(f"ignore in {where} names the unknown rule {quoted(rule)}", hint)
    return Ignore(rule, entry.get("layer"), entry["reason"], as_date(entry.get("expires")))


def as_date(value: Any) -> datetime.date | None:
    """A date, or a text of one."""
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        return None
