"""Narrows what is examined, and the rules that are asked, to what the user asked for."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bncheck.errors import UsageError
from bncheck.wording import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.findings.rule import Rule
    from bncheck.subjects.checkpoint import Checkpoint
    from bncheck.subjects.layer import BatchNormLayer


@dataclass(frozen=True, slots=True)
class Selection:
    """Globs for the groups, kinds and names of layers. None of a sort stands for all."""

    groups: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    def has(self, layer: BatchNormLayer) -> bool:
        return (
            fits(layer.group, self.groups)
            and fits(layer.kind.value or "", self.kinds)
            and fits(layer.name, self.layers)
        )

    def narrow(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with the selected layers; says so where nothing is left of some."""
        if not (self.groups or self.kinds or self.layers):
            return checkpoint
        groups = tuple(
            replace(group, layers=tuple(layer for layer in group.layers if self.has(layer)))
            for group in checkpoint.groups
            if fits(group.name, self.groups)
        )
        notes = checkpoint.notes
        if checkpoint.layers and not any(group.layers for group in groups):
            notes = (*notes, f"none of the {len(checkpoint.layers)} BatchNorm layers is selected")
        return replace(checkpoint, groups=groups, notes=notes)


def fits(name: str, globs: tuple[str, ...]) -> bool:
    """Whether a name fits one of the globs; with none, every name does."""
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def chosen(
    rules: Sequence[Rule], select: Sequence[str] = (), ignore: Sequence[str] = (), *, deep: bool = False
) -> tuple[Rule, ...]:
    """The rules to ask.

    Args:
        rules: the catalogue.
        select: ids or globs of the only rules to ask; empty for all. A deep rule that is named by its id needs no
            `deep`.
        ignore: ids or globs of rules to leave out.
        deep: whether rules are asked that read more of the file than the rest.

    Raises:
        UsageError: an id or glob fits no rule.
    """
    ids = [rule.id for rule in rules]
    for option, globs in (("--select", select), ("--ignore", ignore)):
        for glob in globs:
            if not any(fits(id_, (glob,)) for id_ in ids):
                raise UsageError(f"{option} {glob}: there is no such rule", nearest(glob, ids, "`bncheck rules`"))
    return tuple(
        rule
        for rule in rules
        if fits(rule.id, tuple(select))
        and (deep or not rule.deep or rule.id in select)
        and not any(fits(rule.id, (glob,)) for glob in ignore)
    )
