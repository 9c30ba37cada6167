"""Every artefact becomes a model that runs as the file says, and nothing of a file is run before it is trusted."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bncheck.errors import BncheckError, ModelError, UsageError
from bncheck.evaluation.models.calls import call, outputs_of, predictions_of, scores_of
from bncheck.evaluation.models.exported import is_arithmetic
from bncheck.evaluation.models.loading import load_runnable
from bncheck.evaluation.models.runnable import Runnable
from bncheck.evaluation.probes.abilities import LIMITS, UNDECIDED, Kind, Probe, inability, kind_of
from bncheck.options.model import ModelOptions

NET = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, say=""):
        super().__init__()
        if say:
            print(say)
        if say == "exit":
            sys.exit(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Net()

    def forward(self, x):
        return self.backbone(x)

class Versioned(Net):
    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *more):
        if metadata.get("version") != 2:
            raise ValueError("another version")
        super()._load_from_state_dict(state, prefix, metadata, *more)

class Tied(Net):
    def __init__(self):
        super().__init__()
        self.again = self.fc

class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(512, 512, 3)
        self.bn = nn.BatchNorm2d(512)

    def forward(self, x):
        return self.bn(self.conv(x))

def parallel():
    return nn.DataParallel(Net())

def compiled():
    return torch.compile(Net(), backend="eager")

def fails():
    raise ValueError("no such thing")

def number():
    return 3

instance = Net()
"""
GPU, CPU = b"X\x06\x00\x00\x00cuda:0", b"X\x03\x00\x00\x00cpu"


@pytest.fixture
def net(tmp_path: Path) -> Callable[..., Any]:
    """The classes of a file `net.py`, with trained statistics: `net("Net")`."""
    (tmp_path / "net.py").write_text(NET)
    defined: dict[str, Any] = {"__name__": "net"}
    exec(compile(NET, str(tmp_path / "net.py"), "exec"), defined)  # torch.jit.script reads the file

    def make(name: str = "Net") -> Any:
        torch.manual_seed(0)
        model = defined[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked.fill_(7)
        return model

    return make


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., ModelOptions]:
    def make(name: str | None = "Net", **more: Any) -> ModelOptions:
        return ModelOptions(model=f"{tmp_path / 'net.py'}:{name}" if name else None, **{"device": "cpu", **more})

    return make


@pytest.fixture
def importable_net(tmp_path: Path, net: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same classes as a module that pickles can name; forgotten before the file is loaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    import net as imported  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "net")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    return imported


def save_module(module: nn.Module, path: Path, imported: Any) -> Path:
    sys.modules["net"] = imported
    torch.save(module, path)
    del sys.modules["net"]
    return path


def images(samples: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def outputs(runnable: Runnable, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return call(runnable.module, runnable.place(images(dtype=dtype))).float()


def script(module: nn.Module, path: Path, *, how: str = "script") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module, images()) if how == "trace" else torch.jit.script(module)
        torch.jit.save(torch.jit.freeze(made) if how == "freeze" else made, path)
    return path


def export(module: nn.Module, path: Path, *, dynamic: bool = False) -> Path:
    shapes = {"x": {0: torch.export.Dim("batch")}} if dynamic else None
    torch.export.save(torch.export.export(module, (images(),), dynamic_shapes=shapes), path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes], *, new: Mapping[str, bytes] = {}) -> Path:
    """The zip file with the entries changed."""
    made = path.with_name(f"changed{path.suffix}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as copy:
        for name in old.namelist():
            copy.writestr(name, change(name, old.read(name)))
        root = old.namelist()[0].partition("/")[0]
        for name, data in new.items():
            copy.writestr(f"{root}/{name}", data)
    return made


def replacing(old: str, new: str) -> Callable[[str, bytes], bytes]:
    """Changes a text in the JSON of an archive; it must be there."""
    seen = []

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(".json"):
            return data
        seen.append(old.encode() in data)
        return data.replace(old.encode(), new.encode())

    return change


# -- state dicts

WRITERS: dict[str, Callable[[nn.Module, Path], Path]] = {}


def writer(function: Callable[[nn.Module, Path], Path]) -> Callable[[nn.Module, Path], Path]:
    WRITERS[function.__name__] = function
    return function


@writer
def torch_save(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt"


@writer
def legacy(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


@writer
def gpu(model: nn.Module, folder: Path) -> Path:
    path = torch_save(model, folder)
    assert any(CPU in zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist())
    return rewritten(path, lambda name, data: data.replace(CPU, GPU) if name.endswith(".pkl") else data)


@writer
def safetensors_file(model: nn.Module, folder: Path) -> Path:
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def shards(model: nn.Module, folder: Path, suffix: str, save: Callable[[Any, Path], None]) -> Path:
    state = model.state_dict()
    places = {key: f"shard{index % 2}.{suffix}" for index, key in enumerate(state)}
    inner = folder / "sharded"
    inner.mkdir()
    for file in set(places.values()):
        save({key: value for key, value in state.items() if places[key] == file}, inner / file)
    (inner / f"model.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return inner


@writer
def sharded_safetensors(model: nn.Module, folder: Path) -> Path:
    return shards(model, folder, "safetensors", save_file)


@writer
def sharded_torch_save(model: nn.Module, folder: Path) -> Path:
    return shards(model, folder, "bin", torch.save)


@writer
def distributed(model: nn.Module, folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": model.state_dict()}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


@writer
def data_parallel(model: nn.Module, folder: Path) -> Path:
    return torch_save(nn.DataParallel(model), folder)


@writer
def averaged(model: nn.Module, folder: Path) -> Path:
    return torch_save(torch.optim.swa_utils.AveragedModel(model), folder)


@writer
def compiled(model: nn.Module, folder: Path) -> Path:
    return torch_save(torch.compile(model, backend="eager"), folder)  # type: ignore[arg-type]


@writer
def below_a_prefix(model: nn.Module, folder: Path) -> Path:
    torch.save({"state_dict": {f"net.{key}": value for key, value in model.state_dict().items()}}, folder / "model.pt")
    return folder / "model.pt"


@writer
def without_counters(model: nn.Module, folder: Path) -> Path:
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("how", WRITERS)
def test_a_state_dict_in_any_form_gives_the_model_that_was_saved(
    tmp_path: Path, net: Any, options: Any, how: str
) -> None:
    model = net()
    runnable = load_runnable(WRITERS[how](model, tmp_path), options())
    own, loaded = model.state_dict(), runnable.module.state_dict()
    assert [key for key in own if not torch.equal(own[key], loaded[key])] == (
        ["bn.num_batches_tracked"] if how == "without_counters" else []
    )
    assert (runnable.artefact, runnable.modes_are_stored, runnable.can_hook) == ("state_dict", False, True)
    assert list(runnable.layers) == ["bn"]
    assert torch.equal(outputs(replace_mode(runnable)), model.eval()(images()))


def replace_mode(runnable: Runnable) -> Runnable:
    runnable.module.eval()
    return runnable


def test_a_model_is_as_its_constructor_leaves_it(tmp_path: Path, net: Any, options: Any) -> None:
    runnable = load_runnable(torch_save(net().eval(), tmp_path), options())
    assert {module.training for module in runnable.module.modules()} == {True}
    assert [(layer.name, layer.eps.value, layer.num_batches_tracked) for layer in runnable.described] == [
        ("bn", 1e-5, 7)
    ]


@pytest.mark.parametrize("name", ["parallel", "compiled", "instance", "Whole", "Tied", "Versioned"])
def test_the_callable_may_wrap_the_network_or_be_an_instance(tmp_path: Path, net: Any, options: Any, name: str) -> None:
    model = net()
    runnable = load_runnable(torch_save(net("Tied") if name == "Tied" else model, tmp_path), options(name))
    expected = (net("Tied") if name == "Tied" else model).eval()(images())
    assert torch.equal(outputs(replace_mode(runnable)), expected)


def test_a_tensor_that_is_stored_under_one_of_its_names_is_enough(tmp_path: Path, net: Any, options: Any) -> None:
    model = net("Tied")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("again.")}
    torch.save(state, tmp_path / "model.pt")
    runnable = load_runnable(tmp_path / "model.pt", options("Tied"))
    assert torch.equal(runnable.module.again.weight, model.fc.weight)  # type: ignore[union-attr]


def test_tensors_larger_than_those_of_layers_are_loaded(tmp_path: Path, net: Any, options: Any) -> None:
    model = net("Big")
    runnable = load_runnable(torch_save(model, tmp_path), options("Big"))
    assert torch.equal(runnable.module.conv.weight, model.conv.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_numbers_of_low_precision_are_those_that_were_stored(
    tmp_path: Path, net: Any, options: Any, dtype: torch.dtype
) -> None:
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in net().state_dict().items()}
    torch.save(stored, tmp_path / "model.pt")
    loaded = load_runnable(tmp_path / "model.pt", options()).module.state_dict()
    assert all(torch.equal(loaded[key], stored[key].to(loaded[key].dtype)) for key in stored)


def test_the_numbers_of_a_pickled_module_are_read_without_trust(
    tmp_path: Path, importable_net: Any, net: Any, options: Any
) -> None:
    path = save_module(importable_net.Net(), tmp_path / "model.pt", importable_net)
    runnable = load_runnable(path, options())
    assert runnable.artefact == "state_dict"
    assert any("only the numbers were read" in note for note in runnable.notes)


def test_the_group_is_the_one_that_is_named_or_the_only_one(tmp_path: Path, net: Any, options: Any) -> None:
    model, average = net(), net()
    average.fc.bias.data += 1
    torch.save(
        {"model": model.state_dict(), "ema": average.state_dict(), "scale": {"weight": torch.ones(1)}},
        tmp_path / "m.pt",
    )
    named = load_runnable(tmp_path / "m.pt", options(group="ema")).module
    assert torch.equal(named.fc.bias, average.fc.bias)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="more than one model: 'model', 'ema', 'scale'"):
        load_runnable(tmp_path / "m.pt", options())
    with pytest.raises(UsageError, match="--group other names nothing"):
        load_runnable(tmp_path / "m.pt", options(group="other"))
    torch.save({"model": model.state_dict(), "scale": {"weight": torch.ones(1)}}, tmp_path / "m.pt")
    assert load_runnable(tmp_path / "m.pt", options()).artefact == "state_dict"


def test_what_does_not_fit_is_named(tmp_path: Path, net: Any, options: Any) -> None:
    state = net().state_dict()
    path = tmp_path / "model.pt"

    def message(changed: Mapping[str, Any], **more: Any) -> str:
        torch.save(changed, path)
        with pytest.raises(ModelError) as error:
            load_runnable(path, options(**more))
        assert error.value.hint
        return error.value.message.removeprefix(f"{path} does not fit the model: ")

    assert message({key: value for key, value in state.items() if key != "fc.bias"}) == "it has no fc.bias"
    assert message({**state, "head.weight": torch.ones(3)}) == "the model has no head.weight"
    assert message({**state, "head.weight": torch.ones(2**21)}) == "the model has no head.weight"
    wrong = message(state, model_args=("classes=5",))
    assert wrong == "fc.weight is (3, 4) in the file and (5, 4) in the model and 1 more"
    assert "holds no numbers for bn.running_var" in message({**state, "bn.running_var": torch.empty(4, device="meta")})


@pytest.mark.parametrize(
    ("name", "more", "kind", "said"),
    [
        (None, {}, UsageError, "numbers without a network"),
        ("Nothing", {}, ModelError, "cannot be loaded: AttributeError"),
        ("fails", {}, ModelError, "fails: ValueError: no such thing"),
        ("number", {}, ModelError, "gives a int"),
        ("Net", {"model_args": ("say=exit",)}, ModelError, "fails: SystemExit: 3"),
        ("Net", {"model_args": ("say",)}, UsageError, "not of the form"),
        ("Net", {"device": "gpu"}, UsageError, "is no device"),
        ("Net", {"device": "cuda:99"}, UsageError, "not available"),
        ("Net", {"device": "meta"}, UsageError, "is no device"),
        ("Net", {"dtype": "int32"}, UsageError, "no floating dtype"),
        ("Net", {"dtype": "float8_e4m3fn"}, UsageError, "no floating dtype"),
        ("Net", {"dtype": "nn"}, UsageError, "no floating dtype"),
        ("Net", {"threads": 0}, UsageError, "must be at least 1"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(
    tmp_path: Path, net: Any, options: Any, name: str | None, more: dict[str, Any], kind: type[BncheckError], said: str
) -> None:
    path = torch_save(net(), tmp_path)
    with pytest.raises(kind, match=said):
        load_runnable(path, options(name, **more))


def test_what_foreign_code_prints_goes_to_stderr(
    tmp_path: Path, net: Any, options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    load_runnable(torch_save(net(), tmp_path), options(model_args=("say=hello",)))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_dtype_and_device_are_those_of_the_user(tmp_path: Path, net: Any, options: Any) -> None:
    runnable = load_runnable(torch_save(net(), tmp_path), options(dtype="float64"))
    assert (runnable.dtype, runnable.device) == (torch.float64, torch.device("cpu"))
    placed = runnable.place({"x": images(), "index": torch.tensor([1]), "many": [images()]})
    assert isinstance(placed, Mapping)
    assert [placed["x"].dtype, placed["index"].dtype, placed["many"][0].dtype] == [
        torch.float64,
        torch.int64,
        torch.float64,
    ]
    assert load_runnable(tmp_path / "model.pt", options(device="auto")).device.type in ("cpu", "cuda", "mps")


def test_threads_are_those_of_the_user(tmp_path: Path, net: Any, options: Any) -> None:
    before = torch.get_num_threads()
    try:
        load_runnable(torch_save(net(), tmp_path), options(threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_folder_with_several_checkpoints_is_refused(tmp_path: Path, net: Any, options: Any) -> None:
    torch_save(net(), tmp_path)
    safetensors_file(net(), tmp_path)
    with pytest.raises(UsageError, match="holds 2 checkpoints"):
        load_runnable(tmp_path, options())


def test_a_file_without_weights_is_refused(tmp_path: Path, net: Any, options: Any) -> None:
    torch.save({"step": 3}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="neither a state_dict nor a module"):
        load_runnable(tmp_path / "model.pt", options())


# -- pickled modules


def test_a_pickled_module_needs_trust(tmp_path: Path, importable_net: Any, options: Any) -> None:
    path = save_module(importable_net.Net(), tmp_path / "model.pt", importable_net)
    with pytest.raises(UsageError) as error:
        load_runnable(path, options(None, python_path=(tmp_path,)))
    assert "runs code that the file names (net.Net, __builtin__.set, " in error.value.message
    assert "--trust-pickle" in error.value.hint
    assert "net" not in sys.modules


def test_a_pickled_module_comes_in_its_mode(tmp_path: Path, importable_net: Any, options: Any) -> None:
    model = importable_net.Net().eval()
    model.bn.train()
    path = save_module(model, tmp_path / "model.pt", importable_net)
    runnable = load_runnable(path, options(None, trust_pickle=True, python_path=(tmp_path,)))
    modes = {name: module.training for name, module in runnable.module.named_modules()}
    assert modes == {"": False, "conv": False, "bn": True, "drop": False, "fc": False}
    assert (runnable.artefact, runnable.modes_are_stored) == ("module", True)
    assert torch.equal(outputs(runnable), model(images()))


def test_a_pickled_module_that_was_saved_on_a_gpu_is_loaded(tmp_path: Path, options: Any) -> None:
    torch.save(nn.BatchNorm2d(3), tmp_path / "model.pt")
    path = rewritten(tmp_path / "model.pt", lambda name, data: data.replace(CPU, GPU) if name.endswith("pkl") else data)
    runnable = load_runnable(path, options(None, trust_pickle=True))
    assert isinstance(runnable.module.running_mean, torch.Tensor)
    assert runnable.module.running_mean.device.type == "cpu"


def test_the_group_chooses_among_pickled_modules(tmp_path: Path, options: Any) -> None:
    inner = OrderedDict(best=nn.BatchNorm1d(2), last=[nn.BatchNorm1d(3)])
    torch.save({"models": inner, "state": nn.BatchNorm1d(5).state_dict()}, tmp_path / "model.pt")
    for group, channels in (("models.best", 2), ("models.last.0", 3)):
        runnable = load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True, group=group))
        assert runnable.module.num_features == channels


def test_data_parallel_is_taken_off(tmp_path: Path, options: Any) -> None:
    torch.save(nn.DataParallel(nn.BatchNorm2d(3)), tmp_path / "model.pt")
    runnable = load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True))
    assert isinstance(runnable.module, nn.BatchNorm2d)
    assert runnable.notes == ("DataParallel was taken off the model",)


SCRIPT_WITH_CLASS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(x)

if __name__ == "__main__":
    raise RuntimeError("it is run as a program")
"""


def test_classes_of_a_script_come_from_main(tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_it.py").write_text(SCRIPT_WITH_CLASS)
    main = sys.modules["__main__"]
    defined: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT_WITH_CLASS.partition("if __name__")[0], defined)
    with monkeypatch.context() as patch:
        patch.setattr(main, "Net", defined["Net"], raising=False)
        torch.save(defined["Net"](), tmp_path / "model.pt")
    with pytest.raises(ModelError, match="cannot be unpickled") as error:
        load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True))
    assert "--main" in error.value.hint
    monkeypatch.delitem(sys.modules, "train_it", raising=False)
    monkeypatch.setattr(main, "Net", "what was there", raising=False)
    before = dict(vars(main))
    runnable = load_runnable(tmp_path / "model.pt", options(None, trust_pickle=True, main=tmp_path / "train_it.py"))
    assert type(runnable.module).__name__ == "Net"
    assert vars(main) == before


def test_a_pickle_whose_class_is_gone_is_an_error_in_one_sentence(
    tmp_path: Path, save_vanishing: Any, options: Any
) -> None:
    path = save_vanishing("from torch import nn\nclass Gone(nn.BatchNorm2d): pass", "Gone(3)")
    with pytest.raises(
        ModelError, match="cannot be unpickled: ModuleNotFoundError: No module named 'vanished_package'"
    ):
        load_runnable(path, options(None, trust_pickle=True))


# -- graphs


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
def test_torchscript_runs_and_says_whether_its_mode_can_be_set(
    tmp_path: Path, net: Any, options: Any, how: str
) -> None:
    model = net().eval()
    runnable = load_runnable(script(model, tmp_path / "model.pt", how=how), options(None))
    assert (runnable.artefact, runnable.modes_are_stored, runnable.can_hook) == ("torchscript", True, False)
    assert runnable.can_set_mode == (how == "script")
    assert torch.allclose(outputs(runnable), model(images()), atol=1e-6)
    if how != "freeze":
        assert list(runnable.layers) == ["bn"]
        assert [(layer.name, layer.eps.value, layer.training.value) for layer in runnable.described] == [
            ("bn", 1e-5, False)
        ]


def test_a_traced_part_of_a_scripted_model_has_its_mode_as_a_constant(tmp_path: Path, options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.trace(nn.BatchNorm2d(3).eval(), images())
    runnable = load_runnable(script(nn.Sequential(part, nn.BatchNorm2d(3)), tmp_path / "model.pt"), options(None))
    assert not runnable.can_set_mode


def test_the_dtype_of_torchscript(tmp_path: Path, net: Any, options: Any) -> None:
    path = script(net().eval(), tmp_path / "model.pt")
    assert load_runnable(path, options(None, dtype="float64")).dtype == torch.float64
    with pytest.raises(UsageError, match="frozen graph"):
        load_runnable(script(net().eval(), path, how="freeze"), options(None, dtype="float64"))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_exported_program_runs_with_its_own_batch_size(
    tmp_path: Path, net: Any, options: Any, dynamic: bool, training: bool
) -> None:
    model = net().train(training)
    model.drop.p = 0.0
    runnable = load_runnable(export(model, tmp_path / "model.pt2", dynamic=dynamic), options(None))
    assert (runnable.artefact, runnable.can_set_mode, runnable.can_hook) == ("exported", False, False)
    assert runnable.fixed_batch_size == (None if dynamic else 4)
    assert runnable.program is not None
    assert torch.allclose(outputs(runnable), model(images()), atol=1e-6)
    assert runnable.module.get_buffer("bn.num_batches_tracked").item() == 7 + training
    assert list(runnable.layers) == ["bn"]
    assert [(layer.name, layer.training.value) for layer in runnable.described] == [("bn", training)]
    if not dynamic:
        with pytest.raises(ModelError, match=r"fails on a batch of \(2, 3, 8, 8\)"):
            call(runnable.module, images(2))


def test_an_exported_program_from_a_gpu_is_loaded(tmp_path: Path, net: Any, options: Any) -> None:
    model = net().eval()
    path = export(model, tmp_path / "model.pt2")
    change = replacing('{"type": "cpu", "index": null}', '{"type": "cuda", "index": 0}')
    runnable = load_runnable(rewritten(path, change), options(None))
    assert torch.equal(outputs(runnable), model(images()))
    assert {tensor.device.type for tensor in runnable.module.state_dict().values()} == {"cpu"}


def test_the_dtype_of_an_exported_program(tmp_path: Path, net: Any, options: Any) -> None:
    path = export(net().eval(), tmp_path / "model.pt2", dynamic=True)
    runnable = load_runnable(path, options(None, dtype="float64"))
    assert call(runnable.module, runnable.place(images())).dtype == torch.float64


def test_sample_inputs_of_an_exported_program_are_never_unpickled(tmp_path: Path, net: Any, options: Any) -> None:
    path = export(net().eval(), tmp_path / "model.pt2")
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()
    hostile = rewritten(path, lambda name, data: bomb if "sample_inputs" in name else data)
    with contextlib.suppress(Exception):  # it fails after it has run
        torch.export.load(hostile)
    assert (tmp_path / "ran").exists(), "torch itself runs it"
    (tmp_path / "ran").unlink()
    runnable = load_runnable(hostile, options(None))
    assert outputs(runnable).shape == (4, 3)
    assert not (tmp_path / "ran").exists()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Symbol('s", "exec(chr(49)) or Symbol('s"),
        ("Symbol('s", "().__class__ or Symbol('s"),
        ('"guards_code": []', '"guards_code": ["print(1)"]'),
        ('"torch.ops.aten.conv2d.default"', '"torch.os.system"'),
        ('"name": "x"', '"name": "x=exit()"'),
        ('"use_pickle": false', '"use_pickle": true'),
        ('"config": {}', '"config": {"a": {"path_name": "opaque_obj_0", "is_param": false, "use_pickle": false}}'),
    ],
    ids=["expression", "attribute", "guard", "operator", "name", "pickled weight", "pickled object"],
)
def test_an_exported_program_that_could_run_code_needs_trust(
    tmp_path: Path, net: Any, options: Any, old: str, new: str
) -> None:
    path = export(net().eval(), tmp_path / "model.pt2", dynamic=True)
    if old.startswith('"config"'):
        hostile = rewritten(path, replacing(old, new), new={"data/constants/opaque_obj_0": b"cposix\nsystem\n."})
    else:
        hostile = rewritten(path, replacing(old, new))
    assert hostile.read_bytes() != path.read_bytes()
    with pytest.raises(UsageError, match="could run code while it is loaded") as error:
        load_runnable(hostile, options(None))
    assert "--trust-pickle" in error.value.hint


def test_an_exported_program_of_any_network_is_loaded_without_trust(tmp_path: Path, options: Any) -> None:
    """Guards between inputs, functions of symbolic sizes, dicts and several inputs are what real exports hold."""

    class Rich(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor, rest: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            y = rest["y"]
            if x.shape[0] * 2 == y.shape[0] + 1:
                x = x + 1
            product = torch.einsum("bi,bj->bij", x, y[: x.shape[0]])
            return {"logits": self.bn(x), "product": product, "half": y[: y.shape[0] // 2]}

    auto = torch.export.Dim.AUTO
    inputs = (torch.randn(5, 3), {"y": torch.randn(12, 3)})
    shapes = {"x": {0: auto}, "rest": {"y": {0: auto}}}
    program = torch.export.export(Rich().eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    graph = zipfile.ZipFile(tmp_path / "model.pt2").read("model/models/model.json")
    assert b"size()[0]" in graph
    runnable = load_runnable(tmp_path / "model.pt2", options(None))
    assert predictions_of(call(runnable.module, runnable.place(inputs))).shape == (5,)  # type: ignore[union-attr]


def test_arithmetic_is_told_from_code() -> None:
    harmless = ["s0", "2*s77 + 1", "Symbol('s0', positive=True)", "Mod(s0, 2)", "L['x'].size()[0] <= 4", "Max(1, u0)"]
    harmful = [
        "__import__('os')",
        "exec('1')",
        "(lambda: 1)()",
        "x.y",
        "[i for i in s]",
        "chr(1)",
        "a\nb",
        "Max",
        "'('",
    ]
    assert [text for text in harmless if not is_arithmetic(text)] == []
    assert [text for text in harmful if is_arithmetic(text)] == ["Max"]


@pytest.mark.parametrize("how", ["TorchScript", "torch.export"])
def test_a_graph_takes_no_architecture(tmp_path: Path, net: Any, options: Any, how: str) -> None:
    model = net().eval()
    path = script(model, tmp_path / "m.pt") if how == "TorchScript" else export(model, tmp_path / "m.pt2")
    with pytest.raises(UsageError, match="brings its own code"):
        load_runnable(path, options())


def test_onnx_is_not_run(tmp_path: Path, net: Any, options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net().eval(), (images(),), tmp_path / "model.onnx", dynamo=False)
    with pytest.raises(ModelError, match="does not run"):
        load_runnable(tmp_path / "model.onnx", options(None))


# -- calls


class ModelOutput(OrderedDict[str, Any]):
    """Like the outputs of transformers: a dict by name whose values are attributes, too."""


@dataclass
class Fields:
    hidden: torch.Tensor
    scores: torch.Tensor


Named = namedtuple("Named", ["logits", "aux_logits"])
ONE, TWO, THREE = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0, 0.0]]), torch.zeros(1, 2, 2, 2)
COUNTS = torch.tensor([4])
OUTPUTS: dict[str, tuple[Any, list[torch.Tensor], list[int] | None]] = {
    "a tensor": (ONE, [ONE], [1]),
    "a tuple": ((THREE, COUNTS, TWO, ONE), [THREE, TWO, ONE], [0]),
    "a dict": ({"b": ONE, "a": [THREE, TWO]}, [THREE, TWO, ONE], [0]),
    "transformers": (ModelOutput(hidden=TWO, logits=ONE, loss=None), [TWO, ONE], [1]),
    "torchvision": (Named(TWO, ONE), [TWO, ONE], [0]),
    "a dataclass": (Fields(THREE, ONE), [THREE, ONE], [1]),
    "boxes": ([{"boxes": THREE, "labels": COUNTS}], [THREE], None),
    "one score": (torch.zeros(4, 1), [torch.zeros(4, 1)], None),
    "nothing": (None, [], None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_form_are_read(name: str) -> None:
    value, tensors, classes = OUTPUTS[name]
    assert [tensor.tolist() for tensor in outputs_of(value)] == [tensor.tolist() for tensor in tensors]
    predicted = predictions_of(value)
    assert (None if predicted is None else predicted.tolist()) == classes
    assert (scores_of(value) is None) == (classes is None)


def test_an_output_that_holds_itself_ends() -> None:
    value: list[Any] = [ONE]
    value.append(value)
    assert len(outputs_of(value)) > 1


class Sum(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        print("called")
        return one + other


def test_inputs_are_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    inputs: list[Any] = [(ONE, ONE), [ONE, ONE], {"other": ONE, "one": ONE}]
    assert [call(Sum(), given).tolist() for given in inputs] == [[[2.0, 4.0]]] * 3
    assert capsys.readouterr().out == ""
    with pytest.raises(ModelError, match=r"fails on a batch of \(1, 2\) and \(1, 2\) and \(1, 2\): TypeError"):
        call(Sum(), (ONE, ONE, ONE))
    with pytest.raises(ModelError, match=r"fails on a batch of \(1, 2\): TypeError: .* missing 1 required"):
        call(Sum(), ONE)


def test_interruption_is_not_an_error_of_the_model() -> None:
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(Interrupted(), ONE)


def test_what_lies_beside_a_prefix_is_not_loaded_over_what_lies_below_it(
    tmp_path: Path, net: Any, options: Any
) -> None:
    state = net().state_dict()
    torch.save({**{f"net.{key}": held for key, held in state.items()}, "bn.weight": torch.ones(4)}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="does not fit the model"):
        load_runnable(tmp_path / "m.pt", options())


# -- abilities


def test_the_table_says_what_each_artefact_lets_be_asked(tmp_path: Path, net: Any, options: Any) -> None:
    model = net().eval()
    runnables = {
        Kind.STATE_DICT: load_runnable(torch_save(model, tmp_path), options()),
        Kind.SCRIPTED: load_runnable(script(model, tmp_path / "s.pt"), options(None)),
        Kind.TRACED: load_runnable(script(model, tmp_path / "t.pt", how="trace"), options(None)),
        Kind.EXPORTED: load_runnable(export(model, tmp_path / "e.pt2"), options(None)),
    }
    assert [kind_of(runnable) for runnable in runnables.values()] == list(runnables)
    for kind, runnable in runnables.items():
        assert {probe: inability(runnable, probe) for probe in Probe} == {
            probe: UNDECIDED.get((kind, probe)) for probe in Probe
        }
    assert inability(runnables[Kind.STATE_DICT], Probe.MOVED, has_evaluator=True) is None
    assert not set(UNDECIDED) & set(LIMITS)
