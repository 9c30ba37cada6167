"""`bncheck config`: the configuration that is in effect, and where each value comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bncheck.commands.progress import SILENT
from bncheck.config import KEYS, configured, schema
from bncheck.options.configuring import ConfigOptions
from bncheck.options.option import make

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bncheck.commands.progress import Progress

OPTIONS = (ConfigOptions,)
EXAMPLES = ("bncheck config", "bncheck config --schema")


def run(said: Mapping[str, Any], progress: Progress = SILENT) -> str:
    """The configuration as TOML with remarks, or the schema of one.

    Raises:
        UsageError: the file cannot be read, or says what cannot be followed.
    """
    options = make(ConfigOptions, said)
    if options.schema:
        return json.dumps(schema(), indent=2)
    config = configured(Path.cwd(), options.config)
    lines = [f"# {config.path or 'no configuration: every value is a default'}"]
    for key in KEYS:
        value = config[key]
        shown = "(none)" if value is None else json.dumps(value, default=str)
        lines.append(f"{key} = {shown}  # {config.origin(key)}")
    return "\n".join(lines)
