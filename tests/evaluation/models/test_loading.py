"""A state_dict of any format becomes the model that was saved, or one sentence says why it does not."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bncheck.errors import BncheckError, ModelError, UsageError
from bncheck.evaluation.models.loading import load_runnable
from bncheck.evaluation.models.runnable import Runnable
from tests.evaluation.artefacts import CPU, GPU, images, outputs, rewritten, save_module

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


def test_what_lies_beside_a_prefix_is_not_loaded_over_what_lies_below_it(
    tmp_path: Path, net: Any, options: Any
) -> None:
    state = net().state_dict()
    torch.save({**{f"net.{key}": held for key, held in state.items()}, "bn.weight": torch.ones(4)}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="does not fit the model"):
        load_runnable(tmp_path / "m.pt", options())
