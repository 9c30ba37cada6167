"""What a gate is asked for: all that a configuration file can say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bncheck.options.asking import FAIL_ON, LEVELS
from bncheck.options.data import Samples
from bncheck.options.option import Counted, Panel, StrPath, option
from bncheck.options.probing import DriftOptions, RepeatOptions

PATHS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
SEVERITIES = ("note", "warning", "error")
SUPPRESSION = {
    "type": "object",
    "properties": {
        "rule": {"type": "string"},
        "layer": {"type": "string"},
        "reason": {"type": "string", "minLength": 1},
        "expires": {"type": "string", "format": "date"},
    },
    "required": ["rule", "reason"],
    "additionalProperties": False,
}


@dataclass(kw_only=True, eq=False, repr=False)
class GateOptions(DriftOptions, RepeatOptions, Samples):
    """The options of `gate`, and the keys of `[tool.bncheck]`."""

    checkpoint: Sequence[StrPath] = option(
        (),
        "Checkpoints, folders or patterns. Default: those of the configuration.",
        Panel.WHAT,
        metavar="[PATH...]",
        counted=Counted.PATH,
        schema=PATHS,
        argument=True,
    )
    reference: StrPath | None = option(
        None, "A checkpoint to compare with.", Panel.EXPERIMENT, metavar="FILE", counted=Counted.PATH
    )
    fail_on: str | None = option(
        "warning", FAIL_ON, Panel.JUDGEMENT, metavar="LEVEL", choices=LEVELS, schema={"enum": [*SEVERITIES, "never"]}
    )
    ignore: Sequence[Any] = option(
        (),
        "Not these rules: ids or globs; may repeat. In a file also findings to suppress: rule, layer, reason, expires.",
        Panel.JUDGEMENT,
        metavar="RULE",
        schema={"type": "array", "items": {"anyOf": [{"type": "string"}, SUPPRESSION]}},
    )
    require: Sequence[str] = option((), "A rule that must be decided; may repeat.", Panel.JUDGEMENT, metavar="RULE")
    require_batchnorm: bool = option(
        True,
        "Whether a checkpoint without BatchNorm is inconclusive.",
        Panel.JUDGEMENT,
        flags=("--require-batchnorm/--no-require-batchnorm",),
    )
    severity: Mapping[str, str] | None = option(
        None,
        "Other severities, by rule.",
        Panel.JUDGEMENT,
        schema={"type": "object", "additionalProperties": {"enum": list(SEVERITIES)}},
        on_command_line=False,
    )
    baseline: StrPath | None = option(
        None, "Findings that are known and do not count.", Panel.JUDGEMENT, metavar="FILE", counted=Counted.PATH
    )
    write_baseline: StrPath | None = option(
        None, "Write what is found as the baseline, and pass.", Panel.JUDGEMENT, metavar="FILE", in_file=False
    )
    config: StrPath | None = option(
        None,
        "Default: bncheck.toml or pyproject.toml, here or above.",
        Panel.JUDGEMENT,
        metavar="FILE",
        in_file=False,
    )
    jobs: int | None = option(
        None,
        "Processes that inspect files. Default: one for each core.",
        Panel.REPORT,
        metavar="N",
        least=1,
        in_file=False,
    )
