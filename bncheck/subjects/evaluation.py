"""What is examined of a model that was run on data: plain arrays and numbers, per layer and whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bncheck.subjects.layer import Array, BatchNormLayer
    from bncheck.subjects.shift import Shift


@dataclass(frozen=True, slots=True)
class Fit:
    """The input of a layer over the data, in eval mode, beside its stored statistics; arrays per channel, float64.

    `shift` is that of the population mean, and of the within-batch or the population variance, whichever is nearer:
    running_var estimates the former, and the latter is what a converter may have stored. `mean_noise` is the
    standard deviation that sampling alone gives `shift.mean`, `variance_noise` that of `shift.variance`.
    """

    population_mean: Array
    population_variance: Array
    within_batch_variance: Array
    shift: Shift
    mean_noise: Array
    variance_noise: float


@dataclass(frozen=True, slots=True)
class EvaluatedLayer:
    """A layer as it was before anything ran, and what was seen of it.

    `moved`, `updates` and `as_shipped` are of the evaluation that was watched: whether running_mean or running_var
    changed in any bit, by how much num_batches_tracked grew, and how far the statistics went. They are None where
    nothing was watched.
    """

    layer: BatchNormLayer
    called: int | None = None  # forwards that reached it in one pass over the data; None where nobody could count
    training: bool | None = None  # its mode when the watched evaluation called the model
    untracked: bool = False  # it was called in train mode with track_running_stats off: by the batch, without a trace
    moved: bool | None = None
    updates: int | None = None
    broken: int = 0  # channels whose statistics became NaN or infinite
    as_shipped: Shift | None = None
    train_mode: Shift | None = None  # after one pass over the data in train mode
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """The outputs of one model beside those of another on the same samples.

    `predictions_changed` is the share of samples with another prediction, None where the model does not classify;
    `output_change` the norm of the difference over the norm of the outputs; the accuracies are None without labels.
    """

    samples: int
    predictions_changed: float | None
    output_change: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why two evaluations of the same data differ. `modules` are the names of those that do it, if any are known."""

    kind: str  # a value of CauseKind
    explanation: str
    modules: tuple[str, ...] = ()


class CauseKind(Enum):
    """What can make results differ."""

    INPUTS = "inputs"  # the batches themselves
    RANDOM_OPERATOR = "random-operator"
    KERNEL = "kernel"
    STATE = "state"  # a forward leaves something behind that the next one reads
    BATCHNORM = "batchnorm"
    BATCH_COUPLING = "batch-coupling"  # samples see each other otherwise


@dataclass(frozen=True, slots=True)
class Repeat:
    """What evaluating again showed. Differences are relative to the largest output; None where they were not made."""

    runs: int
    identical_inputs: bool | None = None
    same_batches_max_difference: float | None = None
    other_company_max_difference: float | None = None
    company_tolerance: float | None = None  # what the network's own rounding explains
    company_dtype: str | None = None
    fails_alone: bool = False  # the model refuses a batch of one
    predictions_changed: int | None = None  # between the runs
    first_difference: str | None = None  # the first module whose output differs for the same input
    metrics: tuple[Mapping[str, float], ...] = ()  # what the user's evaluation returned, run by run
    predictions_by_batch_size: Mapping[int, float] = field(default_factory=dict)  # share that differs from the largest
    accuracy_by_batch_size: Mapping[int, float] = field(default_factory=dict)
    first_non_finite: str | None = None
    non_finite_samples: int = 0
    run_causes: tuple[Cause, ...] = ()
    company_causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the probes saw of a model that ran on data: plain arrays and numbers."""

    source: str
    artefact: str  # "state_dict", "module", "torchscript", "exported"
    device: str
    samples: int
    batches: int
    passes: int
    layers: tuple[EvaluatedLayer, ...]  # in the order in which they were first called
    watched: str | None  # whose modes: "as shipped", "the evaluator"; None: bncheck chose eval mode
    forwards_watched: int = 0
    train_mode: Agreement | None = None
    train_mode_by_batches: Mapping[int, float] = field(default_factory=dict)
    fit: Agreement | None = None
    repeat: Repeat | None = None
    in_distribution: bool = False  # the user vouches that the data are what the model was trained for
    unable: Mapping[str, str] = field(default_factory=dict)  # probe by name: why it could not be made
    data: Mapping[str, object] = field(default_factory=dict)  # what was read, and how it was prepared
    notes: tuple[str, ...] = ()
