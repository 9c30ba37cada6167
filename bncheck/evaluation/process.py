"""What is set on the whole process: settings of torch, global hooks, random generators, threads, and Ctrl-C."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules import module as global_hooks

if TYPE_CHECKING:
    from types import FrameType

# How something is read, and how it is written.
Access = tuple[Callable[[], Any], Callable[[Any], object]]


def attribute(holder: Any, name: str) -> Access:
    return (lambda: getattr(holder, name)), (lambda value: setattr(holder, name, value))


def deterministic_mode() -> tuple[bool, bool]:
    """Whether torch refuses operators that have no deterministic version, and whether it only warns of them."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def set_deterministic_mode(mode: tuple[bool, bool]) -> None:
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
    "deterministic algorithms": (deterministic_mode, set_deterministic_mode),
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
        hooks
        for name, hooks in vars(global_hooks).items()
        if name.startswith("_global_") and isinstance(hooks, MutableMapping)
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


def generators() -> dict[str, Access]:
    """How to read and write the state of each random generator in use."""
    in_use: dict[str, Access] = {
        "random": (random.getstate, random.setstate),
        "numpy": (lambda: np.random.get_state(legacy=False), np.random.set_state),
        "cpu": (torch.get_rng_state, torch.set_rng_state),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        in_use["cuda"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    if torch.backends.mps.is_available():
        in_use["mps"] = (torch.mps.get_rng_state, torch.mps.set_rng_state)
    return in_use


def generator_numbers() -> dict[str, object]:
    """Where each random generator stands, to be compared: drawing one number changes it."""
    return {name: as_numbers(read()) for name, (read, _) in generators().items()}


def as_numbers(state: Any) -> object:
    """The state of a random generator without tensors and arrays, whose text leaves numbers out."""
    if isinstance(state, (torch.Tensor, np.ndarray)):
        return state.tolist()
    if isinstance(state, dict):
        return {name: as_numbers(value) for name, value in state.items()}
    return [as_numbers(value) for value in state] if isinstance(state, list) else state


def random_state() -> tuple[Any, Any, Any]:
    """The state of the generators on the CPU, those that code which loads data draws from."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def set_random_state(state: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


def seed_everything(number: int = 0) -> None:
    """Seeds the generators of torch, Python and numpy."""
    seed_torch(number)
    random.seed(number)
    np.random.seed(number)


def seed_torch(number: int) -> None:
    """Seeds torch. torch.manual_seed would also write down a traceback for each accelerator that never started."""
    torch.default_generator.manual_seed(number)
    if torch.cuda._initialized:
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


@contextlib.contextmanager
def noise_kept() -> Iterator[None]:
    """Puts the generators of torch back where they stood."""
    state = torch.default_generator.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda._initialized else []
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
        if devices:
            torch.cuda.set_rng_state_all(devices)
