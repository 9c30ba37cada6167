"""The JSON report: a contract that scripts rely on.

Numbers that JSON cannot hold are the strings "nan", "inf" and "-inf", so that every parser takes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from bncheck.findings.measurements import as_json
from bncheck.version import __version__

if TYPE_CHECKING:
    from bncheck.findings.report import Distribution, Finding, LayerSummary, Report, Run
    from bncheck.subjects.layer import Setting

# Raised when a key changes its meaning or goes away, not when one is added.
VERSION = 1


def write(run: Run, out: TextIO) -> None:
    """One JSON object for the whole run."""
    document = {
        "version": VERSION,
        "tool": {"name": "bncheck", "version": __version__},
        "command": run.command,
        "exit_code": run.exit_code,
        "reports": [report_object(report) for report in run.reports],
        "remarks": run.remarks,
    }
    json.dump(plain(document), out, indent=2, allow_nan=False)
    out.write("\n")


def report_object(report: Report) -> dict[str, Any]:
    return {
        "subjects": report.subjects,
        "format": report.format,
        "error": report.error and {"message": report.error.message, "hint": report.error.hint},
        "verdict": report.verdict.value,
        "layers": [layer_object(layer) for layer in report.layers],
        "fail_on": report.fail_on and report.fail_on.value,
        "findings": [finding_object(finding) for finding in report.findings],
        "suppressed": [{"finding": finding_object(held.finding), "reason": held.reason} for held in report.suppressed],
        "checks": [{"name": check.name, "done": check.done, "reason": check.reason} for check in report.checks],
        "measurements": as_json(report.measurements),
        "undecided": [
            {"rule": open_.rule, "layer": open_.layer, "group": open_.group, "reason": open_.reason}
            for open_ in report.undecided
        ],
        "rules": report.rules,
        "globals": [{"name": name, "use": use} for name, use in report.globals],
        "facts": report.facts,
        "notes": report.notes,
    }


def finding_object(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity.value,
        "layer": finding.layer,
        "group": finding.group,
        "message": finding.message,
        "measured": finding.measured,
        "fix": finding.fix,
    }


def layer_object(layer: LayerSummary) -> dict[str, Any]:
    return {
        "name": layer.name,
        "group": layer.group,
        "stored_name": layer.stored_name,
        "class": layer.class_path,
        "kind": setting_object(layer.kind),
        "num_features": layer.num_features,
        "dtype": layer.dtype,
        "num_batches_tracked": layer.num_batches_tracked,
        "eps": setting_object(layer.eps),
        "momentum": setting_object(layer.momentum),
        "affine": setting_object(layer.affine),
        "track_running_stats": setting_object(layer.track_running_stats),
        "training": setting_object(layer.training),
        "behaviour": {
            "normalises_with": layer.behaviour.normalises_with.value,
            "updates_statistics": layer.behaviour.updates_statistics,
        },
        "running_mean": distribution_object(layer.running_mean),
        "running_var": distribution_object(layer.running_var),
    }


def setting_object(setting: Setting[Any]) -> dict[str, Any]:
    return {"value": setting.value, "known": setting.known.value}


def distribution_object(distribution: Distribution | None) -> dict[str, Any] | None:
    if distribution is None:
        return None
    return {
        "min": distribution.min,
        "median": distribution.median,
        "max": distribution.max,
        "non_finite": distribution.non_finite,
        "finite": distribution.finite and dict(zip(("min", "median", "max"), distribution.finite, strict=True)),
        "histogram": distribution.histogram,
    }


def plain(value: Any) -> Any:
    """The value with every float that JSON lacks as a string, and lone surrogates spelled out: parsers refuse them."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(held) for held in value]
    return value
