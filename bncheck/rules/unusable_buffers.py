"""A layer whose tensors have no data, or do not fit each other.

## What it checks

- running_mean and running_var hold numbers: not the placeholders of a lazy layer that never saw an input, and not
  tensors of the meta device, which have a shape and nothing else (error). For weight and bias alone without numbers: a
  warning.
- Both statistics are there, or neither (error).
- running_mean, running_var, weight and bias have the same length (error), and it is num_features (warning).

## Why it matters

Each of these is saved without complaint, and raises an error in the first forward: "running_mean must be
defined in evaluation mode", "running_mean should contain 8 elements not 12". Or load_state_dict with strict=False
passes over what is missing, and the layer normalises with its initial statistics. A wrong num_features does no harm to
forward, but whoever builds the layer anew from its settings cannot load it.

## When it is wrong

Wrapper classes (DTensor, sharded tensors) keep their numbers elsewhere and look as if they had none: gather them, or
save with torch.distributed.checkpoint. Layers of other kinds keep a running_mean, too: where the file has neither a
counter nor the class of a BatchNorm, a single statistic leaves the rule undecided. So do quantised tensors and types
whose numbers are not read here.

## What to do

Run one batch through a lazy model before it is saved; load real weights into a model on the meta device. When channels
are pruned, cut all four tensors by the same indices and set num_features.

## Seen in

Measured, not reported: torch saves lazy and meta tensors without complaint, and load_state_dict with strict=False
passes over missing statistics in silence.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from bncheck.findings.rule import CannotTell, Evidence, Rule, Severity
from bncheck.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bncheck.subjects.layer import BatchNormLayer

STATISTICS = ("running_mean", "running_var")
TENSORS = (*STATISTICS, "weight", "bias")
TORCH_BATCHNORM = "torch.nn.modules.batchnorm."
UNINITIALIZED = "uninitialized"  # the dtype of what a lazy layer has not made yet
# Names of dtypes whose numbers are read. Others (quantised, complex) are not placeholders, but cannot be judged.
READABLE = ("float64", "float32", "float16", "bfloat16", "float8")
SAME_INDICES = "Cut the statistics and the parameters by the same channels, or build the layer again and load it."


def check(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    if layer.without_data:
        yield without_data(layer)
        return
    yield from of_different_lengths(layer)
    yield from alone(layer)


def without_data(layer: BatchNormLayer) -> Evidence | CannotTell:
    """What it means that some tensors have no numbers."""
    names = listed(layer.without_data)
    measured = {"without_data": layer.without_data, "dtype": layer.dtype}
    if layer.dtype == UNINITIALIZED or (layer.kind.value or "").startswith("Lazy"):
        return Evidence(
            f"{names} were never made: the layer is lazy and has not seen an input",
            "Run one batch through the model before it is saved.",
            layer,
            measured,
        )
    if not any(statistic in layer.without_data for statistic in STATISTICS):
        return Evidence(
            f"{names} {'has' if len(layer.without_data) == 1 else 'have'} a shape but no numbers: on the meta device, "
            "or kept elsewhere by a wrapper class",
            "Load the weights, or gather them, before the model is saved.",
            layer,
            measured,
            Severity.WARNING,
        )
    if layer.dtype is None or not layer.dtype.startswith(READABLE):
        kind = f" of dtype {layer.dtype}" if layer.dtype else ""
        return CannotTell(f"the statistics{kind} hold no numbers that can be read", layer)
    return Evidence(
        f"{names} {'has' if len(layer.without_data) == 1 else 'have'} a shape but no numbers: they are on the meta "
        "device",
        "Load the weights and statistics before the model is saved.",
        layer,
        measured,
    )


def of_different_lengths(layer: BatchNormLayer) -> Iterator[Evidence]:
    sizes = {name: getattr(layer, name).size for name in TENSORS if getattr(layer, name) is not None}
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for name, size in sizes.items():
        by_size[size].append(name)
    measured = {"num_features": layer.num_features, **sizes}
    if len(by_size) > 1:
        lengths = ", ".join(
            f"{listed(names)} {'has' if len(names) == 1 else 'have'} {count(size, 'channel')}"
            for size, names in by_size.items()
        )
        yield Evidence(f"the tensors do not fit each other: {lengths}", SAME_INDICES, layer, measured)
    elif sizes and layer.num_features is not None and layer.num_features not in by_size:
        yield Evidence(
            f"num_features is {layer.num_features:,}, but the tensors have {count(next(iter(by_size)), 'channel')}",
            "Set num_features to the length of the tensors.",
            layer,
            measured,
            Severity.WARNING,
        )


def alone(layer: BatchNormLayer) -> Iterator[Evidence | CannotTell]:
    """One of the two statistics without the other."""
    held = [name for name in STATISTICS if layer.has(name)]
    if len(held) != 1:
        return
    [missing] = set(STATISTICS) - set(held)
    if layer.counter_dtype is None and not (layer.class_path or "").startswith(TORCH_BATCHNORM):
        yield CannotTell("of the two statistics only one is there, as in layers of other kinds", layer)
        return
    yield Evidence(
        f"{missing} is missing while {held[0]} is there: forward raises an error in eval mode",
        "Save both statistics, or estimate them again on training data.",
        layer,
        {"missing": missing},
    )


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


RULE = Rule("unusable-buffers", Severity.ERROR, "the four tensors of a layer", __doc__, layer=check)
