"""A tensor as it was: the object, the memory it lay in, and its bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# An integer type of each width: two tensors are the same if their bits are, NaN and -0.0 included.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Where the address of the memory stands in what `place` gives.
ADDRESS = 4


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """No gradient is recorded, and no __torch_function__ of a tensor subclass has a say."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        yield


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
