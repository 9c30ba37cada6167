"""Names the cause of a difference between two evaluations of the same samples: by experiments, one for each cause.

A difference is given a cause only when taking that cause away takes the difference away, or when the operator that
makes it was seen. In each experiment random numbers, BatchNorm statistics and state are held fixed or let go, one
after the other.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bncheck.evaluation.data.batches import input_hash
from bncheck.evaluation.models.calls import call, outputs_of
from bncheck.evaluation.observing.operators import Interception, Record, layer_addresses, module_names, seed
from bncheck.evaluation.observing.outputs import largest_difference
from bncheck.evaluation.restoring import put_back, snapshot
from bncheck.subjects.evaluation import Cause, CauseKind
from bncheck.wording import count, few

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bncheck.evaluation.observing.operators import Statistics as OperatorStatistics

SEED = 0
NAMED_MODULES = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in the modes of an evaluation, and its BatchNorm layers by name."""

    module: torch.nn.Module
    layers: Mapping[str, torch.nn.Module]
    can_hook: bool


@contextlib.contextmanager
def kept(subject: Subject) -> Iterator[None]:
    """Puts every buffer back afterwards: train mode moves those of BatchNorm, other layers may have others."""
    statistics = snapshot(subject.layers)
    others = {name: buffer.detach().clone() for name, buffer in subject.module.named_buffers()}
    try:
        yield
    finally:
        put_back(subject.layers, statistics)
        with torch.no_grad():
            for name, buffer in subject.module.named_buffers():
                if name in others and buffer.shape == others[name].shape:
                    buffer.copy_(others[name])


def seed_everything(number: int = SEED) -> None:
    seed(number)
    random.seed(number)
    np.random.seed(number)


def generators() -> tuple[Any, ...]:
    """The states of the generators that a forward may draw from."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda._initialized else []
    cuda = tuple(state.numpy().tobytes() for state in devices)
    numpy_: Any = np.random.get_state(legacy=False)
    position = numpy_["state"]["key"].tobytes(), numpy_["state"]["pos"], numpy_["has_gauss"]
    return cuda, torch.get_rng_state().numpy().tobytes(), random.getstate(), position


def forward(
    subject: Subject,
    inputs: Any,
    samples: int,
    *,
    repeated_noise: bool = False,
    statistics: Mapping[int, OperatorStatistics] | None = None,
    names: Callable[[], str] = lambda: "",
) -> tuple[Any, Record]:
    """One forward with its operators watched, and held fixed as asked."""
    mode = Interception(
        layer_addresses(subject.layers), samples, inside=names, repeated_noise=repeated_noise, statistics=statistics
    )
    with torch.no_grad(), mode:
        out = call(subject.module, inputs)
    return out, mode.record


# -- between two runs on the same batch


def causes_between_runs(subject: Subject, inputs: Any, samples: int) -> tuple[list[Cause], str | None]:
    """Why two forwards of the same batch differ, and the first module whose output does so for the same input."""
    causes = []
    before = generators()
    with kept(subject), module_names(subject.module) as names:
        _, record = forward(subject, inputs, samples, names=names)
    advanced = generators() != before
    if record.random or advanced:
        causes.append(random_cause(record))
    first = first_difference(subject, inputs)

    def quiet() -> Any:
        """A forward in which every generator is in the same state, and every random operator repeats itself."""
        seed_everything()
        return forward(subject, inputs, samples, repeated_noise=True)[0]

    with kept(subject):
        once = quiet()
    with kept(subject):
        again = quiet()
        after_it = quiet()
    chance = largest_difference(once, again)
    if chance:
        causes.append(kernel_cause(quiet, subject))
    if largest_difference(again, after_it) > AMPLIFIED * chance:
        causes.append(
            Cause(
                CauseKind.STATE.value,
                "a forward changes buffers of the model that the next one reads: with the buffers put back, the "
                "difference is gone",
            )
        )
    return causes, first


def random_cause(record: Record) -> Cause:
    """The random operators that ran, and where."""
    if not record.random:
        return Cause(
            CauseKind.RANDOM_OPERATOR.value,
            "the forward draws random numbers: a generator (of torch, Python or numpy) stands elsewhere after it",
        )
    modules = tuple(dict.fromkeys(drawn.module for drawn in record.random if drawn.module))
    operators = tuple(dict.fromkeys(drawn.operator for drawn in record.random))
    own = " from a generator of its own" if any(drawn.own_generator for drawn in record.random) else ""
    where = f" in {few(modules, NAMED_MODULES)}" if modules else ""
    return Cause(
        CauseKind.RANDOM_OPERATOR.value,
        f"{count(len(record.random), 'random operator')} ran{own}{where} ({few(operators)}): dropout, drop path or "
        "noise that eval mode does not switch off, or that is not in eval mode",
        modules,
    )


def kernel_cause(quiet: Callable[[], Any], subject: Subject) -> Cause:
    """Same seed, same input, same state, and still different: does it vanish with deterministic algorithms?"""
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        torch.use_deterministic_algorithms(True)
        with kept(subject):
            once = quiet()
        with kept(subject):
            again = quiet()
        vanishes = not largest_difference(once, again)
        ending = (
            "with torch.use_deterministic_algorithms(True) the difference is gone"
            if vanishes
            else "torch.use_deterministic_algorithms(True) does not change that"
        )
    except Exception as error:  # noqa: BLE001 - torch names the operator that has no deterministic version
        ending = f"torch.use_deterministic_algorithms(True) refuses: {str(error).splitlines()[0][:200]}"
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    return Cause(
        CauseKind.KERNEL.value,
        f"with the same seed, input and state the result still differs, so that a kernel or a hidden source of chance "
        f"decides it; {ending}",
    )


def first_difference(subject: Subject, inputs: Any) -> str | None:
    """The first module that gives different outputs for the same inputs in two plain runs."""
    if not subject.can_hook:
        return None
    # Hashes in place of copies: what all modules take and give is 400 MB for one image in a ResNet-50.
    with kept(subject):
        first = module_values(subject, inputs, input_hash)
    with kept(subject):
        second = module_values(subject, inputs, input_hash)
    return first_that_differs(first, second, lambda one, other: one == other)


# -- what modules got and gave


@dataclass(frozen=True, slots=True)
class ModuleRun:
    """One call of a module: what was noted of the tensors that it took, and of those that it returned."""

    name: str
    inputs: Any
    outputs: Any


def module_values(
    subject: Subject,
    inputs: Any,
    note: Callable[[tuple[torch.Tensor, ...]], Any],
    run: Callable[[], Any] | None = None,
) -> list[ModuleRun]:
    """The calls of all modules in the order in which they ended, with what `note` makes of their tensors."""
    calls: list[ModuleRun] = []
    pending: list[Any] = []
    handles = []

    for name, part in subject.module.named_modules():

        def enter(_module: torch.nn.Module, args: Any, keywords: Any) -> None:
            pending.append(note(outputs_of((args, keywords))))

        def leave(_module: torch.nn.Module, _args: Any, outputs: Any, name: str = name) -> None:
            if pending:
                calls.append(ModuleRun(name, pending.pop(), note(outputs_of(outputs))))

        handles += [
            part.register_forward_pre_hook(enter, with_kwargs=True),
            part.register_forward_hook(leave),
        ]
    try:
        with torch.no_grad():
            run() if run else call(subject.module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def first_that_differs(
    first: list[ModuleRun], second: list[ModuleRun], alike: Callable[[Any, Any], bool]
) -> str | None:
    """The first module whose inputs are alike and whose outputs are not; the innermost one, since it ends first."""
    for one, other in zip(first, second, strict=False):
        if one.name != other.name:
            return None
        if not alike(one.outputs, other.outputs) and alike(one.inputs, other.inputs):
            return one.name or "the model itself"
    return None


def first_non_finite(subject: Subject, inputs: Any) -> str:
    """The first module that makes NaN or infinity of finite inputs."""

    def finite(tensors: tuple[torch.Tensor, ...]) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    if not finite(outputs_of(inputs)):
        return "the input itself"
    if not subject.can_hook:
        return "the model"
    with kept(subject):
        for run in module_values(subject, inputs, finite):
            if run.inputs and not run.outputs:
                return run.name or "the model itself"
    return "the model"


# -- between companies


@dataclass(frozen=True, slots=True)
class Company:
    """The outputs of the same samples alone and in two batches."""

    difference: float
    tolerance: float
    fails_alone: bool
    causes: tuple[Cause, ...]
    outputs: int  # how many outputs have a row for each sample; the boxes of a detector have not


class Tables:
    """The samples to probe, and two sets of companions for them; each a list of inputs of one sample."""

    def __init__(self, probes: list[Any], first: list[Any], second: list[Any]) -> None:
        self.probes = probes
        self.first, self.second = joined([*probes, *first]), joined([*probes, *second])
        self.size = len(probes) + len(first)


# Rounding: differences of outputs, relative to the largest, that the arithmetic of the network explains by itself.
# Measured over seven torchvision networks at 96x96 on a CPU: up to 3.2e-15 in float64 (14 eps) and 9e-7 in float32
# (8 eps) between batch sizes, while one BatchNorm without statistics gave from 0.12 down to 6e-10.
ROUNDING = 1000.0
# How much more than its answer to a change of the last bit of its input a network may differ.
AMPLIFIED = 100.0
# How often chance is drawn where a network has some of its own.
DRAWS = 4


def company(subject: Subject, tables: Tables, *, alone: bool) -> Company:
    """Runs the probes in two batches of other companions, and each alone if `alone`; names what couples them."""
    probes = len(tables.probes)

    def rows(inputs: Any, samples: int, statistics: Mapping[int, OperatorStatistics] | None) -> tuple[Any, Record]:
        with kept(subject):
            seed_everything()
            out, record = forward(subject, inputs, samples, repeated_noise=True, statistics=statistics)
        return tuple(t[:probes] for t in outputs_of(out) if t.dim() and t.shape[0] == samples), record

    fails_alone = False

    def spread(statistics: Mapping[int, OperatorStatistics] | None) -> tuple[float, Record, Any]:
        nonlocal fails_alone
        first, record = rows(tables.first, tables.size, statistics)
        second, _ = rows(tables.second, tables.size, statistics)
        difference = largest_difference(first, second)
        if alone and not fails_alone:
            try:
                single = [rows(probe, 1, statistics)[0] for probe in tables.probes]
            except Exception:  # noqa: BLE001 - train mode refuses one value per channel
                fails_alone = True
            else:
                together = tuple(torch.cat(parts) for parts in zip(*single, strict=False))
                difference = max(difference, largest_difference(first, together))
        return difference, record, first

    def rounding_of(outputs: Any, statistics: Mapping[int, OperatorStatistics] | None) -> float:
        return rounding(outputs, tables.first, lambda inputs: rows(inputs, tables.size, statistics)[0])

    difference, record, first = spread(None)
    tolerance = least_rounding(first)
    if difference > tolerance:  # else there is no need to measure what the network makes of a last bit
        tolerance = rounding_of(first, None)
    if difference <= tolerance:
        return Company(difference, tolerance, fails_alone, (), len(first))
    causes: list[Cause] = []
    fixed = record.statistics
    by_batch = tuple(dict.fromkeys(c.layer for c in record.batch_norms if c.by_batch))
    if by_batch:
        remaining, _, held = spread(fixed)
        own, _ = rows(tables.second, tables.size, None)
        others, _ = rows(tables.second, tables.size, fixed)
        # With the statistics of the other batch, the second batch must give something else: else nobody reads them.
        if largest_difference(own, others) > tolerance:
            causes.append(batchnorm_cause(subject, by_batch))
        allowed = max(tolerance, rounding_of(held, fixed))
    else:
        remaining, allowed = difference, tolerance
    if remaining > allowed:
        causes.append(coupling_cause(subject, tables, fixed, allowed))
    return Company(difference, tolerance, fails_alone, tuple(causes), len(first))


def least_rounding(outputs: tuple[torch.Tensor, ...]) -> float:
    """What any network may differ by, by the resolution of its numbers."""
    return ROUNDING * max((torch.finfo(t.dtype).eps for t in outputs), default=torch.finfo(torch.float32).eps)


def rounding(outputs: tuple[torch.Tensor, ...], inputs: Any, run: Callable[[Any], Any]) -> float:
    """What the last bit of the input, or chance that nothing holds fixed, makes of the outputs."""
    answers = [largest_difference(outputs, run(nudge(inputs)))]
    if largest_difference(outputs, run(inputs)):  # one draw may be small by luck
        answers += [largest_difference(outputs, run(inputs)) for _ in range(DRAWS)]
    return max(least_rounding(outputs), AMPLIFIED * max(answers))


def batchnorm_cause(subject: Subject, by_batch: tuple[str, ...]) -> Cause:
    """Which layers normalise by the batch, and why."""
    reasons: dict[str, list[str]] = {}
    for name in by_batch:
        layer = subject.layers.get(name)
        if layer is not None and getattr(layer, "running_mean", None) is None:
            reason = "without running statistics"
        elif layer is not None and bool(getattr(layer, "training", False)):
            reason = "in train mode"
        else:
            reason = "by a constant of the graph or a call of its own"
        reasons.setdefault(reason, []).append(name)
    told = "; ".join(f"{reason}: {few(names, NAMED_MODULES)}" for reason, names in reasons.items())
    normalise = "normalises" if len(by_batch) == 1 else "normalise"
    return Cause(
        CauseKind.BATCHNORM.value,
        f"{count(len(by_batch), 'BatchNorm layer')} {normalise} by the batch ({told})",
        by_batch,
    )


def coupling_cause(
    subject: Subject, tables: Tables, statistics: Mapping[int, OperatorStatistics], tolerance: float
) -> Cause:
    """What lets samples see each other although every BatchNorm is held fixed."""
    name = None
    if subject.can_hook:

        def copies(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple((tensor[: len(tables.probes)] if tensor.dim() else tensor).clone() for tensor in tensors)

        def values(inputs: Any) -> list[ModuleRun]:
            def run() -> None:
                seed_everything()
                forward(subject, inputs, tables.size, repeated_noise=True, statistics=statistics)

            with kept(subject):
                return module_values(subject, inputs, copies, run)

        name = first_that_differs(
            values(tables.first),
            values(tables.second),
            lambda one, other: largest_difference(one, other) <= tolerance,
        )
    where = f", first in {name}" if name else ""
    return Cause(
        CauseKind.BATCH_COUPLING.value,
        f"samples of a batch see each other{where}, with every BatchNorm held fixed: a statistic over the batch, a "
        "contrastive or attention step across samples, padding to the largest",
        (name,) if name else (),
    )


# -- inputs of one sample


def single(inputs: Any, size: int) -> list[Any]:
    """The samples of a batch, each as a batch of one."""

    def part(value: Any, index: int) -> Any:
        if isinstance(value, torch.Tensor):
            return value[index : index + 1] if value.dim() and value.shape[0] == size else value
        if isinstance(value, Mapping):
            return {name: part(held, index) for name, held in value.items()}
        return tuple(part(held, index) for held in value) if isinstance(value, (tuple, list)) else value

    return [part(inputs, index) for index in range(size)]


def joined(samples: list[Any]) -> Any:
    """Batches of one as one batch."""
    first = samples[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(samples) if first.dim() else first
    if isinstance(first, Mapping):
        return {name: joined([sample[name] for sample in samples]) for name in first}
    return tuple(joined(list(parts)) for parts in zip(*samples, strict=True)) if isinstance(first, tuple) else first


def cast(value: Any, dtype: torch.dtype, device: str) -> Any:
    """Floating tensors in another dtype, all on another device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {name: cast(held, dtype, device) for name, held in value.items()}
    return tuple(cast(held, dtype, device) for held in value) if isinstance(value, (tuple, list)) else value


def nudge(value: Any) -> Any:
    """Floating tensors with their last bits changed."""
    if isinstance(value, torch.Tensor):
        return value * (1 + torch.finfo(value.dtype).eps) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: nudge(held) for name, held in value.items()}
    return tuple(nudge(held) for held in value) if isinstance(value, (tuple, list)) else value
