"""Which checkpoints are compared, and what belongs together in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bncheck.options.asking import Asking
from bncheck.options.option import Options, Panel, StrPath, WrongOption, option


@dataclass(kw_only=True, eq=False, repr=False)
class TwoFiles(Options):
    """The checkpoints that are compared."""

    before: StrPath = option("", "The earlier checkpoint.", Panel.WHAT, metavar="BEFORE", argument=True)
    after: Sequence[StrPath] = option(
        (),
        "The later one; or several, such as the ranks of a run.",
        Panel.WHAT,
        metavar="AFTER...",
        argument=True,
    )


@dataclass(kw_only=True, eq=False, repr=False)
class DiffOptions(Asking):
    """The options of `diff`."""

    before_group: Sequence[str] = option(
        (), "Only these state dicts of BEFORE; may repeat.", Panel.WHAT, metavar="GLOB"
    )
    after_group: Sequence[str] = option((), "Only these state dicts of AFTER; may repeat.", Panel.WHAT, metavar="GLOB")
    map: Mapping[str, str] | Sequence[str] = option(
        (), "Names that begin with FROM in BEFORE begin with TO in AFTER.", Panel.WHAT, metavar="FROM=TO"
    )

    def check(self) -> None:
        super().check()
        _ = self.prefixes

    @property
    def prefixes(self) -> tuple[tuple[str, str], ...]:
        """`map`: a prefix of names in the first file, and what stands for it in the second.

        Raises:
            WrongOption: a text has no `=`.
        """
        if isinstance(self.map, Mapping):
            return tuple(self.map.items())
        return tuple(map(mapped, (self.map,) if isinstance(self.map, str) else self.map))


def mapped(text: str) -> tuple[str, str]:
    """`model_A.=` and its like."""
    before, equals, after = text.partition("=")
    if not equals:
        hint = "Write --map FROM=TO; either may be empty, as in --map =model."
        raise WrongOption("map", text, "has no '='", hint)
    return before, after
