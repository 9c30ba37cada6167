"""Puts a model and the process back as they were, bit for bit, whatever was run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bncheck.evaluation.process import (
    SETTINGS,
    UNREADABLE,
    as_numbers,
    generators,
    hooks_of_all_modules,
    read_setting,
    uninterrupted,
)
from bncheck.evaluation.tensors import bits, grad_of, saved_tensors, untouched

PLAIN = (bool, int, float, str, type(None))


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


class Before:
    """Everything as it was when this was made."""

    def __init__(self, root: nn.Module) -> None:
        self.settings = {name: value for name in SETTINGS if (value := read_setting(name)) is not UNREADABLE}
        self.generators = {name: (read(), write) for name, (read, write) in generators().items()}
        self.global_hooks = [(hooks, dict(hooks)) for hooks in hooks_of_all_modules()]
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
        for hooks, content in self.global_hooks:
            put_contents_back(hooks, content)
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
            digest.update(repr((self.settings, [described(hooks) for hooks, _ in self.global_hooks])).encode())
            for state, _ in self.generators.values():
                digest.update(repr(as_numbers(state)).encode())
            for module in self.modules:
                digest.update(repr(module.description()).encode())
            for tensor in self.tensors:
                digest.update(repr(tensor.description()).encode())
                if tensor.values is not None:
                    digest.update(bits(tensor.values).cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def modules_of(root: nn.Module) -> list[nn.Module]:
    """Every module below, each once; those that plain lists, tuples and dictionaries hold, too.

    The latter are a mistake that eval() does not reach, so their statistics are the first to move.
    """
    modules: dict[int, nn.Module] = {}
    waiting: list[object] = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            if id(value) not in modules:
                modules[id(value)] = value
                waiting.extend(value.children())
                waiting.extend(plain for plain in vars(value).values() if isinstance(plain, (list, tuple, dict)))
        elif isinstance(value, (list, tuple)):
            waiting.extend(item for item in value if isinstance(item, nn.Module))
        elif isinstance(value, dict):
            waiting.extend(item for item in value.values() if isinstance(item, nn.Module))
    return list(modules.values())


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
    by_name: dict[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.by_name.values())

    def put_back(self) -> None:
        if self.training is not None and self.module.training is not self.training:
            self.module._c.setattr("training", self.training)
        now = tensors_of_script(self.module)
        for name, tensor in self.by_name.items():
            if now.get(name) is not tensor:
                self.module._c.setattr(name, tensor)

    def description(self) -> object:
        return (id(self.module), self.training, described(self.by_name))


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
    values = [*module._parameters.values(), *module._buffers.values(), *attributes.values()]
    return SavedModule(module, type(module), attributes, contents, [t for t in values if isinstance(t, Tensor)])


def tensors_of_script(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))


def put_contents_back(container: Any, content: Any) -> None:
    """Gives a dictionary or set what it had, in its order; writes nothing where that is what it has."""
    if isinstance(container, set):
        container.intersection_update(content)
        container.update(content)
        return
    for key in [key for key in container if key not in content]:
        del container[key]
    for key, value in content.items():
        if key not in container or container[key] is not value:
            container[key] = value
    if list(container) != list(content):
        container.clear()
        container.update(content)


def described(content: Any) -> object:
    """A dictionary or set as text: plain values as they are, others by identity."""
    if isinstance(content, set):
        return sorted(map(repr, content))
    return [(key, value if isinstance(value, PLAIN) else id(value)) for key, value in content.items()]
