"""Two checkpoints whose layers were matched by name, and what differs between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.subjects.checkpoint import Checkpoint, Group
    from bncheck.subjects.layer import BatchNormLayer
    from bncheck.subjects.shift import Shift


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer that two checkpoints hold, and what differs; equal means in every bit, as far as the coarser dtype tells.

    `same_parameters` is about weight, bias and what feeds the layer; None where nothing could be compared.
    `same_statistics` and `shift` are None where one has no statistics, or of another length; `shift` is NaN in the
    channels that are not finite in one of the two.
    """

    before: BatchNormLayer
    after: BatchNormLayer
    same_parameters: bool | None
    fed_by: tuple[str, ...]  # tensors of `before` that were compared with those of `after`
    same_statistics: bool | None
    shift: Shift | None
    broken: int  # channels that were finite before and are not after
    counter_change: int | None  # of num_batches_tracked; None where one is not kept, or too coarse
    settings: Mapping[str, tuple[object, object]]  # those that are known of both and differ: before, after


@dataclass(frozen=True, slots=True)
class GroupPair:
    """Two groups of one network, both narrowed to the layers that they share; `changes` in the order of `before`."""

    before: Group
    after: Group
    changes: tuple[LayerChange, ...]
    # Layers of `before` whose weight or bias `after` holds, but no statistics.
    without_statistics: tuple[BatchNormLayer, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointPair:
    """Two checkpoints whose layers were matched by name. `several`: it is one pair of many, as the ranks of a run."""

    before: Checkpoint
    after: Checkpoint
    groups: tuple[GroupPair, ...]
    several: bool = False
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[LayerChange, ...]:
        return tuple(change for group in self.groups for change in group.changes)
