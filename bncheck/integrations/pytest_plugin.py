"""The pytest plugin: the fixture `bncheck_guard`.

    def test_validation_leaves_the_model_alone(model, bncheck_guard):
        with bncheck_guard(model):
            validate(model)

pytest imports this file at every start, wherever bncheck is installed: what a fixture needs is imported when one is
used, and torch only by whoever made the model.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bncheck.integrations.guard import Guard


class GuardFixture:
    """`bncheck_guard(model)` guards a block or a function, `bncheck_guard.watch(model)` the rest of the test."""

    def __init__(self, until_teardown: ExitStack) -> None:
        self.until_teardown = until_teardown

    def __call__(self, model: Any, *, allow: Iterable[str] = ()) -> Guard:
        from bncheck.integrations.guard import guard

        return guard(model, allow=allow)

    def watch(self, model: Any, *, allow: Iterable[str] = ()) -> Guard:
        """From here to the end of the test. Its `check()` compares at once."""
        return self.until_teardown.enter_context(self(model, allow=allow))


@pytest.fixture
def bncheck_guard() -> Iterator[GuardFixture]:
    """Fails the test if statistics of BatchNorm layers move: `with bncheck_guard(model): ...` or `.watch(model)`."""
    with ExitStack() as until_teardown:
        yield GuardFixture(until_teardown)
