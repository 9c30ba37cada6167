"""`bncheck.guard`: fails code of the user's own that moves the statistics of BatchNorm layers.

with bncheck.guard(model):
    evaluate(model)

@bncheck.guard(model, allow=["discriminator.*"])
def validate() -> float: ...
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import sys
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bncheck.errors import BatchNormDriftError, UsageError
from bncheck.wording import count, few

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from bncheck.evaluation.observing.pictures import Change, Picture

P = ParamSpec("P")
R = TypeVar("R")

# Layers that the error describes; it names more, and holds all of them.
MOST_DESCRIBED = 8


class Guard:
    """Compares the statistics at the start and at the end of a block, or of each call of a function."""

    def __init__(self, model: Any, allow: Iterable[str] = ()) -> None:
        torch = sys.modules.get("torch")  # who has a module has imported it
        if torch is None or not isinstance(model, torch.nn.Module):
            raise UsageError(f"guard takes a torch.nn.Module, not {type(model).__name__}", "Pass the model itself.")
        self.model = model
        self.allow = (allow,) if isinstance(allow, str) else tuple(allow)
        self.before: list[Picture] = []  # of each block that is open: a guard may be entered again inside itself

    def __enter__(self) -> Guard:
        from bncheck.evaluation.observing.pictures import picture

        self.before.append(picture(self.model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        before = self.before.pop()
        if error is None:
            self.compare(before)
            return
        # What the block raised goes on, whatever becomes of the comparison: a device that failed fails here again.
        with contextlib.suppress(Exception):
            try:
                self.compare(before)
            except BatchNormDriftError as drift:
                if sys.version_info >= (3, 11):
                    error.add_note(str(drift))

    def check(self) -> None:
        """Compares now, with the start of the innermost block.

        Raises:
            BatchNormDriftError: statistics changed.
        """
        __tracebackhide__ = True
        if not self.before:
            raise UsageError("check() is for the inside of a block", "Enter the guard first: with guard: ...")
        self.compare(self.before[-1])

    def compare(self, before: Picture) -> None:
        __tracebackhide__ = True
        from bncheck.evaluation.observing.pictures import changes

        found = [change for change in changes(self.model, before) if not self.allows(change.name)]
        if found:
            raise BatchNormDriftError(
                f"the statistics of {count(len(found), 'BatchNorm layer')} changed inside the guarded block: "
                f"{few([change.name or '(the module itself)' for change in found])}",
                hint(found),
                layers=tuple(change.name for change in found),
                details=tuple(map(str, found[:MOST_DESCRIBED])),
            )

    def allows(self, name: str) -> bool:
        return any(name == glob or fnmatch.fnmatchcase(name, glob) for glob in self.allow)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Guards every call of the function, a coroutine until it returns."""
        import inspect

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise UsageError(
                f"{function.__qualname__} is a generator: between its steps other code runs",
                "Guard the loop that uses it: with bncheck.guard(model): ...",
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*arguments: P.args, **keywords: P.kwargs) -> Any:
                __tracebackhide__ = True
                with Guard(self.model, self.allow):
                    return await function(*arguments, **keywords)

            return awaited  # type: ignore[return-value]

        @functools.wraps(function)
        def called(*arguments: P.args, **keywords: P.kwargs) -> R:
            __tracebackhide__ = True
            with Guard(self.model, self.allow):
                return function(*arguments, **keywords)

        return called


def guard(model: Any, *, allow: Iterable[str] = ()) -> Guard:
    """Raises if any statistics of the model's BatchNorm layers change inside a block or a function.

    running_mean, running_var and num_batches_tracked are compared by value, with a copy of them on their device; the
    output, the mode and the weights are not looked at. A model without BatchNorm has nothing that could move.

    Args:
        model: a torch.nn.Module, compiled, scripted or wrapped for several devices as it may be.
        allow: globs for the names of layers whose statistics may change. The names are those of named_modules
            without what wrappers put before them.

    Returns:
        A context manager, and a decorator of functions and coroutine functions. An exception of the block goes
        through, and has what changed as a note (Python 3.11 and later).

    Raises:
        BatchNormDriftError: at the end of the block, naming the layers, their modes, and how far they went.
        UsageError: the model is no module.
    """
    return Guard(model, allow)


def hint(found: Iterable[Change]) -> str:
    """What to do about it, for the likeliest cause."""
    outside = [change.name for change in found if not change.registered]
    if outside:
        return (
            f"eval() does not reach {few(outside)}, which the model holds in a plain list or dictionary: use "
            "nn.ModuleList or nn.ModuleDict, then call model.eval() before the block."
        )
    if any(change.training[0] for change in found):
        return (
            "Call model.eval() before the block, on frozen parts too; allow=[...] lets layers move that are meant to."
        )
    return (
        "The layers were in eval mode at the start: something inside called train(), wrote to the buffers, or ran "
        "DistributedDataParallel, which copies the buffers of rank 0 (broadcast_buffers=False keeps them)."
    )
