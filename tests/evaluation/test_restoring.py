"""Whatever is run, a model and the process are as before: by fingerprint, and by what the fingerprint is made of."""

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bncheck.evaluation import process, restoring, tensors
from bncheck.evaluation.restoring import fingerprint, restored
from bncheck.evaluation.statistics import batchnorm_layers


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors, and tests that share the cores: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Several layers, one of them frozen, so that modes are mixed."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.to(dtype)
        self.body[1].eval()
        self.head[3].weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(self.stem(images)))
        return result


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(4, 3, 6, 6, dtype=dtype).cumsum(-1)


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Fails unless the block leaves the fingerprint as it was."""
    before = fingerprint(module)
    try:
        yield
    finally:
        assert fingerprint(module) == before


def train_and_run(module: nn.Module) -> None:
    for layer in module.modules():
        layer.training = True
    module(images())


# -- what a forward changes


def test_a_pass_in_train_mode_is_undone() -> None:
    module = Net()
    values = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    with unchanged(module), restored(module):
        before = fingerprint(module)
        train_and_run(module)
        assert fingerprint(module) != before
    assert all(torch.equal(tensor, values[name]) for name, tensor in module.state_dict().items())
    assert [layer.training for layer in module.modules()] == modes


def leaves(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if not list(layer.children())]


@pytest.mark.parametrize("name", leaves(Net()))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_at_any_layer_is_undone(name: str, error: type[BaseException]) -> None:
    module = Net()

    def fail(*_: object) -> None:
        raise error

    with unchanged(module), pytest.raises(error), restored(module):  # noqa: PT012 - what raises is the point
        module.get_submodule(name).register_forward_hook(fail)
        train_and_run(module)


def test_a_failing_evaluator_is_undone() -> None:
    module = Net()

    def evaluator(model: nn.Module) -> float:
        model.train()
        model(images())
        return 1 / 0

    with unchanged(module), pytest.raises(ZeroDivisionError), restored(module):
        evaluator(module)


def test_nothing_is_written_where_nothing_changed() -> None:
    module = Net()
    versions = [tensor._version for tensor in module.state_dict(keep_vars=True).values()]
    with restored(module), torch.no_grad():
        module.eval()
        module(images())
    assert [tensor._version for tensor in module.state_dict(keep_vars=True).values()] == versions


@pytest.mark.skipif(not hasattr(torch._C, "_get_fp32_precision_getter"), reason="torch 2.9 and later")
def test_the_newer_settings_of_tf32_are_put_back_exactly() -> None:
    """Writing the older setting alone would leave "ieee" where nothing was set."""
    module = Net()
    before = torch.backends.cuda.matmul.fp32_precision
    with restored(module):
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before
    with restored(module):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cudnn.allow_tf32


def test_a_model_made_in_inference_mode_is_restored() -> None:
    with torch.inference_mode():
        module = Net()
    with unchanged(module), restored(module), torch.inference_mode():
        train_and_run(module)
        for tensor in module.parameters():
            tensor.data = tensor.data.double()


def test_one_copy_of_the_tensors_is_held() -> None:
    def held() -> int:
        tensors = [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter)]
        memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(memory.values())

    module = nn.Sequential(nn.Linear(200, 200), nn.BatchNorm1d(200))
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    before = held()
    with restored(module):
        inside = held()
    assert size <= inside - before < 1.1 * size


# -- what a nasty model or evaluator changes

CHANGES: dict[str, Callable[[Net], object]] = {
    "a value": lambda net: net.stem[1].running_mean.add_(1),
    "the sign of a zero": lambda net: net.stem[1].running_mean.neg_(),
    "a bit of a NaN": lambda net: net.get_buffer("nan").view(torch.int32).add_(1),
    "a parameter by .data": lambda net: net.stem[0].weight.data.mul_(2),
    "a replaced buffer": lambda net: setattr(net.stem[1], "running_mean", torch.ones(4)),
    "an equal buffer in another object": lambda net: setattr(net.stem[1], "running_var", torch.ones(4)),
    "a replaced parameter": lambda net: setattr(net.stem[1], "weight", nn.Parameter(torch.ones(4))),
    "a removed buffer": lambda net: delattr(net.stem[1], "running_mean"),
    "a buffer that is None": lambda net: setattr(net.stem[1], "running_var", None),
    "a buffer of another dtype": lambda net: net.half(),
    "a tensor of another shape": lambda net: net.stem[1].running_mean.resize_(9),
    "a tensor of another layout": lambda net: net.to(memory_format=torch.channels_last),
    "an added buffer": lambda net: net.stem[1].register_buffer("more", torch.ones(1)),
    "a buffer that is not saved": lambda net: net._non_persistent_buffers_set.add("nan"),
    "a replaced submodule": lambda net: setattr(net.stem, "1", nn.BatchNorm2d(4)),
    "a removed submodule": lambda net: delattr(net, "head"),
    "an added submodule": lambda net: net.add_module("more", nn.Linear(2, 2)),
    "the order of submodules": lambda net: net._modules.update(stem=net._modules.pop("stem")),
    "a mode": lambda net: net.body[1].train(),
    "all modes": lambda net: net.eval(),
    "momentum": lambda net: setattr(net.stem[1], "momentum", None),
    "eps": lambda net: setattr(net.stem[1], "eps", 1e-2),
    "track_running_stats": lambda net: setattr(net.stem[1], "track_running_stats", False),
    "requires_grad on": lambda net: net.head[3].weight.requires_grad_(True),
    "requires_grad off": lambda net: net.requires_grad_(False),
    "a gradient": lambda net: net(images()).sum().backward(),
    "a gradient that was there": lambda net: net.head[1].weight.grad.zero_(),
    "a gradient set to None": lambda net: net.zero_grad(set_to_none=True),
    "a forward hook": lambda net: net.stem.register_forward_hook(print),
    "a forward pre-hook": lambda net: net.stem.register_forward_pre_hook(print, with_kwargs=True),
    "a backward hook": lambda net: net.stem.register_full_backward_hook(print),
    "a removed hook": lambda net: net._forward_hooks.clear(),
    "a hook for all modules": lambda _: nn.modules.module.register_module_forward_hook(print),
    "a plain attribute": lambda net: setattr(net, "anything", object()),
    "a plain tensor": lambda net: net.plain.add_(1),
    "a method of its own": lambda net: setattr(net, "forward", print),
    "a class": lambda net: setattr(net.stem[1], "__class__", nn.BatchNorm1d),
    "a module in a plain list": lambda net: net.unseen[0](torch.ones(3, 2)),
    "random": lambda _: random.random(),
    "numpy": lambda _: np.random.rand(),
    "torch": lambda _: torch.rand(1),
    "torch seeded": lambda _: torch.manual_seed(5),
    "cudnn": lambda _: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "cudnn off": lambda _: setattr(torch.backends.cudnn, "enabled", False),
    "cudnn deterministic": lambda _: setattr(torch.backends.cudnn, "deterministic", True),
    "TF32 of cudnn": lambda _: setattr(torch.backends.cudnn, "allow_tf32", False),
    "TF32 of matmul": lambda _: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "matmul precision": lambda _: torch.set_float32_matmul_precision("medium"),
    "deterministic algorithms": lambda _: torch.use_deterministic_algorithms(True, warn_only=True),
    "grad mode": lambda _: torch.set_grad_enabled(False),
    "default dtype": lambda _: torch.set_default_dtype(torch.float64),
    "threads": lambda _: torch.set_num_threads(torch.get_num_threads() + 1),
}
if hasattr(torch._C, "_get_fp32_precision_getter"):
    CHANGES["the newer setting of TF32"] = lambda _: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")


def nasty_net() -> Net:
    net = Net()
    net.register_buffer("nan", torch.tensor([float("nan")]))
    net.plain = torch.ones(2)
    net.unseen = [nn.BatchNorm1d(2)]
    net.head.register_forward_hook(lambda *_: None)
    net.register_forward_hook(lambda *_: None)
    net(images()).sum().backward()
    return net


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen_by_the_fingerprint_and_undone(change: str) -> None:
    net = nasty_net()
    before = fingerprint(net)
    with restored(net):
        assert fingerprint(net) == before
        CHANGES[change](net)
        assert fingerprint(net) != before
    assert fingerprint(net) == before


def test_all_changes_together_are_undone() -> None:
    net = nasty_net()
    last = ["a removed submodule", "a replaced submodule", "a method of its own", "a class", "a removed buffer"]
    with unchanged(net), restored(net):
        for change in sorted(CHANGES, key=last.__contains__):
            with contextlib.suppress(AttributeError, RuntimeError, TypeError):
                CHANGES[change](net)


def test_the_objects_are_the_same_and_not_only_the_values() -> None:
    net = Net()
    tensors = dict(net.state_dict(keep_vars=True))
    with restored(net):
        net.double()
        net.stem[1].running_mean = torch.ones(4)
        net.head[1].weight = nn.Parameter(torch.ones(8, 64))
    assert all(tensor is tensors[name] for name, tensor in net.state_dict(keep_vars=True).items())
    assert {tensor.dtype for tensor in net.parameters()} == {torch.float32}


def test_a_handle_still_removes_its_hook() -> None:
    net = Net()
    handle = net.register_forward_hook(print)
    with restored(net):
        net._forward_hooks.clear()
    assert len(net._forward_hooks) == 1
    handle.remove()
    assert not net._forward_hooks


# -- Ctrl-C


def test_ctrl_c_inside_is_undone_and_arrives() -> None:
    net = Net()
    with unchanged(net), pytest.raises(KeyboardInterrupt), restored(net):  # noqa: PT012
        train_and_run(net)
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 5)


PUTTING_BACK = {file.__file__ for file in (restoring, process, tensors, contextlib)}


def interrupt_at_call(number: int) -> Callable[[types.FrameType, str, object], None]:
    """A profile function that sends Ctrl-C at one of the Python calls that follow."""
    calls = 0

    def profile(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename in PUTTING_BACK:
            calls += 1
            if calls == number:
                sys.setprofile(None)
                os.kill(os.getpid(), signal.SIGINT)

    return profile


def interrupted_while_restoring(layer: nn.Module, number: int) -> bool:
    """Whether Ctrl-C at one of the calls while restoring arrived; False after the last of them."""
    try:
        with restored(layer):
            layer(torch.ones(2, 3).cumsum(0))
            layer.running_mean = torch.ones(3)
            sys.setprofile(interrupt_at_call(number))
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_ctrl_c_while_restoring_leaves_nothing_half_done() -> None:
    """Sent at each of the first calls, where it is not yet held back, then at some of the others."""
    layer = nn.BatchNorm1d(3)
    handler = signal.getsignal(signal.SIGINT)
    before = fingerprint(layer)
    number = 1
    while interrupted_while_restoring(layer, number):
        assert fingerprint(layer) == before, f"call {number}"
        assert signal.getsignal(signal.SIGINT) is handler
        number += 1 if number < 30 else 7
    assert number > 100


def test_other_threads_restore_too() -> None:
    net = Net()

    def work() -> None:
        with restored(net):
            train_and_run(net)

    with unchanged(net):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


# -- many kinds of models


class Stubborn(nn.Module):
    """Refuses to be switched, and hides its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.BatchNorm2d(3)
        self.switched = 0

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layer(inputs)
        return result

    def train(self, mode: bool = True) -> "Stubborn":
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and "training" in vars(self):
            raise AttributeError(name)
        super().__setattr__(name, value)


class Tied(nn.Module):
    """Two names for one weight, and one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        self.second = nn.Conv2d(3, 3, 1, bias=False)
        self.second.weight = self.first.weight
        self.norm = self.again = nn.BatchNorm2d(3)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.again(self.second(self.norm(self.first(inputs))))
        return result


def compiled() -> nn.Module:
    module = torch.compile(Net(), backend="eager")
    assert isinstance(module, nn.Module)
    return module


def exported() -> nn.Module:
    return torch.export.export(Net().eval(), (images(),)).module()


def exported_in_train_mode() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return torch.export.export(net, (images(),)).module()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "compiled": compiled,
    "DataParallel": lambda: nn.DataParallel(Net()),
    "tied": Tied,
    "channels_last": lambda: Net().to(memory_format=torch.channels_last),
    "a train() of its own": Stubborn,
    "SyncBatchNorm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Net()),
    "bfloat16": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).bfloat16(),
    "float16": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half(),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()),
    "exported": exported,
    "exported in train mode": exported_in_train_mode,
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)),
    "recurrent": lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(36, 5)),
    "a sparse buffer": lambda: with_buffer(torch.eye(3).to_sparse()),
    "a quantised buffer": lambda: with_buffer(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "a complex buffer": lambda: with_buffer(torch.ones(3, dtype=torch.complex128)),
    "a buffer made in inference mode": lambda: with_buffer(inference_tensor()),
    "a meta buffer": lambda: with_buffer(torch.ones(3, device="meta")),
    "a view as a buffer": lambda: with_buffer(torch.arange(8.0)[::2]),
    "an empty module": nn.Module,
}


def with_buffer(tensor: Tensor) -> nn.Module:
    module = nn.Sequential(nn.BatchNorm2d(3))
    module.register_buffer("extra", tensor)
    return module


def inference_tensor() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def change_extra(module: nn.Module) -> None:
    """Changes the buffer that the model has beside its layers, as each kind of tensor can be."""
    extra = dict(module.named_buffers()).get("extra")
    if extra is None or extra.is_meta:
        return
    if extra.is_quantized:
        extra.copy_(torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8))
        return
    with torch.inference_mode(extra.is_inference()):
        extra.mul_(2)


@pytest.mark.filterwarnings("ignore:.*(quantize_per_tensor|quantized|Sparse|sparse).*")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_models_of_every_kind_are_restored(name: str, fails: bool) -> None:
    module = MODELS[name]()
    dtype = next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), torch.float32)
    with unchanged(module), contextlib.suppress(ZeroDivisionError), restored(module):
        for layer in module.modules():
            vars(layer)["training"] = True
        change_extra(module)
        if name != "an empty module":
            module(images(dtype))
        if fails:
            raise ZeroDivisionError


def test_tied_parameters_stay_tied() -> None:
    module = Tied()
    with restored(module):
        module.second.weight = nn.Parameter(torch.zeros(3, 3, 1, 1))
        module.again = nn.BatchNorm2d(3)
        module.half()
    assert module.second.weight is module.first.weight
    assert module.again is module.norm
    assert module.first.weight.dtype == torch.float32


def test_views_of_one_memory_stay_so() -> None:
    module = nn.Module()
    module.register_buffer("whole", torch.arange(6.0))
    module.register_buffer("part", module.get_buffer("whole")[2:4])
    with restored(module):
        module.get_buffer("whole").mul_(3)
        module.double()
    assert module.get_buffer("part").tolist() == [2, 3]
    module.get_buffer("whole").zero_()
    assert module.get_buffer("part").tolist() == [0, 0]


def test_a_lazy_layer_is_lazy_again() -> None:
    module = nn.Sequential(nn.LazyBatchNorm2d())
    with restored(module):
        module(images())
        assert type(module[0]) is nn.BatchNorm2d
    assert type(module[0]) is nn.LazyBatchNorm2d
    assert type(module[0].weight) is nn.UninitializedParameter
    module(torch.ones(2, 7, 3, 3))
    assert module[0].running_mean.shape == (7,)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_a_script_module_is_restored(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module = torch.jit.script(net) if kind == "scripted" else torch.jit.trace(net, images())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with unchanged(module), restored(module):
        module.eval()
        module.train()
        module(images())
        module.eval()
        changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_an_exported_program_from_a_file_is_restored(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.export.save(torch.export.export(net, (images(),)), tmp_path / "net.pt2")
    module = torch.export.load(tmp_path / "net.pt2").module()
    with pytest.raises(NotImplementedError):
        module.eval()
    counter = dict(module.named_buffers())["1.num_batches_tracked"]
    with unchanged(module), restored(module):
        module(images())
        assert counter.item() == 1
    assert counter.item() == 0


def test_distributed_data_parallel_is_restored(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = nn.parallel.DistributedDataParallel(Net())
        with unchanged(module), restored(module):
            train_and_run(module)
        assert list(batchnorm_layers(module)) == ["stem.1", "body.1", "head.2"]
    finally:
        torch.distributed.destroy_process_group()
