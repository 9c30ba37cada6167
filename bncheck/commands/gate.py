"""`bncheck gate`: every check that the project configures, for each checkpoint, as one report."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bncheck.commands.inspect import find_all, inspect_file
from bncheck.errors import BncheckError
from bncheck.findings.report import Check, Report
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import unreadable
from bncheck.judgement.selection import chosen
from bncheck.rules import DIFF_RULES, DRIFT_RULES, INSPECT_RULES, REPEAT_RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bncheck.config import Config
    from bncheck.findings.rule import Rule

CHECKS = {"inspect": INSPECT_RULES, "drift": DRIFT_RULES, "repeat": REPEAT_RULES, "diff": DIFF_RULES}
# From this many checkpoints on, inspecting them is spread over processes: starting one costs as much as a few files.
WORTH_PROCESSES = 8


def checkpoints_of(config: Config, names: Sequence[str]) -> list[Path | Report]:
    """The files that the command line names, or else the configuration."""
    configured = config["checkpoint"] or []
    return list(find_all(names or ([configured] if isinstance(configured, str) else configured)))


def examined(
    items: Sequence[Path | Report], config: Config, jobs: int, progress: Callable[[str], Callable[[int], None]]
) -> Iterator[Report]:
    """The report on each checkpoint, in their order, as soon as it is there.

    Args:
        items: what `checkpoints_of` gives.
        config: which checks to run, and how.
        jobs: processes that inspect files side by side.
        progress: given the name of a check, what to tell the number of its samples.
    """
    rules = {check: rules_of(config, catalogue) for check, catalogue in CHECKS.items()}
    complete = architecture_of(config)
    paths = [item for item in items if isinstance(item, Path)]
    with contextlib.ExitStack() as stack:
        if jobs > 1 and len(paths) >= WORTH_PROCESSES and complete is None:
            from concurrent.futures import ProcessPoolExecutor

            pool = stack.enter_context(ProcessPoolExecutor(jobs))
            ids = tuple(rule.id for rule in rules["inspect"])
            reports: Iterator[Report] = pool.map(inspected_elsewhere, paths, [ids] * len(paths))
        else:
            reports = (inspect_file(path, None, complete=complete, rules=rules["inspect"]) for path in paths)
        for item in items:
            if isinstance(item, Report):
                yield item
                continue
            report = next(reports)
            yield report if report.error else merged([report, *others(item, config, rules, progress)], config)


def inspected_elsewhere(path: Path, ids: tuple[str, ...]) -> Report:
    """Inspects a file in a process of its own."""
    try:
        return inspect_file(path, None, rules=[rule for rule in INSPECT_RULES if rule.id in ids])
    except Exception as error:  # noqa: BLE001 - a defect of ours on one file must not lose the reports on the others
        return unreadable(str(path), BncheckError(f"bncheck itself failed on {path}: {error!r}", "Report this."))


def rules_of(config: Config, catalogue: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a check that the configuration selects; globs that fit none of this check fit others."""
    everything = [rule for rules in CHECKS.values() for rule in rules]
    wanted = {rule.id for rule in chosen(everything, config["select"], config["ignore-rules"])}
    return tuple(rule for rule in catalogue if rule.id in wanted)


def architecture_of(config: Config) -> Any:
    if not config["model"]:
        return None
    from bncheck.evaluation.models.architecture import architecture

    folders = [Path(folder) for folder in config["python-path"]]
    return architecture(config["model"], model_arguments(config), folders)


def model_arguments(config: Config) -> list[str]:
    return [f"{name}={value!r}" for name, value in config["model-args"].items()]


# -- the checks that need more than the file


def others(
    path: Path, config: Config, rules: dict[str, tuple[Rule, ...]], progress: Callable[[str], Callable[[int], None]]
) -> list[Report]:
    """Drift and repeat where data is configured, diff where a reference is; one that fails says so in its report."""
    reports = []
    for check in ("drift", "repeat") if config["data"] else ():
        try:
            reports.append(on_data(check, path, config, rules[check], progress(check)))
        except BncheckError as error:
            reports.append(unreadable(str(path), BncheckError(f"{check}: {error.message}", error.hint)))
    if config["reference"]:
        try:
            reports.append(against_reference(path, config, rules["diff"]))
        except BncheckError as error:
            reports.append(unreadable(str(path), BncheckError(f"diff: {error.message}", error.hint)))
    return reports


def on_data(check: str, path: Path, config: Config, rules: Sequence[Rule], progress: Callable[[int], None]) -> Report:
    from bncheck.evaluation.session import examine
    from bncheck.judgement.diagnosis import diagnose_evaluation

    given = {key.replace("-", "_"): config[key] for key in OPTIONS_OF_RUNS}
    given |= {
        "model_arg": model_arguments(config),
        "python_path": [Path(folder) for folder in config["python-path"]],
        "main": Path(config["main"]) if config["main"] else None,
        "mean": joined(config["mean"]),
        "std": joined(config["std"]),
    }
    return replace(
        diagnose_evaluation(examine(check, path, given, progress), None, rules), checks=(Check(check, True),)
    )


OPTIONS_OF_RUNS = (
    "model", "trust-pickle", "group", "evaluator", "data", "input-key", "size", "resize", "grayscale",
    "channels-last", "limit", "batch-size", "workers", "skip-unreadable", "in-distribution", "device", "dtype",
    "threads", "runs",
)  # fmt: skip


def joined(numbers: Sequence[float] | None) -> str | None:
    return None if numbers is None else ",".join(map(repr, numbers))


def against_reference(path: Path, config: Config, rules: Sequence[Rule]) -> Report:
    from bncheck.commands.diff import compare_files

    return replace(compare_files([Path(config["reference"]), path], None, rules=rules), checks=(Check("diff", True),))


# -- one report


def merged(reports: Sequence[Report], config: Config) -> Report:
    """The reports of all checks of one checkpoint as one, with what was checked and what was not."""
    first, *more = reports
    failed = next((report.error for report in more if report.error), None)
    done = [Check("inspect", True), *(check for report in more for check in report.checks)]
    names = {check.name for check in done}
    reasons = {
        "drift": "no data is configured",
        "repeat": "no data is configured",
        "diff": "no reference is configured",
    }
    left_out = [Check(name, False, reason) for name, reason in reasons.items() if name not in names]
    return replace(
        first,
        error=failed,
        findings=tuple(sorted((f for report in reports for f in report.findings), key=lambda f: weight(f.severity))),
        undecided=tuple(undecided for report in reports for undecided in report.undecided),
        rules=tuple(rule for report in reports for rule in report.rules),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        measurements={report.checks[0].name: report.measurements for report in more if report.checks},
        checks=(*done, *left_out),
    )


def weight(severity: Severity) -> int:
    """The gravest first."""
    return -list(Severity).index(severity)


def processes(asked: int | None) -> int:
    """How many processes inspect files: those asked for, or as many as there are cores for this one."""
    return asked or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else asked or os.cpu_count() or 1
