"""Puts a model and the process back as they were, bit for bit, whatever was run; and swaps running statistics."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bncheck.checkpoints.contents.state_dicts import COUNTER, STATISTICS, prefix_stripper

if TYPE_CHECKING:
    from types import FrameType

# How something is read, and how it is written.
Access = tuple[Callable[[], Any], Callable[[Any], object]]
PLAIN = (bool, int, float, str, type(None))
# An integer type of each width: two tensors are the same if their bits are, NaN and -0.0 included.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextlib.contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Puts back what was changed inside, after success, any exception, and Ctrl-C.

    The model: the values of parameters, buffers and tensors held as plain attributes, the tensor objects themselves
    with dtype, device, layout, requires_grad and grad; of each submodule its mode, settings, hooks, children and every
    other attribute; submodules that the model holds in plain lists or dictionaries too. The process: random
    generators, global hooks, and the settings of torch in SETTINGS. Neither train() nor eval() is called, and what did
    not change is not written.

    Costs one copy of the tensors. Not put back: the contents of other Python objects that the model holds, such as a
    list of losses, and of a ScriptModule any attribute but mode, parameters and buffers. A CUDA generator counts from
    when CUDA is initialised: bncheck does not do so by itself.
    """
    before = Before(module)
    try:
        yield
    finally:
        try:
            with uninterrupted():
                before.put_back()
        except KeyboardInterrupt:  # just before it was held back, or when that ended
            with uninterrupted():
                before.put_back()
            raise


def fingerprint(module: nn.Module) -> str:
    """A hash of all that `restored` puts back, the identity of objects included: meaningful within one process."""
    return Before(module).fingerprint()


# -- the process


def generators() -> dict[str, Access]:
    """How to read and write the state of each random generator in use."""
    found: dict[str, Access] = {
        "random": (random.getstate, random.setstate),
        "numpy": (lambda: np.random.get_state(legacy=False), np.random.set_state),
        "cpu": (torch.get_rng_state, torch.set_rng_state),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    if torch.backends.mps.is_available():
        found["mps"] = (torch.mps.get_rng_state, torch.mps.set_rng_state)
    return found


def attribute(holder: Any, name: str) -> Access:
    return (lambda: getattr(holder, name)), (lambda value: setattr(holder, name, value))


def set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def precision_settings() -> dict[str, Access]:
    """The precision of each backend and operator, which torch 2.9 put beside the three older settings of TF32."""
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        return {}
    read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    pairs = [(backend, use) for backend in ("cuda", "mkldnn") for use in ("all", "conv", "rnn", "matmul")]
    return {
        f"fp32_precision of {backend}, {use}": (partial(read, backend, use), partial(write, backend, use))
        for backend, use in (("generic", "all"), *pairs)
    }


# Settings of the process, by what is read and how it is written. The order matters: writing an older setting of TF32
# changes the newer ones.
SETTINGS: dict[str, Access] = {
    "cudnn.enabled": attribute(torch.backends.cudnn, "enabled"),
    "cudnn.benchmark": attribute(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": attribute(torch.backends.cudnn, "deterministic"),
    "cudnn.allow_tf32": attribute(torch.backends.cudnn, "allow_tf32"),
    "mkldnn.enabled": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "cuda.matmul.allow_tf32": attribute(torch.backends.cuda.matmul, "allow_tf32"),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        set_deterministic,
    ),
    "grad mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    **precision_settings(),
}
UNREADABLE = object()


def read_setting(name: str) -> Any:
    """Its value, or UNREADABLE: torch refuses some where older and newer settings of TF32 contradict each other."""
    try:
        return SETTINGS[name][0]()
    except RuntimeError:
        return UNREADABLE


def hooks_of_all_modules() -> list[MutableMapping[int, Any]]:
    """The hooks that torch calls for every module there is."""
    return [
        held
        for name, held in vars(global_hooks).items()
        if name.startswith("_global_") and isinstance(held, MutableMapping)
    ]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back until the end of the block. Only the main thread is ever interrupted."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[0])


# -- the model


class Before:
    """Everything as it was when this was made."""

    def __init__(self, root: nn.Module) -> None:
        self.settings = {name: value for name in SETTINGS if (value := read_setting(name)) is not UNREADABLE}
        self.generators = {name: (read(), write) for name, (read, write) in generators().items()}
        self.global_hooks = [(held, dict(held)) for held in hooks_of_all_modules()]
        with untouched():
            self.modules = [saved_module(module) for module in modules_of(root)]
            tensors = {id(tensor): tensor for module in self.modules for tensor in module.tensors}
            grads = {id(grad): grad for grad in map(grad_of, tensors.values()) if grad is not None}
            self.tensors = [saved for tensor in (tensors | grads).values() for saved in saved_tensors(tensor)]

    def put_back(self) -> None:
        """Writes what differs. May be called again."""
        for name, value in self.settings.items():
            if read_setting(name) != value:
                SETTINGS[name][1](value)
        for held, content in self.global_hooks:
            put_contents_back(held, content)
        with untouched():
            for module in self.modules:
                module.put_back()
            for tensor in self.tensors:
                tensor.put_back()
            for tensor in self.tensors:  # a gradient must have the dtype of its tensor, so not before
                tensor.put_gradient_back()
        for state, write in self.generators.values():
            write(state)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        with untouched():
            digest.update(repr((self.settings, [described(held) for held, _ in self.global_hooks])).encode())
            for state, _ in self.generators.values():
                digest.update(repr(as_numbers(state)).encode())
            for module in self.modules:
                digest.update(repr(module.description()).encode())
            for tensor in self.tensors:
                digest.update(repr(tensor.description()).encode())
                if tensor.values is not None:
                    digest.update(bits(tensor.values).cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """No gradient is recorded, and no __torch_function__ of a tensor subclass has a say."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        yield


def modules_of(root: nn.Module) -> list[nn.Module]:
    """Every module below, each once; those that plain lists, tuples and dictionaries hold, too.

    The latter are a mistake that eval() does not reach, so their statistics are the first to move.
    """
    found: dict[int, nn.Module] = {}
    waiting: list[object] = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            if id(value) not in found:
                found[id(value)] = value
                waiting.extend(value.children())
                waiting.extend(held for held in vars(value).values() if isinstance(held, (list, tuple, dict)))
        elif isinstance(value, (list, tuple)):
            waiting.extend(held for held in value if isinstance(held, nn.Module))
        elif isinstance(value, dict):
            waiting.extend(held for held in value.values() if isinstance(held, nn.Module))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class SavedModule:
    """The attributes of a module, and the contents of its dictionaries and sets, not copied deeper."""

    module: nn.Module
    kind: type[nn.Module]
    attributes: dict[str, Any]
    contents: dict[str, Any]
    tensors: list[Tensor]

    def put_back(self) -> None:
        """Writes to `__dict__`: a module's own __setattr__, properties and train() are not asked."""
        if type(self.module) is not self.kind:  # a lazy module becomes an ordinary one when it runs
            self.module.__class__ = self.kind
        put_contents_back(vars(self.module), self.attributes)
        for name, content in self.contents.items():
            put_contents_back(self.attributes[name], content)

    def description(self) -> object:
        contents = {name: described(content) for name, content in self.contents.items()}
        return (id(self.module), self.kind.__qualname__, described(self.attributes), contents)


@dataclass(frozen=True, slots=True)
class SavedScript:
    """The mode, the parameters and the buffers of a ScriptModule, whose attributes live in C++."""

    module: torch.jit.ScriptModule
    training: bool | None
    held: dict[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.held.values())

    def put_back(self) -> None:
        if self.training is not None and self.module.training is not self.training:
            self.module._c.setattr("training", self.training)
        now = tensors_of_script(self.module)
        for name, tensor in self.held.items():
            if now.get(name) is not tensor:
                self.module._c.setattr(name, tensor)

    def description(self) -> object:
        return (id(self.module), self.training, described(self.held))


def saved_module(module: nn.Module) -> SavedModule | SavedScript:
    if isinstance(module, torch.jit.ScriptModule):
        training = module.training if hasattr(module, "training") else None
        return SavedScript(module, training, tensors_of_script(module))
    attributes = dict(vars(module))
    contents = {
        name: value.copy()
        for name, value in attributes.items()
        # parameters, buffers, children and hooks have such names; a list of losses, say, has not
        if name.startswith("_") and isinstance(value, (dict, set))
    }
    held = [*module._parameters.values(), *module._buffers.values(), *attributes.values()]
    return SavedModule(module, type(module), attributes, contents, [t for t in held if isinstance(t, Tensor)])


def tensors_of_script(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))


def put_contents_back(held: Any, content: Any) -> None:
    """Gives a dictionary or set what it had, in its order; writes nothing where that is what it has."""
    if isinstance(held, set):
        held.intersection_update(content)
        held.update(content)
        return
    for key in [key for key in held if key not in content]:
        del held[key]
    for key, value in content.items():
        if key not in held or held[key] is not value:
            held[key] = value
    if list(held) != list(content):
        held.clear()
        held.update(content)


class SavedTensor:
    """One tensor: the object, an alias of the memory it had, and a copy of the numbers in it."""

    __slots__ = ("alias", "grad", "kind", "requires_grad", "tensor", "values")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.kind = type(tensor)
        self.requires_grad = tensor.requires_grad
        self.grad = grad_of(tensor)
        self.alias = tensor.data
        has_numbers = not (tensor.is_meta or nn.parameter.is_lazy(tensor))
        self.values = self.alias.clone() if has_numbers else None

    def put_back(self) -> None:
        tensor = self.tensor
        if type(tensor) is not self.kind:  # a lazy parameter becomes an ordinary one
            tensor.__class__ = self.kind
        # A tensor made in inference mode may only be written there; to leave it turns gradients on.
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if place(tensor) != place(self.alias):  # half(), to() and resize_() give a tensor other memory
                tensor.data = self.alias
            if self.values is not None:
                self.put_values_back(self.values)
        if tensor.requires_grad is not self.requires_grad and tensor.is_leaf:
            tensor.requires_grad_(self.requires_grad)

    def put_values_back(self, values: Tensor) -> None:
        if self.alias.layout != torch.strided:  # an alias has parts of its own, which a write would replace
            if not same_bits(self.tensor, values):
                self.tensor.data = values.clone()
        elif not same_bits(self.alias, values):
            self.alias.copy_(values)

    def put_gradient_back(self) -> None:
        if grad_of(self.tensor) is not self.grad:
            self.tensor.grad = self.grad

    def description(self) -> object:
        # Without the address of the memory: resize_() gives the old one away.
        how = place(self.alias)[:ADDRESS]
        return (id(self.tensor), self.kind.__qualname__, self.requires_grad, id(self.grad), how)


def saved_tensors(tensor: Tensor) -> list[SavedTensor]:
    """One, or those that a wrapper such as a DTensor consists of."""
    if not is_traceable_wrapper_subclass(tensor):
        return [SavedTensor(tensor)]
    names, _ = tensor.__tensor_flatten__()
    return [saved for name in names for saved in saved_tensors(getattr(tensor, name))]


def grad_of(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.is_leaf else None  # torch warns of the others


ADDRESS = 4


def place(tensor: Tensor) -> tuple[object, ...]:
    """How the numbers of a tensor lie in memory, and, at ADDRESS, where."""
    if nn.parameter.is_lazy(tensor):
        return (tensor.dtype, tensor.device)
    if tensor.layout != torch.strided:
        return (tensor.dtype, tensor.device, tensor.layout, tensor.shape)
    return (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.data_ptr())


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(bits(one), bits(other))


def bits(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as integers."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        return tensor.int_repr()
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.itemsize not in BITS:
        tensor = torch.view_as_real(tensor)
    return tensor.view(BITS[tensor.itemsize])


def described(content: Any) -> object:
    """A dictionary or set as text: plain values as they are, others by identity."""
    if isinstance(content, set):
        return sorted(map(repr, content))
    return [(key, value if isinstance(value, PLAIN) else id(value)) for key, value in content.items()]


def as_numbers(state: Any) -> object:
    """The state of a random generator without tensors and arrays, whose text leaves numbers out."""
    if isinstance(state, (Tensor, np.ndarray)):
        return state.tolist()
    if isinstance(state, dict):
        return {name: as_numbers(value) for name, value in state.items()}
    return [as_numbers(value) for value in state] if isinstance(state, list) else state


# -- BatchNorm


def batchnorm_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every BatchNorm below, by name: torch's classes, and what holds running_mean and running_var as buffers.

    The names are those of named_modules without what DataParallel, DistributedDataParallel and torch.compile put
    before them, as in bncheck.checkpoints. A layer that is used in several places has the first of its names.
    InstanceNorm is none: it normalises each sample by itself.
    """
    named = dict(module.named_modules())
    strip = prefix_stripper([name for name in named if name and name != "module"])
    return {strip(name): found for name, found in named.items() if is_batchnorm(found)}


def is_batchnorm(module: nn.Module) -> bool:
    scripted = getattr(module, "original_name", "") if isinstance(module, torch.jit.ScriptModule) else ""
    if isinstance(module, _InstanceNorm) or "InstanceNorm" in scripted:
        return False
    if isinstance(module, _BatchNorm) or scripted.startswith(("BatchNorm", "SyncBatchNorm")):
        return True
    return set(STATISTICS) <= {name for name, _ in module.named_buffers(recurse=False)}


@dataclass(frozen=True, slots=True)
class Statistics:
    """The running statistics of a layer, each None where it has none."""

    mean: Tensor | None
    var: Tensor | None
    counter: Tensor | None


def statistics_of(layer: nn.Module) -> Statistics:
    """The tensors themselves, not copies."""
    held = dict(layer.named_buffers(recurse=False))
    return Statistics(*(held.get(name) for name in (*STATISTICS, COUNTER)))


def snapshot(layers: Mapping[str, nn.Module]) -> dict[str, Statistics]:
    """Copies of the statistics of the layers."""

    def copied(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().clone()

    found = {name: statistics_of(layer) for name, layer in layers.items()}
    return {name: Statistics(copied(each.mean), copied(each.var), copied(each.counter)) for name, each in found.items()}


def put_back(layers: Mapping[str, nn.Module], saved: Mapping[str, Statistics]) -> None:
    """Writes statistics into the buffers of the layers; a statistic that either side lacks is left as it is."""
    for name, statistics in saved.items():
        held = statistics_of(layers[name])
        for target, values in (
            (held.mean, statistics.mean),
            (held.var, statistics.var),
            (held.counter, statistics.counter),
        ):
            if target is not None and values is not None:
                with torch.inference_mode(target.is_inference()), torch.no_grad():
                    target.copy_(values)


@contextlib.contextmanager
def swapped(layers: Mapping[str, nn.Module], other: Mapping[str, Statistics]) -> Iterator[None]:
    """Runs the block with other statistics in the layers, then puts their own back."""
    own = snapshot(layers)
    try:
        put_back(layers, other)
        yield
    finally:
        with uninterrupted():
            put_back(layers, own)
