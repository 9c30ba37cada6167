"""Writes the outputs and tables of README.md anew: `python tools/readme.py`. A test compares them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from bncheck.rules import DIFF_RULES, DRIFT_RULES, INSPECT_RULES, REPEAT_RULES, RULES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
COMMAND = re.compile(r"```console\n\$ (bncheck [^\n]*)\n.*?```", re.DOTALL)


def output_of(command: str) -> str:
    """What a command prints in a terminal of 80 columns without colors."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout


def rule_table() -> str:
    """The catalogue as a table."""
    asked_by = {"inspect": INSPECT_RULES, "drift": DRIFT_RULES, "repeat": REPEAT_RULES, "diff": DIFF_RULES}
    rows = ["| rule | asked by | severity | finds |", "|---|---|---|---|"]
    for rule in RULES:
        commands = ", ".join(command for command, rules in asked_by.items() if rule in rules)
        commands += " `--deep`" * rule.deep
        rows.append(f"| `{rule.id}` | {commands} | {rule.severity.value} | {rule.summary} |")
    return "\n".join(rows)


def format_table() -> str:
    """What each format tells, as the tests prove it."""
    from tests.checkpoints.test_formats import KNOWN_OF_FORMATS

    columns = list(next(iter(KNOWN_OF_FORMATS.values())))
    rows = [f"| format | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, known in KNOWN_OF_FORMATS.items():
        rows.append(f"| {name} | {' | '.join(known[column] for column in columns)} |")
    return "\n".join(rows)


def probe_table() -> str:
    """What can be asked of which artefact, as the code has it."""
    from bncheck.evaluation.probes.abilities import LIMITS, UNDECIDED, Kind, Probe

    rows = [f"| artefact | {' | '.join(probe.value for probe in Probe)} |", f"|---|{'---|' * len(Probe)}"]
    for kind in Kind:
        cells = []
        for probe in Probe:
            reason, limit = UNDECIDED.get((kind, probe)), LIMITS.get((kind, probe))
            cells.append(f"undecided: {reason}" if reason else f"yes, {limit}" if limit else "yes")
        rows.append(f"| {kind.value} | {' | '.join(cells)} |")
    return "\n".join(rows)


def between(marker: str, content: str, page: str) -> str:
    """The page with the content between `<!-- marker -->` and `<!-- /marker -->`."""
    return re.sub(
        f"<!-- {marker} -->.*?<!-- /{marker} -->",
        lambda _: f"<!-- {marker} -->\n{content}\n<!-- /{marker} -->",
        page,
        flags=re.DOTALL,
    )


def render(page: str) -> str:
    """The page with every command's output and every table as they are now."""
    page = between("rules", rule_table(), page)
    page = between("formats", format_table(), page)
    page = between("probes", probe_table(), page)
    return COMMAND.sub(lambda found: f"```console\n$ {found[1]}\n{output_of(found[1])}```", page)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
