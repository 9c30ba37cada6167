"""Operators are watched and held fixed, so that graphs answer the same questions as modules, or say why not."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.models.loading import load_runnable
from bncheck.evaluation.models.runnable import Runnable, live_runnable
from bncheck.evaluation.observing.modules import module_names
from bncheck.evaluation.observing.operators import (
    BatchNormCall,
    Interception,
    Record,
    layer_addresses,
)
from bncheck.evaluation.probes.abilities import LIMITS, UNDECIDED, Probe, kind_of
from bncheck.evaluation.probes.drift import drift
from bncheck.evaluation.probes.repeat import repeat
from bncheck.evaluation.process import seed_torch
from bncheck.evaluation.restoring import fingerprint
from bncheck.evaluation.statistics import batchnorm_layers
from bncheck.findings.report import Report
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose_evaluation
from bncheck.options.model import ModelOptions
from bncheck.rules import DRIFT_RULES, REPEAT_RULES
from bncheck.subjects.evaluation import Evaluation
from sample_checkpoints.network import DigitNet
from tests.evaluation.networks import BATCH, Centered, FunctionalDropout, Plain, data, images, trained

LAYERS = ("stem.1", "block.bn1", "block.bn2", "reduce.1", "top.1")
EXAMPLE = torch.zeros(BATCH, 1, 8, 8)


def calls_by_layer(record: Record) -> dict[str, list[BatchNormCall]]:
    """The batch_norm calls of a forward by layer, in the order of the first call."""
    calls: dict[str, list[BatchNormCall]] = {}
    for call in record.batch_norms:
        calls.setdefault(call.layer, []).append(call)
    return calls


def digits(*, training: bool = False) -> DigitNet:
    network = DigitNet()
    with torch.no_grad():
        for number in range(60):
            network(pictures(64, number))
    return network.train(training)


def pictures(samples: int, start: int = 100) -> Tensor:
    return torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(start))


def source(samples: int = 96, batch: int = BATCH) -> Data:
    held = pictures(samples)

    def start() -> Iterator[Batch]:
        for begin in range(0, samples, batch):
            part = held[begin : begin + batch]
            yield Batch(part, None, len(part))

    return Data(start, {}, samples)  # type: ignore[arg-type]


@contextlib.contextmanager
def old_torch() -> Iterator[None]:
    """TorchScript is deprecated, and exporting warns of its own doing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Form:
    """How a network is saved: `suffix` decides how it is loaded."""

    how: str
    training: bool = False

    def save(self, network: nn.Module, folder: Path) -> Path:
        path = folder / ("model.pt2" if self.how in ("static", "dynamic") else "model.pt")
        with old_torch():
            match self.how:
                case "script":
                    torch.jit.save(torch.jit.script(network), path)
                case "trace":
                    torch.jit.save(torch.jit.trace(network, EXAMPLE, check_trace=False), path)
                case "freeze":
                    torch.jit.save(torch.jit.freeze(torch.jit.script(network)), path)
                case "static":
                    torch.export.save(torch.export.export(network, (EXAMPLE,)), path)
                case "dynamic":
                    shapes = {"images": {0: torch.export.Dim("batch", min=2, max=1024)}}
                    torch.export.save(torch.export.export(network, (EXAMPLE,), dynamic_shapes=shapes), path)
        return path


Load = Callable[[Form], Runnable]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The network in a form, which is saved once: exporting takes seconds."""

    @functools.cache
    def saved(form: Form) -> Path:
        torch.manual_seed(0)
        return form.save(digits(training=form.training), tmp_path_factory.mktemp(form.how))

    return lambda form: load_runnable(saved(form), ModelOptions(device="cpu"))


def judged(evaluation: Evaluation) -> Report:
    rules = DRIFT_RULES if evaluation.repeat is None else REPEAT_RULES
    return diagnose_evaluation(evaluation, Severity.ERROR, rules)


def found(evaluation: Evaluation) -> list[tuple[str, str, str | None]]:
    return [(f.rule, f.severity.value, f.layer) for f in judged(evaluation).findings]


SOUND = [Form("script"), Form("trace"), Form("static"), Form("dynamic")]
BAKED = [Form("trace", True), Form("static", True), Form("dynamic", True)]


def name(form: Form) -> str:
    return f"{form.how}{' in train mode' * form.training}"


@pytest.mark.parametrize("form", SOUND, ids=name)
def test_a_sound_graph_is_found_sound(form: Form, load: Load) -> None:
    runnable = load(form)
    before = fingerprint(runnable.module)
    one, other = drift(runnable, source()), repeat(runnable, source())
    assert (found(one), found(other)) == ([], [])
    assert (judged(one).undecided, judged(other).undecided) == ((), ())
    assert not any(layer.training for layer in one.layers)
    assert other.repeat is not None
    assert other.repeat.company_dtype == "float64"
    assert fingerprint(runnable.module) == before


@pytest.mark.parametrize("form", SOUND, ids=name)
def test_the_inputs_of_the_layers_of_a_graph_are_those_of_the_module(form: Form, load: Load) -> None:
    torch.manual_seed(0)
    expected = {layer.layer.name: layer.fit for layer in drift(live_runnable(digits()), source()).layers}
    evaluation = drift(load(form), source())
    assert [layer.layer.name for layer in evaluation.layers] == list(LAYERS)
    for layer in evaluation.layers:
        one, fit = expected[layer.layer.name], layer.fit
        assert one is not None
        assert fit is not None
        np.testing.assert_allclose(fit.population_mean, one.population_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(fit.population_variance, one.population_variance, rtol=1e-5)
        np.testing.assert_allclose(fit.within_batch_variance, one.within_batch_variance, rtol=1e-5)
        np.testing.assert_allclose(fit.mean_noise, one.mean_noise, rtol=1e-5)


def test_a_scripted_model_tells_what_train_mode_costs_as_the_module_does(load: Load) -> None:
    torch.manual_seed(0)
    expected, scripted = (drift(one, source()) for one in (live_runnable(digits()), load(Form("script"))))
    assert scripted.train_mode is not None
    assert expected.train_mode is not None
    assert scripted.train_mode.predictions_changed == expected.train_mode.predictions_changed
    assert scripted.train_mode_by_batches == expected.train_mode_by_batches
    for one, other in zip(expected.layers, scripted.layers, strict=True):
        assert one.train_mode is not None
        assert other.train_mode is not None
        np.testing.assert_allclose(other.train_mode.mean, one.train_mode.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(other.train_mode.variance, one.train_mode.variance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", [*BAKED, Form("script", True)], ids=name)
def test_a_graph_in_train_mode_is_found(form: Form, load: Load) -> None:
    runnable = load(form)
    before = fingerprint(runnable.module)
    evaluation = drift(runnable, source())
    assert found(evaluation) == [("changed-in-evaluation", "error", layer) for layer in LAYERS]
    assert [layer.training for layer in evaluation.layers] == [True] * 5
    assert [layer.updates for layer in evaluation.layers] == [12] * 5
    [cause] = judged(repeat(runnable, source())).findings
    assert (cause.rule, cause.measured["cause"]) == ("depends-on-batch", "batchnorm")
    assert set(cause.measured["modules"]) == set(LAYERS)  # type: ignore[call-overload]
    assert fingerprint(runnable.module) == before


@pytest.mark.parametrize("form", BAKED, ids=name)
def test_what_a_graph_in_train_mode_cannot_tell_is_left_open_with_the_reason(form: Form, load: Load) -> None:
    evaluation = drift(load(form), source())
    [undecided] = judged(evaluation).undecided
    assert undecided.rule == "statistics-do-not-fit-data"
    assert undecided.reason.startswith("the graph runs in train mode")
    assert evaluation.unable[Probe.TRAIN_MODE.value].startswith("the mode is a constant of the graph")
    assert all(layer.fit is None and layer.train_mode is None for layer in evaluation.layers)


@pytest.mark.parametrize("form", SOUND, ids=name)
def test_the_table_of_abilities_is_what_the_probes_do(form: Form, load: Load) -> None:
    runnable = load(form)
    kind = kind_of(runnable)
    one, other = drift(runnable, source()), repeat(runnable, source())
    answered = {
        Probe.MOVED: all(layer.moved is not None for layer in one.layers),
        Probe.TRAIN_MODE: one.train_mode is not None,
        Probe.FIT: all(layer.fit is not None for layer in one.layers),
        Probe.REPEAT: other.repeat is not None and other.repeat.same_batches_max_difference is not None,
        Probe.COMPANY: other.repeat is not None and other.repeat.other_company_max_difference is not None,
    }
    assert {probe for probe, has in answered.items() if not has} == {
        probe for asked, probe in UNDECIDED if asked is kind
    }
    assert {probe.value: UNDECIDED[kind, probe] for probe, has in answered.items() if not has} == one.unable
    assert all(answered[probe] for asked, probe in LIMITS if asked is kind)


def test_a_graph_without_batchnorm_has_nothing_to_judge(load: Load) -> None:
    runnable = load(Form("freeze"))
    assert drift(runnable, source()).layers == ()
    assert judged(repeat(runnable, source())).verdict.value == "undecided"


def test_the_last_smaller_batch_of_a_graph_with_one_batch_size_is_left_out(load: Load) -> None:
    runnable = load(Form("static"))
    one, other = drift(runnable, source(69)), repeat(runnable, source(69))
    for evaluation in (one, other):
        assert (evaluation.samples, evaluation.batches) == (64, 8)
        assert "left out at the end: 5 samples, since the graph takes batches of 8 only" in evaluation.notes
    assert found(one) == found(other) == []


# -- other modules and outputs


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class ModelOutput:
    """As transformers has them, in short."""

    logits: Tensor
    loss: Tensor | None = None


class Returning(nn.Module):
    """The scores of a network in another form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.network, self.form = trained("plain"), form

    def forward(self, x: Tensor) -> Any:
        scores = self.network(x)
        match self.form:
            case "dict":
                return {"logits": scores, "features": x}
            case "tuple":
                return scores, x
            case "named tuple":
                return Output(scores, x)
            case "dataclass":
                return ModelOutput(scores)
            case "detections":
                return [
                    {"boxes": scores[i : i + 1].repeat(1 + i % 3, 1), "labels": torch.ones(1 + i % 3)}
                    for i in range(len(x))
                ]
        return scores


FORMS = ("dict", "tuple", "named tuple", "dataclass")


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_output_does_not_matter(form: str) -> None:
    large = data(images(samples=96))
    plain, other = (live_runnable(network.eval()) for network in (Returning("tensor"), Returning(form)))
    one, two = drift(plain, large), drift(other, large)
    assert found(two) == []
    assert (one.train_mode, one.fit) == (two.train_mode, two.fit) or form in ("dict", "tuple", "named tuple")
    assert one.train_mode is not None
    assert two.train_mode is not None
    assert one.train_mode.predictions_changed == two.train_mode.predictions_changed
    assert found(repeat(other, large)) == []


def test_outputs_without_a_row_for_each_sample_leave_the_company_open() -> None:
    runnable = live_runnable(Returning("detections").eval())
    evaluation = repeat(runnable, data())
    assert found(evaluation) == []
    assert [(open_.rule, open_.reason) for open_ in judged(evaluation).undecided] == [
        ("depends-on-batch", "no output of the model has a row for each sample")
    ]
    assert found(drift(runnable, data(images(samples=96)))) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_run_on_the_cpu(dtype: torch.dtype) -> None:
    network = trained("residual").to(dtype)
    held = data(images(samples=96))
    one, other = drift(live_runnable(network), held), repeat(live_runnable(network), held)
    assert (found(one), found(other)) == ([], [])
    assert other.repeat is not None
    assert other.repeat.company_dtype == "float64"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["compiled", "channels_last", "sync", "script inside"])
def test_wrapped_and_converted_modules_answer_like_plain_ones(kind: str, training: bool) -> None:
    network = trained("plain")
    match kind:
        case "compiled":
            other: nn.Module = torch.compile(copy.deepcopy(network), backend="eager")  # type: ignore[assignment]
        case "channels_last":
            other = copy.deepcopy(network).to(memory_format=torch.channels_last)
        case "sync":
            other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
        case _:
            with old_torch():
                inner = torch.jit.script(copy.deepcopy(network))
            other = nn.Sequential(inner)
    runnables = [live_runnable(module.train(training)) for module in (network, other)]
    if kind == "script inside":
        runnables[1] = replace(runnables[1], can_hook=False)
        runnables[1] = replace(
            runnables[1],
            described=tuple(replace(layer, name=f"0.{layer.name}") for layer in runnables[0].described),
        )
    held = data(images(samples=96))
    one, two = (drift(runnable, held) for runnable in runnables)
    prefix = "0." if kind == "script inside" else ""
    assert found(two) == [(rule, severity, f"{prefix}{layer}") for rule, severity, layer in found(one)]
    assert one.train_mode is not None
    assert two.train_mode is not None
    assert two.train_mode.predictions_changed == one.train_mode.predictions_changed
    for layer, same in zip(one.layers, two.layers, strict=True):
        assert same.fit is not None
        assert layer.fit is not None
        np.testing.assert_allclose(same.fit.population_mean, layer.fit.population_mean, rtol=1e-5, atol=1e-6)
    assert [f[:2] for f in found(repeat(runnables[1], held))] == [f[:2] for f in found(repeat(runnables[0], held))]


# -- the operators themselves


def watch(network: nn.Module, inputs: Tensor, **options: Any) -> tuple[Tensor, Interception]:
    mode = Interception(layer_addresses(batchnorm_layers(network)), len(inputs), **options)
    with torch.no_grad(), mode:
        return network(inputs), mode


def test_watching_changes_nothing() -> None:
    network = trained("plain")
    with torch.no_grad():
        expected = network(images())
    assert torch.equal(watch(network, images())[0], expected)


def test_each_batchnorm_is_met_by_name_with_what_it_does() -> None:
    network = trained("residual")
    network.get_submodule("block.1").train()
    calls = calls_by_layer(watch(network, images())[1].record)
    assert {layer: (met[0].by_batch, met[0].updates) for layer, met in calls.items()} == {
        "stem.1": (False, False),
        "block.1": (True, True),
        "block.4": (False, False),
    }


def test_a_layer_that_is_called_twice_is_met_twice() -> None:
    network = trained("plain")
    network.bn2 = network.bn1
    assert {layer: len(met) for layer, met in calls_by_layer(watch(network, images())[1].record).items()} == {"bn1": 2}


class Standardised(nn.Conv2d):
    """timm's StdConv2d: batch_norm in train mode, of weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(weight, None, None, training=True, momentum=0.0)
        return nn.functional.conv2d(x, weight.reshape_as(self.weight), None, padding=1)


@pytest.mark.parametrize("module", [Standardised(8, 8, 3), nn.InstanceNorm2d(8), nn.GroupNorm(2, 8)], ids=repr)
def test_what_normalises_no_batch_is_not_taken_for_it(module: nn.Module) -> None:
    network = trained("plain")
    network.first = module.eval()
    record = watch(network, images())[1].record
    assert not any(call.by_batch for call in record.batch_norms)
    assert found(repeat(live_runnable(network), data())) == []


@pytest.mark.parametrize("batch", [BATCH, 12])
def test_statistics_of_one_batch_can_be_given_to_another(batch: int) -> None:
    network = trained("plain").train()
    first, mode = watch(network, images(1, batch))
    again, _ = watch(network, images(1, batch), statistics=mode.record.statistics)
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-5)
    half, _ = watch(network, images(1, batch)[: batch // 2], statistics=mode.record.statistics)
    torch.testing.assert_close(half, first[: batch // 2], rtol=1e-4, atol=1e-5)


def test_random_operators_are_met_in_the_module_that_runs_them() -> None:
    network = trained("plain", FunctionalDropout())
    with module_names(network) as names:
        record = watch(network, images(), inside=names)[1].record
    assert {(call.module, call.own_generator) for call in record.random} == {("first", False)}


def test_noise_can_be_repeated_for_each_sample_in_any_company() -> None:
    network = trained("plain", FunctionalDropout())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    whole, _ = watch(network, images(), repeated_noise=True)
    part, _ = watch(network, images()[:5], repeated_noise=True)
    torch.testing.assert_close(part, whole[:5], rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_is_that_of_torch() -> None:
    seed_torch(7)
    first = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), first)


def test_coupling_without_batchnorm_is_none_of_the_operators() -> None:
    record = watch(Plain(Centered()).eval(), images())[1].record
    assert not any(call.by_batch for call in record.batch_norms)
