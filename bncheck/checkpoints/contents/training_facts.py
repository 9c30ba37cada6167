"""What a training checkpoint says besides its weights: epoch, versions, how many steps its optimizer made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bncheck.checkpoints.contents.groups import children
from bncheck.checkpoints.contents.torch_objects import TensorRecord
from bncheck.checkpoints.encodings.pickles import Dictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bncheck.subjects.checkpoint import Tensor

    Fact = str | int | float

OPTIMIZER_STEPS = "optimizer_steps"
# Tables of facts inside the checkpoint: mmengine's "meta".
TABLES = ("meta",)
MAX_FACTS = 50
LONGEST_TEXT = 200
# Optimizers are looked for in this many containers.
MAX_VISITS = 10_000
# The parameters of an optimizer whose steps are looked at: they differ only where a part was frozen.
MAX_PARAMETERS = 1_000


def facts_of(value: object, tensor_of: Callable[[str, TensorRecord], Tensor]) -> dict[str, Fact]:
    """The single numbers and short texts of a checkpoint by name, and the largest step count of its optimizers."""
    facts: dict[str, Fact] = {}
    if isinstance(value, Dictionary):
        for name, table in value.items():
            if name in TABLES and isinstance(table, Dictionary):
                facts.update((f"{name}.{key}", fact) for key, fact in scalars(table))
        facts.update(scalars(value))
    facts = dict(list(facts.items())[:MAX_FACTS])
    steps = [step for state in optimizer_states(value) for step in steps_of(state, tensor_of)]
    if steps:
        facts[OPTIMIZER_STEPS] = max(steps)
    return facts


def scalars(table: Dictionary) -> Iterator[tuple[str, Fact]]:
    for name, value in table.items():
        if isinstance(name, str) and len(name) <= LONGEST_TEXT and is_fact(value):
            yield name, value  # type: ignore[misc]


def is_fact(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT
    if isinstance(value, int):
        return value.bit_length() <= 64
    return isinstance(value, float)


def optimizer_states(value: object) -> Iterator[Dictionary]:
    """The `state` of each optimizer's state_dict: a dict beside `param_groups`."""
    waiting, seen = [value], set[int]()
    while waiting and len(seen) < MAX_VISITS:
        container = waiting.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        fields = container if isinstance(container, Dictionary) and "param_groups" in container else Dictionary()
        state = fields.get("state")
        if isinstance(state, Dictionary):
            yield state
        else:
            waiting.extend(child for _, child in children(container))


def steps_of(state: Dictionary, tensor_of: Callable[[str, TensorRecord], Tensor]) -> Iterator[int]:
    """The `step` of each parameter: a number, or since torch 1.12 a tensor."""
    for _, parameter in zip(range(MAX_PARAMETERS), state.values(), strict=False):
        step = parameter.get("step") if isinstance(parameter, Dictionary) else None
        if isinstance(step, TensorRecord):
            tensor = tensor_of("step", step)
            step = tensor.read().reshape(-1)[0].item() if tensor.read is not None and tensor.size == 1 else None
        if isinstance(step, (int, float)) and 0 <= step < 2**63:
            yield int(step)
