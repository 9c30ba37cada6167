"""Narrows what is examined to what the user asked for."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bncheck.subjects import BatchNormLayer, Checkpoint


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
