"""`bncheck.guard` in code of the user's own: what it notices, what it lets pass, and what it says."""

import asyncio
import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from inline_snapshot import snapshot
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bncheck
from bncheck.evaluation.observing.pictures import picture


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.bn(self.conv(images))
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.BatchNorm2d(2)
        self.body = Block()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.body(self.stem(images))
        return result


def images() -> Tensor:
    return torch.linspace(-1, 3, 2 * 2 * 4 * 4).reshape(2, 2, 4, 4)


def drift(model: nn.Module, block: Callable[[], object], **options: object) -> bncheck.BatchNormDriftError | None:
    """What the guard raises for a block; None where it lets it pass."""
    try:
        with bncheck.guard(model, **options):  # type: ignore[arg-type]
            block()
    except bncheck.BatchNormDriftError as error:
        return error
    return None


def names(model: nn.Module, block: Callable[[], object], **options: object) -> tuple[str, ...]:
    error = drift(model, block, **options)
    return error.layers if error else ()


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# -- what it says


def test_the_error_names_the_layers_the_modes_the_distance_and_the_remedy() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    error = drift(model, lambda: [model(torch.tensor([[0.0, 10.0], [2.0, 10.0]])) for _ in range(3)])
    assert str(error) == snapshot("""\
the statistics of 1 BatchNorm layer changed inside the guarded block: 0
  0 (train mode): running_mean and running_var moved in 3 updates, the mean by up to 2.71 standard deviations
Call model.eval() before the block, on frozen parts too; allow=[...] lets layers move that are meant to.\
""")
    assert isinstance(error, bncheck.BncheckError)


def test_of_many_layers_the_first_are_described_and_all_are_held() -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(1) for _ in range(20)))
    error = drift(model, lambda: model(torch.rand(4, 1)))
    assert error is not None
    assert error.layers == tuple(str(index) for index in range(20))
    assert str(error).startswith(
        "the statistics of 20 BatchNorm layers changed inside the guarded block: 0, 1, 2 and 17 more\n"
    )
    assert "\n  7 (train mode): " in str(error)
    assert "\n  and 12 more\n" in str(error)


def test_the_modes_are_those_of_both_ends() -> None:
    model = Net().eval()

    def block() -> None:
        model.train()
        model(images())

    error = drift(model, block)
    assert error is not None
    assert error.details[0].startswith("stem (eval mode before, train mode after): running_mean and running_var moved")
    assert error.hint.startswith("The layers were in eval mode at the start: something inside called train()")


def test_a_far_variance_is_told_where_the_mean_stays() -> None:
    model = nn.BatchNorm1d(1)
    error = drift(model, lambda: model.running_var.fill_(4.0))
    assert error is not None
    assert error.details == (
        "(the module itself) (train mode): running_var moved, the standard deviation by up to a factor of 2",
    )


def test_channels_that_break_are_counted() -> None:
    model = nn.BatchNorm1d(2)
    error = drift(model, lambda: model(torch.tensor([[0.0, float("nan")], [2.0, 1.0]])))
    assert error is not None
    assert error.details[0].endswith(", and 1 channel became NaN or infinite")


def test_the_error_survives_a_process_border() -> None:
    error = drift(model := Net(), lambda: model(images()))
    again = pickle.loads(pickle.dumps(error))
    assert (str(error), error.layers) == (str(again), again.layers)  # type: ignore[union-attr]


# -- what moves


def test_eval_mode_passes() -> None:
    model = Net().eval()
    assert names(model, lambda: model(images())) == ()


def test_train_mode_is_noticed_without_gradients_too() -> None:
    model = Net().requires_grad_(False)

    def block() -> None:
        with torch.no_grad():
            model(images())

    assert names(model, block) == ("stem", "body.bn")


@pytest.mark.parametrize("where", ["inside", "around"])
def test_inference_mode_is_no_hiding_place(where: str) -> None:
    model = Net()

    def block() -> None:
        with torch.inference_mode():
            model(images())

    with torch.inference_mode(where == "around"):
        assert names(model, block) == ("stem", "body.bn")
        model.eval()
        assert names(model, block) == ()


def test_a_model_made_in_inference_mode_is_guarded() -> None:
    with torch.inference_mode():
        model = Net()
    assert names(model, model.stem.eval) == ()
    with torch.inference_mode():
        assert names(model, lambda: model(images())) == ("body.bn",)


def test_one_layer_in_train_mode_is_named_alone() -> None:
    model = Net().eval()
    model.body.bn.train()
    assert names(model, lambda: model(images())) == ("body.bn",)


def test_momentum_0_moves_the_counter_alone() -> None:
    model = nn.BatchNorm1d(1, momentum=0.0)
    error = drift(model, lambda: model(torch.rand(4, 1)))
    assert error is not None
    assert error.details == ("(the module itself) (train mode): num_batches_tracked alone went from 0 to 1",)


def test_layers_without_statistics_have_nothing_to_move() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False), nn.Linear(1, 1), nn.LayerNorm(1))
    assert names(model, lambda: model(torch.rand(4, 1))) == ()


def test_instance_norm_is_none_of_them() -> None:
    model = nn.InstanceNorm1d(1, track_running_stats=True)
    assert names(model, lambda: model(torch.rand(4, 1, 3))) == ()


def test_nan_that_stays_nan_has_not_changed() -> None:
    model = nn.BatchNorm1d(2).eval()
    model.running_mean.fill_(float("nan"))
    assert names(model, lambda: model(torch.rand(4, 2))) == ()
    assert names(model, model.running_mean.neg_) == ()  # other bits, no other value


def test_buffers_that_are_replaced_are_compared_by_value() -> None:
    model = nn.BatchNorm1d(2).eval()
    assert names(model, lambda: setattr(model, "running_mean", torch.zeros(2))) == ()
    assert names(model, lambda: model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)) == ()
    assert names(model, lambda: setattr(model, "running_mean", torch.ones(2))) == ("",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda bn: setattr(bn, "running_var", None), "running_var was removed"),
        (lambda bn: setattr(bn, "running_var", torch.ones(3)), "running_var has another shape"),
        (lambda bn: bn.reset_running_stats(), "running_mean moved, the mean by up to 0.5 standard deviations"),
        (lambda bn: bn.num_batches_tracked.zero_(), "num_batches_tracked alone went from 7 to 0"),
        (lambda bn: bn.half(), "running_mean moved, the mean by up to 0.0001221 standard deviations"),
    ],
    ids=["removed", "reshaped", "reset", "counter", "rounded"],
)
def test_every_change_of_a_buffer_is_told(change: Callable[[nn.Module], object], said: str) -> None:
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(0.5)
    if "0.0001221" in said:
        model.running_mean.add_(2**-12 / 2)
    if "from 7" in said:
        model.num_batches_tracked.fill_(7)
    error = drift(model, lambda: change(model))
    assert error is not None
    assert error.details == (f"(the module itself) (train mode): {said}",)


def test_statistics_that_are_made_are_told() -> None:
    model = nn.BatchNorm1d(2)
    model.running_var = None
    error = drift(model, lambda: setattr(model, "running_var", torch.ones(2)))
    assert error is not None
    assert error.details[0].endswith("running_var was added")


def test_layers_that_come_and_go_are_told() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).eval()

    def block() -> None:
        del model[1]
        model.append(nn.Identity()).append(nn.BatchNorm1d(2))

    error = drift(model, block)
    assert error is not None
    assert error.details == (
        "1 (eval mode before): the layer was removed",
        "2 (train mode after): the layer was added",
    )


def test_a_layer_that_becomes_a_sync_batchnorm_keeps_its_statistics() -> None:
    model = Net().eval()
    assert names(model, lambda: nn.SyncBatchNorm.convert_sync_batchnorm(model)) == ()


def test_layers_in_a_plain_list_are_guarded_and_the_hint_says_why_eval_fails() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Block()]
            self.heads = {"a": nn.BatchNorm2d(2)}

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.blocks[0](self.heads["a"](images))
            return result

    model = Listed().eval()
    assert names(model, lambda: None) == ()
    error = drift(model, lambda: model(images()))
    assert error is not None
    assert error.layers == ("blocks[0].bn", "heads['a']")
    assert "eval() does not reach blocks[0].bn, heads['a']" in error.hint
    assert names(model, lambda: model(images()), allow=["blocks[0].bn", "heads*"]) == ()


def test_a_lazy_layer_is_compared_from_its_first_forward_on() -> None:
    model = nn.LazyBatchNorm1d().eval()
    assert names(model, lambda: None) == ()
    assert names(model, lambda: model(torch.rand(4, 2))) == ()
    other = nn.LazyBatchNorm1d()
    error = drift(other, lambda: other(torch.rand(4, 2)))
    assert error is not None
    assert error.details == ("(the module itself) (train mode): its statistics were made, in 1 update",)


def test_a_model_on_the_meta_device_has_no_numbers_to_move() -> None:
    model = nn.BatchNorm1d(2, device="meta")
    assert names(model, lambda: model(torch.rand(4, 2, device="meta"))) == ()
    assert names(model, lambda: model.to_empty(device="cpu").reset_running_stats()) == ("",)


# -- wrappers


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": lambda model: torch.compile(model, backend="eager"),  # type: ignore[dict-item]
    "compile inside": lambda model: nn.Sequential(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
    "script": torch.jit.script,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("name", WRAPPED)
def test_names_have_no_prefix_of_a_wrapper(name: str) -> None:
    model = WRAPPED[name](Net())
    prefix = "0." if name == "compile inside" else ""
    expected = (f"{prefix}stem", f"{prefix}body.bn")
    assert names(model, lambda: model(images())) == expected
    assert names(model, lambda: model(images()), allow=f"{prefix}stem") == expected[1:]
    model.eval()
    assert names(model, lambda: model(images())) == ()


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_is_guarded() -> None:
    model = DistributedDataParallel(Net())
    assert names(model, lambda: model(images())) == ("stem", "body.bn")
    model.eval()
    assert names(model, lambda: model(images())) == ()


def test_the_model_inside_a_wrapper_is_guarded_too() -> None:
    model = Net()
    compiled = torch.compile(model, backend="eager")
    assert names(model, lambda: compiled(images())) == ("stem", "body.bn")


def test_a_shared_layer_is_named_once() -> None:
    shared = nn.BatchNorm1d(2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert names(model, lambda: model(torch.rand(4, 2))) == ("0",)


# -- the block


def test_allow_takes_globs_and_exact_names() -> None:
    model = Net()
    assert names(model, lambda: model(images()), allow=["body.*"]) == ("stem",)
    assert names(model, lambda: model(images()), allow="*") == ()
    assert names(model, lambda: model(images()), allow=["st"]) == ("stem", "body.bn")


def test_an_exception_goes_through_with_the_drift_as_a_note() -> None:
    model = Net()
    with pytest.raises(ValueError, match="of the block") as caught, bncheck.guard(model):  # noqa: PT012
        model(images())
        raise ValueError("of the block")
    if sys.version_info >= (3, 11):
        [note] = caught.value.__notes__
        assert note.startswith("the statistics of 2 BatchNorm layers changed")


def test_an_exception_without_drift_has_no_note() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, bncheck.guard(Net()):
        raise KeyboardInterrupt
    assert not hasattr(caught.value, "__notes__")


def test_an_exception_goes_through_where_nothing_can_be_compared() -> None:
    model = Net()
    with pytest.raises(ValueError, match="of the block"), bncheck.guard(model):  # noqa: PT012
        model.__dict__.clear()
        raise ValueError("of the block")


def test_blocks_nest_and_each_compares_with_its_own_start() -> None:
    model = nn.BatchNorm1d(1)
    watch = bncheck.guard(model)
    with pytest.raises(bncheck.BatchNormDriftError), watch:  # noqa: PT012
        model(torch.rand(4, 1))
        with watch:
            model.eval()(torch.rand(4, 1))


def test_check_compares_at_once() -> None:
    model = nn.BatchNorm1d(1)
    with pytest.raises(bncheck.BatchNormDriftError), bncheck.guard(model, allow=[]) as watch:  # noqa: PT012
        watch.check()
        model(torch.rand(4, 1))
        watch.check()
        pytest.fail("check() said nothing")
    with pytest.raises(bncheck.BncheckError, match=r"check\(\) is for the inside of a block"):
        watch.check()


def test_nothing_of_the_model_is_touched() -> None:
    model = Net().eval()
    before = {name: (tensor, tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()}
    hooks = len(model._forward_hooks), len(model._forward_pre_hooks)
    generator = torch.get_rng_state()
    with bncheck.guard(model):
        pass
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor and tensor._version == version for name, (tensor, version) in before.items())
    assert hooks == (len(model._forward_hooks), len(model._forward_pre_hooks))
    assert torch.equal(generator, torch.get_rng_state())


def test_only_statistics_are_copied() -> None:
    model = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000))
    held = picture(model).statistics
    copied = [tensor for each in held.values() for tensor in (each.mean, each.var, each.counter) if tensor is not None]
    assert sum(tensor.numel() for tensor in copied) == 2001


@pytest.mark.parametrize("thing", [None, {}, Net, "model.pt"], ids=["None", "state_dict", "class", "path"])
def test_what_is_no_module_is_refused(thing: object) -> None:
    with pytest.raises(bncheck.BncheckError, match=r"guard takes a torch.nn.Module, not"):
        bncheck.guard(thing)


# -- the decorator


def test_a_function_is_guarded_at_each_call() -> None:
    model = nn.BatchNorm1d(1)

    @bncheck.guard(model)
    def run(times: int, *, scale: float = 1.0) -> float:
        """Its own words."""
        for _ in range(times):
            model(torch.rand(4, 1))
        return times * scale

    assert (run.__name__, run.__doc__) == ("run", "Its own words.")
    with pytest.raises(bncheck.BatchNormDriftError):
        run(2)
    assert run(0, scale=3.0) == 0.0
    model.eval()
    assert run(2, scale=1.5) == 3.0


def test_a_function_may_call_itself() -> None:
    model = nn.BatchNorm1d(1)

    @bncheck.guard(model)
    def run(depth: int) -> None:
        if depth:
            run(depth - 1)
        elif model.training:
            model(torch.rand(4, 1))

    with pytest.raises(bncheck.BatchNormDriftError):
        run(3)
    model.eval()
    run(3)


def test_a_coroutine_is_guarded_until_it_returns() -> None:
    model = nn.BatchNorm1d(1)

    @bncheck.guard(model)
    async def run() -> int:
        await asyncio.sleep(0)
        model(torch.rand(4, 1))
        return 1

    with pytest.raises(bncheck.BatchNormDriftError):
        asyncio.run(run())
    model.eval()
    assert asyncio.run(run()) == 1


def test_a_generator_is_refused() -> None:
    def run() -> Iterator[int]:
        yield 1

    with pytest.raises(bncheck.BncheckError, match="run is a generator"):
        bncheck.guard(nn.BatchNorm1d(1))(run)


# -- importing


def test_importing_bncheck_imports_no_torch() -> None:
    code = "import sys, bncheck; bncheck.guard; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"


def test_the_name_stays_a_function_after_its_module_was_imported() -> None:
    """A module of the name `bncheck.guard` would take its place."""
    code = (
        "import bncheck, bncheck.integrations.guard, bncheck.integrations.pytest_plugin; print(callable(bncheck.guard))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
