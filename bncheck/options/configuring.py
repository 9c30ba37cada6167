"""What the commands are asked for that tell of bncheck itself."""

from dataclasses import dataclass

from bncheck.options.option import Options, Panel, StrPath, option


@dataclass(kw_only=True, eq=False, repr=False)
class ConfigOptions(Options):
    """The options of `config`."""

    config: StrPath | None = option(
        None, "Default: bncheck.toml or pyproject.toml, here or above.", Panel.WHAT, metavar="FILE"
    )
    schema: bool = option(False, "Print the JSON schema of the configuration.", Panel.WHAT)


@dataclass(kw_only=True, eq=False, repr=False)
class ExplainOptions(Options):
    """The options of `explain`."""

    name: str = option("", "A rule, or momentum, eps, affine, ...", Panel.WHAT, metavar="RULE|PARAMETER", argument=True)
