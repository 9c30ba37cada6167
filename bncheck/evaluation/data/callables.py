"""Batches from a callable of the user's, which runs here."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bncheck.errors import UsageError
from bncheck.evaluation.data.batches import LABEL_KEYS, Batch, Data
from bncheck.evaluation.data.columns import NUMBERS, from_numpy
from bncheck.evaluation.models.foreign import foreign_code, importable, load_callable
from bncheck.evaluation.process import random_state, set_random_state
from bncheck.wording import few

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bncheck.options.data import DataOptions
    from bncheck.options.option import StrPath

YIELD_HINT = "Yield tensors, (inputs, labels), or dicts of tensors."


def open_callable(spec: str, options: DataOptions, python_path: Sequence[StrPath] = ()) -> Data:
    """What the user's function gives, an iterable of batches.

    An iterable that can be read only once, such as a generator, is asked for anew for each pass; another, such as a
    DataLoader, is kept and iterated over again.

    Args:
        spec: `module:callable` or `file.py:callable`.
        options: how much of it is read, and which keys of its dicts.
        python_path: folders to import from, besides the current one.
    """
    source = CallableSource(spec, options, python_path)
    description = {"kind": "callable", "callable": spec, "batch_size": "as the callable gives it"}
    return Data(source.read_batches, description)


class CallableSource:
    """Runs the user's code, each step of it as `running` says."""

    def __init__(self, spec: str, options: DataOptions, python_path: Sequence[StrPath]) -> None:
        self.spec = spec
        self.options = options
        self.python_path = python_path
        self.randomness = random_state()
        self.passes = 0
        self.kept: Iterable[Any] | None = None
        with self.running():
            self.named = load_callable(spec, "--data")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around the user's code: their modules are importable, their prints go to stderr, their errors are ours.

        Their random numbers go on from step to step, so that a shuffle differs between two passes as it would with
        them, and those of the process are as they were: a model that is run between two batches sees no difference.
        """
        outside = random_state()
        set_random_state(self.randomness)
        try:
            hint = "Run it alone to see where; --debug shows the traceback."
            with importable(self.python_path), foreign_code(f"--data {self.spec} fails", hint):
                yield
        finally:
            self.randomness = random_state()
            set_random_state(outside)

    def iterable(self) -> Iterable[Any]:
        if self.kept is not None:
            return self.kept
        made: Any = self.named() if callable(self.named) else self.named
        if isinstance(made, (torch.Tensor, np.ndarray, Mapping, tuple, str)) or not is_iterable(made):
            raise UsageError(
                f"--data {self.spec} gives a {type(made).__name__}, not an iterable of batches",
                "Return a list, a generator or a DataLoader of batches.",
            )
        if isinstance(made, torch.utils.data.Dataset) and not isinstance(made, torch.utils.data.IterableDataset):
            raise UsageError(
                f"--data {self.spec} gives a Dataset, which yields single samples",
                "Return DataLoader(dataset, batch_size=32).",
            )
        if not isinstance(made, Iterator):
            self.kept = made
        elif self.passes and not callable(self.named):
            raise UsageError(
                f"--data {self.spec} is a {type(made).__name__}, which can be read only once",
                "Name a function that returns a new one each time.",
            )
        self.passes += 1
        iterable: Iterable[Any] = made
        return iterable

    def read_batches(self) -> Generator[Batch, None, None]:
        """One pass over what the user's code yields."""
        left = self.options.limit
        with self.running():
            items = iter(self.iterable())
        empty = True
        try:
            while left is None or left > 0:
                with self.running():
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    batch = batch_of(item, self.spec, self.options.input_key)
                batch = batch if left is None or batch.size <= left else cut(batch, left)
                left = None if left is None else left - batch.size
                empty = False
                yield batch
        finally:
            if isinstance(items, Generator):  # what it cleans up is the user's code, too
                with self.running():
                    items.close()
        if empty:
            raise UsageError(f"--data {self.spec} yields nothing", YIELD_HINT)


def is_iterable(made: Any) -> bool:
    try:
        iter(made)
    except TypeError:
        return False
    return True


def batch_of(item: Any, spec: str, input_keys: Sequence[str]) -> Batch:
    """A batch from a tensor, (inputs, labels), [inputs] as a DataLoader over one tensor yields it, or a dict.

    A dict's labels are what it has under labels, label, targets, target or y; what is not a tensor is left out. Labels
    of other kinds than numbers, such as the boxes of a detector, stay in `Batch.item` only.
    """
    inputs, labels = item, None
    if isinstance(item, (tuple, list)) and len(item) in (1, 2):
        inputs, labels = item[0], item[1] if len(item) == 2 else None
    if isinstance(inputs, Mapping):
        if labels is None:
            labels = next((inputs[key] for key in LABEL_KEYS if key in inputs and key not in input_keys), None)
        inputs = chosen_inputs(inputs, spec, input_keys)
    elif input_keys:
        raise UsageError(
            f"--data {spec} yields no dict to take --input-key {input_keys[0]} from",
            "Yield dicts, or leave --input-key out.",
        )
    elif isinstance(inputs, (tuple, list)) and inputs is not item:
        inputs = tuple(as_tensor(part) for part in inputs)
    else:
        inputs = as_tensor(inputs)
    usable = [inputs]
    if isinstance(inputs, dict):
        usable = list(inputs.values())
    elif isinstance(inputs, tuple) and inputs is not item:
        usable = list(inputs)
    if not usable or not all(isinstance(tensor, torch.Tensor) and tensor.ndim for tensor in usable):
        kind = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list)) else "")
        raise UsageError(f"--data {spec} yields {kind} that is no batch", YIELD_HINT)
    return Batch(inputs, as_labels(labels), len(usable[0]), item)


def chosen_inputs(yielded: Mapping[Any, Any], spec: str, input_keys: Sequence[str]) -> Any:
    """The tensors of a dict that the model takes; one that was named is passed alone."""
    for key in input_keys:
        if key not in yielded:
            raise UsageError(
                f"--input-key {key} is not in what --data {spec} yields", f"It has {few(sorted(map(str, yielded)), 8)}."
            )
    keys = input_keys or [key for key in yielded if key not in LABEL_KEYS]
    tensors = {str(key): as_tensor(yielded[key]) for key in keys}
    if len(input_keys) == 1:
        return tensors[input_keys[0]]
    return {key: tensor for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor) or key in input_keys}


def as_tensor(value: Any) -> Any:
    """Arrays as tensors; everything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMBERS:
        return from_numpy(value)
    return value


def as_labels(value: Any) -> torch.Tensor | None:
    """Labels as a tensor of one dimension or more, or None where they are no numbers."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(label, (int, float)) for label in value):
        value = torch.tensor(value)
    value = as_tensor(value)
    return value if isinstance(value, torch.Tensor) and value.ndim else None


def cut(batch: Batch, size: int) -> Batch:
    """The first samples of a batch; `given` is gone, its form is not ours to cut."""
    inputs: Any = batch.inputs
    if isinstance(inputs, torch.Tensor):
        inputs = inputs[:size]
    elif isinstance(inputs, dict):
        inputs = {key: tensor[:size] for key, tensor in inputs.items()}
    else:
        inputs = tuple(tensor[:size] for tensor in inputs)
    return Batch(inputs, None if batch.labels is None else batch.labels[:size], size)
