"""A BatchNorm layer, and how each of its settings is known."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

T = TypeVar("T")

# What torch.nn.BatchNorm2d is made with: assumed, and said so, where nothing holds the setting.
DEFAULT_EPS = 1e-5
DEFAULT_MOMENTUM = 0.1


class Known(Enum):
    """How the value of a setting is known."""

    STORED = "stored"  # the file says so
    INFERRED = "inferred"  # follows from the tensors that are present
    ARCHITECTURE = "architecture"  # from the model that the user named
    UNKNOWN = "unknown"  # nothing says so: there is no value, and no default stands in for it


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """A value and how it is known. `None` known as stored is a value (momentum=None), not a gap."""

    value: T | None
    known: Known

    @property
    def is_known(self) -> bool:
        return self.known is not Known.UNKNOWN


UNKNOWN: Setting[Any] = Setting(None, Known.UNKNOWN)


def stored(value: T | None) -> Setting[T]:
    """A setting that the file holds."""
    return Setting(value, Known.STORED)


def inferred(value: T) -> Setting[T]:
    """A setting that follows from the tensors in the file."""
    return Setting(value, Known.INFERRED)


class Normalises(Enum):
    """What a layer divides by when its forward runs as saved."""

    RUNNING = "running"
    BATCH = "batch"
    FAILS = "fails"  # torch raises: one of the two buffers is missing
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a layer does as saved. `updates_statistics` is None where the mode is not known."""

    normalises_with: Normalises
    updates_statistics: bool | None


class StatisticsUse(Enum):
    """How the class of a layer treats running statistics."""

    BATCHNORM = "batchnorm"  # torch.nn.modules.batchnorm._BatchNorm: mode and tracking decide
    FROZEN = "frozen"  # FrozenBatchNorm2d: always the running statistics, never an update


@dataclass(frozen=True, slots=True)
class BatchNormLayer:
    """One BatchNorm layer, or a relative that keeps running statistics.

    Statistics and parameters have shape `(num_features,)`. `name` is free of wrapper prefixes
    (`module.`, `_orig_mod.`); `stored_name` is what the file calls the layer.
    """

    name: str
    group: str
    kind: Setting[str]
    num_features: int | None
    stored_name: str = ""
    class_path: str | None = None
    use: StatisticsUse = StatisticsUse.BATCHNORM
    eps: Setting[float] = UNKNOWN
    momentum: Setting[float] = UNKNOWN
    affine: Setting[bool] = UNKNOWN
    track_running_stats: Setting[bool] = UNKNOWN
    training: Setting[bool] = UNKNOWN
    baked: bool = False  # the mode is a constant of a graph: eval() does not change it
    running_mean: Array | None = None
    running_var: Array | None = None
    weight: Array | None = None
    bias: Array | None = None
    num_batches_tracked: int | float | None = None
    counter_dtype: str | None = None  # of num_batches_tracked; None where there is none
    version: int | None = None  # of the layer in the `_metadata` of a state_dict
    dtype: str | None = None  # of the statistics
    without_data: tuple[str, ...] = ()  # tensors that exist but hold no numbers: lazy, meta, quantised

    def has(self, tensor: str) -> bool:
        """Whether the layer holds this tensor, with or without data."""
        return tensor in self.without_data or getattr(self, tensor) is not None

    @property
    def assumed_eps(self) -> float:
        """eps, or PyTorch's default where it is not known."""
        return DEFAULT_EPS if self.eps.value is None else self.eps.value

    @property
    def assumed_momentum(self) -> float | None:
        """momentum, or PyTorch's default where it is not known; None for a cumulative average."""
        return self.momentum.value if self.momentum.is_known else DEFAULT_MOMENTUM

    @property
    def has_initial_statistics(self) -> bool:
        """Whether running_mean is 0 and running_var 1 in every channel, as the constructor leaves them."""
        mean, var = self.running_mean, self.running_var
        return mean is not None and var is not None and bool((mean == 0).all() and (var == 1).all())

    @property
    def has_initial_parameters(self) -> bool:
        """Whether weight is 1 (0 where zero_init_residual set it) and bias 0, or there are none."""
        weight, bias = self.weight, self.bias
        return bool(
            (weight is None or (weight == 1).all() or (weight == 0).all()) and (bias is None or (bias == 0).all())
        )

    @property
    def behaviour(self) -> Behaviour:
        """What forward does as saved, from training x track_running_stats x the buffers present.

        A setting that is not known is tried both ways; what differs between the two is unknown.
        """
        if self.use is StatisticsUse.FROZEN:
            return Behaviour(Normalises.RUNNING, updates_statistics=False)
        modes = [self.training.value] if self.training.is_known else [True, False]
        tracks = [self.track_running_stats.value] if self.track_running_stats.is_known else [True, False]
        outcomes = {
            forward_behaviour(
                training=bool(mode),
                track_running_stats=bool(track),
                has_mean=self.has("running_mean"),
                has_var=self.has("running_var"),
                # momentum 0 counts batches but moves nothing
                frozen_by_momentum=self.momentum.value == 0.0,
            )
            for mode, track in product(modes, tracks)
        }
        normalises = {outcome.normalises_with for outcome in outcomes}
        updates = {outcome.updates_statistics for outcome in outcomes}
        return Behaviour(
            normalises.pop() if len(normalises) == 1 else Normalises.UNKNOWN,
            updates.pop() if len(updates) == 1 else None,
        )


def forward_behaviour(
    *,
    training: bool,
    track_running_stats: bool,
    has_mean: bool,
    has_var: bool,
    frozen_by_momentum: bool = False,
) -> Behaviour:
    """What `torch.nn.modules.batchnorm._BatchNorm.forward` does with these flags (torch >= 1.6).

    In eval mode the buffers are used whenever they are there, whatever track_running_stats says;
    in train mode they are handed on only when it is True.
    """
    by_batch = training or not (has_mean or has_var)
    hands_on = track_running_stats or not training
    if hands_on and has_mean != has_var:
        return Behaviour(Normalises.FAILS, updates_statistics=False)
    updates = training and track_running_stats and has_mean and not frozen_by_momentum
    return Behaviour(Normalises.BATCH if by_batch else Normalises.RUNNING, updates)
