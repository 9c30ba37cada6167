"""Watches and controls the operators of a forward, whatever the model is made of.

A dispatch mode sees every operator that PyTorch runs: those of a scripted or exported graph, and those that a forward
calls as functions, where no module could take a hook. So this is where BatchNorm layers are met as they really run,
where random operators are found, and where both can be held fixed for a trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bncheck.evaluation.process import noise_kept, seed_torch
from bncheck.subjects.layer import DEFAULT_EPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Statistics = tuple[torch.Tensor, torch.Tensor]


class BatchNormCall(NamedTuple):
    """One run of a batch_norm operator. `by_batch`: it normalised samples of a batch by each other."""

    layer: str
    by_batch: bool
    updates: bool


class RandomCall(NamedTuple):
    """One run of an operator that draws random numbers. `own_generator`: not from the global one."""

    operator: str
    module: str
    own_generator: bool


@dataclass
class Record:
    """What a forward did."""

    batch_norms: list[BatchNormCall] = field(default_factory=list)
    random: list[RandomCall] = field(default_factory=list)
    statistics: dict[int, Statistics] = field(default_factory=dict)  # of the batch, by the number of the operator


class Interception(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operators of a forward.

    Args:
        names: layer names by the address of their running_mean, or weight where they have none.
        samples: how many samples the batch has.
        inside: gives the name of the module that is running, as far as hooks tell.
        repeated_noise: gives each sample the same random numbers in every run and in any company.
        statistics: what the batch_norm operators of these numbers normalise with, instead of the batch.
        on_input: called with the layer's name and the input of each batch_norm operator.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        samples: int,
        *,
        inside: Callable[[], str] = lambda: "",
        repeated_noise: bool = False,
        statistics: Mapping[int, Statistics] | None = None,
        on_input: Callable[[str, torch.Tensor], None] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.samples, self.inside = names, samples, inside
        self.repeated_noise, self.fixed, self.on_input = repeated_noise, statistics or {}, on_input
        self.record = Record()
        self.batch_norm_calls = self.random_calls = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if "batch_norm" in func._schema.name and "backward" not in func._schema.name:
            return self.batch_norm(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self.random(func, args, kwargs)
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler, two seconds, to keep this mode out of it; nothing is compiled here."""
        return False

    def batch_norm(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = named_arguments(func, args, kwargs)
        values, mean, weight = given["input"], given.get("running_mean"), given.get("weight")
        number = self.batch_norm_calls
        self.batch_norm_calls += 1
        name = next(
            (
                self.names[tensor.data_ptr()]
                for tensor in (mean, weight)
                if tensor is not None and is_known(tensor, self)
            ),
            self.inside() or f"batch_norm {number}",
        )
        training = trains(func, given)
        # InstanceNorm reaches this operator with all samples folded into the channels; a standardised weight has no
        # batch at all. Neither lets samples see each other.
        coupled = training and values.dim() > 1 and values.shape[0] == self.samples
        self.record.batch_norms.append(BatchNormCall(name, coupled, training and mean is not None))
        if self.on_input:
            self.on_input(name, values)
        if coupled and number not in self.fixed:
            dimensions = [0, *range(2, values.dim())]
            variance, average = torch.var_mean(values, dimensions, correction=0)
            self.record.statistics[number] = (average, variance)
        if number in self.fixed:
            average, variance = self.fixed[number]
            return normalised(func, given, average, variance)
        return func(*args, **kwargs)

    def random(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = named_arguments(func, args, kwargs)
        own = given.get("generator") is not None
        self.record.random.append(RandomCall(func._schema.name.partition("::")[2], self.inside(), own))
        self.random_calls += 1
        if not self.repeated_noise:
            return func(*args, **kwargs)
        with noise_kept():
            return self.noise_by_sample(func, args, {**kwargs, "generator": None} if "generator" in kwargs else kwargs)

    def noise_by_sample(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator run for each sample by itself, from the same state of the generator."""

        def run(row: tuple[Any, ...]) -> Any:
            seed_torch(self.random_calls)
            return func(*row, **kwargs)

        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.dim() and first.shape[0] == self.samples:
            rows = [
                tuple(
                    arg[i : i + 1]
                    if isinstance(arg, torch.Tensor) and arg.dim() and arg.shape[0] == self.samples
                    else arg
                    for arg in args
                )
                for i in range(self.samples)
            ]
            results = [run(row) for row in rows]
            if func._schema.is_mutable and func._schema.name.endswith("_"):
                return first  # each row was written in place
            return joined(results)
        if isinstance(first, (list, tuple)) and first and first[0] == self.samples:
            result = run(([1, *first[1:]], *args[1:]))
            return result.expand(self.samples, *result.shape[1:]).clone()
        return run(args)


def is_known(tensor: torch.Tensor, mode: Interception) -> bool:
    return tensor.data_ptr() in mode.names


def named_arguments(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def trains(func: torch._ops.OpOverload, given: Mapping[str, Any]) -> bool:
    """Whether a batch_norm operator normalises by the batch: by its argument or, where it has none, by its name."""
    if "training" in given:
        return bool(given["training"])
    return "with_update" in func._schema.name


def normalised(
    func: torch._ops.OpOverload, given: Mapping[str, Any], mean: torch.Tensor, variance: torch.Tensor
) -> Any:
    """What the operator would give if these were its running statistics, in eval mode."""
    eps = given.get("eps", given.get("epsilon", DEFAULT_EPS))
    out = torch.ops.aten.native_batch_norm.default(
        given["input"], given.get("weight"), given.get("bias"), mean, variance, False, 0.0, eps
    )
    returned = len(func._schema.returns)
    return out[0] if returned == 1 else (*out, *[out[1].new_empty(0)] * (returned - 3))


def joined(results: list[Any]) -> Any:
    if isinstance(results[0], (tuple, list)):
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
    return torch.cat(results)


def layer_addresses(layers: Mapping[str, torch.nn.Module]) -> dict[int, str]:
    """Names of layers by the address of their running_mean, and of their weight."""
    addresses = {}
    for name, layer in layers.items():
        for part in ("weight", "running_mean"):
            tensor = getattr(layer, part, None)
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                addresses[tensor.data_ptr()] = name
    return addresses
