"""Names the cause of a difference between two runs of the same batch: by experiments, one for each cause.

A difference is given a cause only when taking that cause away takes the difference away, or when the operator that
makes it was seen. In each experiment random numbers, BatchNorm statistics and state are held fixed or let go, one
after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bncheck.evaluation.data.batches import input_hash
from bncheck.evaluation.models.calls import call, outputs_of
from bncheck.evaluation.observing.modules import ModuleRun, first_that_differs, module_names, module_runs
from bncheck.evaluation.observing.outputs import largest_difference
from bncheck.evaluation.probes.experiments import AMPLIFIED, NAMED_MODULES, Subject, forward, kept
from bncheck.evaluation.process import (
    deterministic_mode,
    generator_numbers,
    seed_everything,
    set_deterministic_mode,
)
from bncheck.subjects.evaluation import Cause, CauseKind
from bncheck.wording import count, few

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bncheck.evaluation.observing.operators import Record


def causes_between_runs(subject: Subject, inputs: Any, samples: int) -> tuple[list[Cause], str | None]:
    """Why two forwards of the same batch differ, and the first module whose output does so for the same input."""
    causes = []
    before = generator_numbers()
    with kept(subject), module_names(subject.module) as names:
        _, record = forward(subject, inputs, samples, names=names)
    advanced = generator_numbers() != before
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
    before = deterministic_mode()
    try:
        set_deterministic_mode((True, False))
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
        set_deterministic_mode(before)
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
    first, second = (hashed_runs(subject, inputs) for _ in range(2))
    return first_that_differs(first, second, lambda one, other: one == other)


def hashed_runs(subject: Subject, inputs: Any) -> list[ModuleRun]:
    with kept(subject):
        return module_runs(subject.module, input_hash, lambda: call(subject.module, inputs))


def first_non_finite(subject: Subject, inputs: Any) -> str:
    """The first module that makes NaN or infinity of finite inputs."""

    def finite(tensors: tuple[torch.Tensor, ...]) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    if not finite(outputs_of(inputs)):
        return "the input itself"
    if not subject.can_hook:
        return "the model"
    with kept(subject):
        for run in module_runs(subject.module, finite, lambda: call(subject.module, inputs)):
            if run.inputs and not run.outputs:
                return run.name or "the model itself"
    return "the model"
