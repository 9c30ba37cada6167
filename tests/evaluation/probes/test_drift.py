"""The numbers of drift are those of a brute-force computation, and the model comes back as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bncheck.errors import ModelError
from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.models.runnable import Runnable, live_runnable
from bncheck.evaluation.probes.drift import FOLLOWED_SAMPLES, drift
from bncheck.evaluation.probes.repeat import repeat
from bncheck.evaluation.restoring import fingerprint
from bncheck.evaluation.statistics import batchnorm_layers
from bncheck.findings.measurements import as_json
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose_evaluation
from bncheck.judgement.numbers import measurements_of
from bncheck.rules import DRIFT_RULES
from bncheck.subjects.evaluation import Evaluation
from tests.evaluation.networks import BATCH, CLASSES, NETWORKS, SAMPLES, Centered, augmented, data, images, trained

LABELS = torch.randint(0, CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def without_modes(network: nn.Module) -> Runnable:
    """As a state_dict in a model that was just built."""
    return replace(live_runnable(network), modes_are_stored=False, artefact="state_dict")


def norms(network: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


def polluted(kind: str = "plain") -> nn.Module:
    """A network whose statistics are somewhat off, so that others change its predictions."""
    network = trained(kind).train()
    with torch.no_grad():
        for number in range(4):
            network(images(number) * 2 + 1)
        network.head.bias -= scores(network, data()).mean(0)  # type: ignore[operator,union-attr] # no class dominates
    return network.eval()


def first(outputs: Any) -> Tensor:
    """The scores among the outputs of the networks."""
    if isinstance(outputs, dict):
        outputs = outputs["logits"]
    return outputs[0] if isinstance(outputs, tuple) else outputs


def scores(network: nn.Module, source: Data) -> Tensor:
    """What the network gives in eval mode, batch by batch."""
    with torch.no_grad():
        return torch.cat([first(network.eval()(batch.inputs)) for batch in source])


def after_train_mode(network: nn.Module, source: Data, batches: int | None = None) -> nn.Module:
    """A copy that ran the data, or the first batches of it, in train mode."""
    other = copy.deepcopy(network).train()
    with torch.no_grad():
        for number, batch in enumerate(source):
            if batches is None or number < batches:
                other(batch.inputs)
    return other.eval()


def recalibrated(network: nn.Module, source: Data) -> nn.Module:
    """A copy with the average statistics of batches of equal size, as torch.optim.swa_utils.update_bn makes them."""
    other = copy.deepcopy(network)
    for layer in norms(other):
        layer.reset_running_stats()
        layer.momentum = None
    return after_train_mode(other, source)


def inputs_of(network: nn.Module, source: Data) -> dict[str, list[Tensor]]:
    """What enters each layer in eval mode."""
    seen: dict[str, list[Tensor]] = {name: [] for name in batchnorm_layers(network)}
    other = copy.deepcopy(network).eval()
    for name, layer in batchnorm_layers(other).items():
        layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach()))
    scores(other, source)
    return seen


# -- moved in evaluation


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", NETWORKS)
def test_how_far_the_statistics_moved_is_measured_in_deviations_of_the_layer(kind: str, momentum: float | None) -> None:
    network = polluted(kind).train()
    for layer in norms(network):
        layer.momentum = momentum
    evaluation = drift(live_runnable(network), data())
    moved = batchnorm_layers(after_train_mode(network, data()))
    for found in evaluation.layers:
        own, other = batchnorm_layers(network)[found.layer.name], moved[found.layer.name]
        mean, var = own.running_mean.double(), own.running_var.double()
        apart = (other.running_mean.double() - mean).abs() / (var + own.eps).sqrt()
        ratio = ((other.running_var.double() + own.eps) / (var + own.eps)).log().abs() / 2
        assert found.as_shipped is not None
        np.testing.assert_allclose(found.as_shipped.mean, apart.numpy(), rtol=1e-6)
        np.testing.assert_allclose(found.as_shipped.variance, ratio.numpy(), rtol=1e-5, atol=1e-9)
        assert (found.moved, found.updates, found.called, found.training) == (True, 5, 5, True)


def test_a_layer_in_train_mode_among_others_is_told_from_them() -> None:
    network = trained("residual")
    network.get_submodule("block.1").train()
    evaluation = drift(live_runnable(network), data())
    assert {found.layer.name: (found.moved, found.updates) for found in evaluation.layers} == {
        "stem.1": (False, 0),
        "block.1": (True, 5),
        "block.4": (False, 0),
    }
    report = diagnose_evaluation(evaluation, Severity.ERROR, DRIFT_RULES)
    assert [(f.rule, f.layer) for f in report.findings] == [("changed-in-evaluation", "block.1")]


def test_with_momentum_0_only_the_counter_moves() -> None:
    network = trained("plain")
    network.bn1.momentum = 0.0  # type: ignore[union-attr,assignment]
    network.bn1.train()  # type: ignore[union-attr]
    evaluation = drift(live_runnable(network), data())
    [found] = diagnose_evaluation(evaluation, Severity.ERROR, DRIFT_RULES).findings
    assert (found.severity, found.layer, found.measured["updates"]) == (Severity.NOTE, "bn1", 5)


def test_channels_that_become_nan_are_counted() -> None:
    network = trained("plain").train()
    bad = images()
    bad[3, 0, 0, 0] = float("nan")
    evaluation = drift(live_runnable(network), data(bad))
    assert [(found.broken, found.moved) for found in evaluation.layers] == [(8, True), (8, True)]
    assert evaluation.data["non_finite"] == 1
    assert "NaN or infinity in the inputs of 1 sample" in evaluation.notes


def test_statistics_that_are_nan_before_and_after_have_not_moved() -> None:
    network = trained("plain")
    network.bn1.running_mean[2] = float("nan")  # type: ignore[union-attr,index]
    evaluation = drift(live_runnable(network), data())
    assert [found.moved for found in evaluation.layers] == [False, False]


# -- what train mode would cost


@pytest.mark.parametrize("kind", NETWORKS)
def test_predictions_and_accuracies_are_those_of_brute_force(kind: str) -> None:
    network, source = polluted(kind), data(labels=LABELS)
    evaluation = drift(live_runnable(network), source)
    before, after = (scores(one, source).argmax(1) for one in (network, after_train_mode(network, source)))
    fitting = scores(recalibrated(network, source), source).argmax(1)
    assert evaluation.train_mode is not None
    assert evaluation.fit is not None
    changed = float((before != after).double().mean())
    assert changed > 0
    assert evaluation.train_mode.samples == SAMPLES
    assert evaluation.train_mode.predictions_changed == changed
    assert evaluation.train_mode.accuracy_before == float((before == LABELS).double().mean())
    assert evaluation.train_mode.accuracy_after == float((after == LABELS).double().mean())
    assert evaluation.fit.predictions_changed == float((before != fitting).double().mean())
    assert evaluation.fit.accuracy_after == float((fitting == LABELS).double().mean())
    assert evaluation.train_mode_by_batches == {
        batches: float((before != scores(after_train_mode(network, source, batches), source).argmax(1)).double().mean())
        for batches in (1, 2, 4)
    }


def test_the_change_of_an_output_that_is_no_class_is_relative_to_its_size() -> None:
    network = polluted()
    network.head = nn.Linear(8, 1)
    evaluation = drift(live_runnable(network), data(labels=LABELS))
    before, after = scores(network, data()), scores(after_train_mode(network, data()), data())
    assert evaluation.train_mode is not None
    assert (evaluation.train_mode.predictions_changed, evaluation.train_mode.accuracy_before) == (None, None)
    assert evaluation.train_mode.output_change == pytest.approx(
        float((after - before).norm() / before.norm()), rel=1e-5
    )
    assert evaluation.train_mode_by_batches == {}


@pytest.mark.parametrize(
    "labels",
    [LABELS + CLASSES, LABELS[:, None].repeat(1, 3), None],
    ids=["of more classes than the model has", "several for each sample", "none"],
)
def test_labels_that_do_not_fit_give_no_accuracy(labels: Tensor | None) -> None:
    found = drift(live_runnable(polluted()), data(labels=labels)).train_mode
    assert found is not None
    assert (found.accuracy_before, found.accuracy_after) == (None, None)
    assert found.predictions_changed is not None
    coupled = repeat(live_runnable(trained("plain", Centered())), data(labels=labels)).repeat
    assert coupled is not None
    assert coupled.accuracy_by_batch_size == {}


def test_predictions_are_followed_on_no_more_than_a_fixed_number_of_samples() -> None:
    large = images(samples=320)
    network = polluted()
    evaluation = drift(live_runnable(network), data(large, batch=60))
    part = data(large[: FOLLOWED_SAMPLES // 60 * 60], batch=60)
    after = after_train_mode(network, data(large, batch=60), 2)
    changed = (scores(network, part).argmax(1) != scores(after, part).argmax(1)).double().mean()
    assert evaluation.train_mode_by_batches[2] == float(changed)
    assert list(evaluation.train_mode_by_batches) == [1, 2, 4]


def test_dropout_has_no_part_in_the_predictions() -> None:
    network = polluted()
    network.second = nn.Dropout(0.5)
    one, other = (drift(live_runnable(network.eval()), data(labels=LABELS)) for _ in range(2))
    assert one.train_mode is not None
    assert one.train_mode.accuracy_before == float((scores(network, data()).argmax(1) == LABELS).double().mean())
    assert other.train_mode is not None
    assert one.train_mode.accuracy_before == other.train_mode.accuracy_before


# -- fit to the data


@pytest.mark.parametrize("batch", [BATCH, 7])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_moments_are_those_of_the_inputs_in_eval_mode(kind: str, batch: int) -> None:
    network = polluted(kind)
    evaluation = drift(live_runnable(network), data(batch=batch))
    captured = inputs_of(network, data(batch=batch))
    assert [found.layer.name for found in evaluation.layers] == list(captured)
    for found in evaluation.layers:
        parts = [values.double().movedim(1, 0).flatten(1).numpy() for values in captured[found.layer.name]]
        together = np.concatenate(parts, axis=1)
        assert found.fit is not None
        np.testing.assert_allclose(found.fit.population_mean, together.mean(1), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found.fit.population_variance, together.var(1), rtol=1e-6)
        within = np.mean([part.var(1, ddof=1) for part in parts], axis=0)
        np.testing.assert_allclose(found.fit.within_batch_variance, within, rtol=1e-6)
        own = batchnorm_layers(network)[found.layer.name]
        apart = np.abs(together.mean(1) - own.running_mean.numpy()) / np.sqrt(own.running_var.numpy() + own.eps)
        np.testing.assert_allclose(found.fit.shift.mean, apart, rtol=1e-4, atol=1e-6)


def test_a_sound_network_fits_and_one_that_saw_other_data_does_not() -> None:
    source = data(images(samples=96))
    for network, expected in ((trained("plain"), set()), (polluted(), {"statistics-do-not-fit-data"})):
        evaluation = drift(live_runnable(network), source)
        report = diagnose_evaluation(evaluation, Severity.ERROR, DRIFT_RULES)
        assert {finding.rule for finding in report.findings} == expected
        assert not report.undecided


# -- what else is told


def test_passes_samples_and_batches_are_counted() -> None:
    def passes(runnable: Runnable, evaluator: Any = None) -> tuple[int, int, int, int, int]:
        started = 0

        def start() -> Iterator[Batch]:
            nonlocal started
            started += 1
            yield from data(batch=7)

        told: list[int] = []
        found = drift(runnable, Data(start, {}), evaluator=evaluator, progress=told.append)  # type: ignore[arg-type]
        assert sum(told) == started * SAMPLES
        return started, found.passes, found.samples, found.batches, found.forwards_watched

    assert passes(live_runnable(trained("plain"))) == (3, 3, SAMPLES, 6, 6)
    assert passes(without_modes(trained("plain"))) == (2, 2, SAMPLES, 6, 0)
    three = lambda model, batches: [model.eval()(next(batches)) for _ in range(3)]  # noqa: E731
    started, counted, *_, watched = drift_of_part(three)
    assert (started, counted, watched) == (3, 3, 3)


def drift_of_part(evaluator: Any) -> tuple[int, int, int]:
    started = 0

    def start() -> Iterator[Batch]:
        nonlocal started
        started += 1
        yield from data()

    found = drift(without_modes(trained("plain")), Data(start, {}), evaluator=evaluator)  # type: ignore[arg-type]
    return started, found.passes, found.forwards_watched


def test_layers_come_in_the_order_in_which_they_are_called_and_those_never_called_last() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never, self.late, self.early = nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.late(self.early(x)).mean((2, 3))
            return result

    evaluation = drift(live_runnable(Reversed().eval()), data())
    assert [(found.layer.name, found.called) for found in evaluation.layers] == [
        ("early", 5),
        ("late", 5),
        ("never", 0),
    ]
    never = as_json(measurements_of(evaluation))["layers"]["never"]  # type: ignore[index]
    assert never["fit"] is None
    assert never["train_mode"]["mean_shift"] == {"median": 0.0, "max": 0.0}


def test_the_measurements_have_all_that_is_promised() -> None:
    evaluation = drift(live_runnable(polluted()), data(labels=LABELS))
    found: Any = as_json(measurements_of(evaluation, channels=True))
    assert {"images", "batches", "passes", "device", "layers", "train_mode", "fit"} <= set(found)
    assert (found["images"], found["batches"], found["passes"], found["device"]) == (40, 5, 3, "cpu")
    layer = found["layers"]["bn1"]
    assert {"called", "moved", "updates", "as_shipped", "train_mode", "fit", "channels"} <= set(layer)
    for part in ("as_shipped", "train_mode", "fit"):
        assert {key: set(value) for key, value in layer[part].items()} == {
            "mean_shift": {"median", "max"},
            "variance_shift": {"median", "max"},
        }
    assert {key: len(values) for key, values in layer["channels"].items()} == dict.fromkeys(
        ("population_mean", "population_variance", "within_batch_variance", "running_mean", "running_var"), 8
    )
    assert {"predictions_changed", "accuracy_before", "accuracy_after", "by_batches"} <= set(found["train_mode"])
    assert list(found["train_mode"]["by_batches"]) == ["1", "2", "4"]
    assert "predictions_changed" in found["fit"]
    assert "channels" not in as_json(measurements_of(evaluation))["layers"]["bn1"]  # type: ignore[index]
    shipped: Any = evaluation.layers[0].as_shipped
    assert layer["as_shipped"]["mean_shift"] == {"median": np.median(shipped.mean), "max": shipped.mean.max()}


def test_the_measurements_of_repeat_have_all_that_is_promised() -> None:
    evaluation = repeat(live_runnable(trained("plain", Centered())), data(labels=LABELS))
    found: Any = as_json(measurements_of(evaluation))["repeat"]
    promised = {
        "identical_inputs", "same_batches_max_difference", "other_company_max_difference", "predictions_changed",
        "first_difference", "causes",
    }  # fmt: skip
    assert promised <= set(found)
    assert (found["identical_inputs"], found["same_batches_max_difference"], found["first_difference"]) == (
        True,
        0,
        None,
    )
    assert [cause["modules"] for cause in found["causes"]] == [("first",)]
    assert list(found["predictions_changed_by_batch_size"]) == ["1", "2", "8", "32"]
    assert list(found["accuracy_by_batch_size"]) == ["1", "2", "8", "32", "40"]


@pytest.mark.parametrize("kind", NETWORKS)
def test_predictions_and_accuracies_by_batch_size_are_those_of_brute_force(kind: str) -> None:
    network = trained(kind)
    for layer in norms(network):
        layer.running_mean = layer.running_var = None
    found = repeat(live_runnable(network), data(labels=LABELS), batch_size=16).repeat
    assert found is not None
    whole = scores(network, data(batch=SAMPLES)).argmax(1)
    alone = 1 if kind == "perceptron" else None  # features of one row have no variance: torch refuses that
    assert found.fails_alone == (alone is not None)
    assert sorted(found.predictions_by_batch_size) == [size for size in (1, 2, 8, 16) if size != alone]
    for size in found.predictions_by_batch_size:
        by_size = scores(network, data(batch=size)).argmax(1)
        assert found.predictions_by_batch_size[size] == float((by_size != whole).double().mean())
        assert found.accuracy_by_batch_size[size] == float((by_size == LABELS).double().mean())
    assert found.accuracy_by_batch_size[SAMPLES] == float((whole == LABELS).double().mean())


# -- the model comes back


def half_way() -> nn.Module:
    network = polluted("residual")
    network.first = nn.Dropout(0.5).train()
    network.get_submodule("block.1").train()
    network.get_submodule("block.4").requires_grad_(False)
    return network


Probe = Callable[..., Evaluation]
PROBES: dict[str, Probe] = {"drift": drift, "repeat": repeat}


def vandal(model: nn.Module, batches: Any) -> None:
    """An evaluation that leaves as much behind as it can."""
    model.train()
    for batch in batches:
        model(batch)
    for layer in norms(model):
        layer.momentum, layer.track_running_stats = 0.7, False
    model.get_submodule("stem.1").running_mean = None
    model.register_forward_hook(lambda *_: None)
    model.requires_grad_(False)
    torch.manual_seed(5)
    torch.use_deterministic_algorithms(True)
    model.half()


def failing(model: nn.Module, batches: Any) -> None:
    vandal(model, batches)
    raise ValueError("no such metric")


@pytest.mark.parametrize("evaluator", [None, vandal], ids=["as shipped", "a vandal"])
@pytest.mark.parametrize("name", PROBES)
def test_the_model_is_given_back_bit_for_bit(name: str, evaluator: Any) -> None:
    network = half_way()
    before = fingerprint(network)
    PROBES[name](live_runnable(network), data(), evaluator=evaluator)
    assert fingerprint(network) == before
    PROBES[name](without_modes(network), augmented(), evaluator=evaluator)
    assert fingerprint(network) == before


@pytest.mark.parametrize("name", PROBES)
def test_what_an_evaluation_left_behind_does_not_reach_the_other_measurements(name: str) -> None:
    def clean(model: nn.Module, batches: Any) -> None:
        model.train()
        for batch in batches:
            model(batch)

    one, other = (
        PROBES[name](without_modes(polluted("residual")), data(), evaluator=evaluator) for evaluator in (clean, vandal)
    )
    if name == "drift":
        assert (one.train_mode, one.fit, one.train_mode_by_batches) == (
            other.train_mode,
            other.fit,
            other.train_mode_by_batches,
        )
    else:
        assert one.repeat == other.repeat


@pytest.mark.parametrize("name", PROBES)
def test_the_model_is_given_back_after_an_evaluation_that_fails(name: str) -> None:
    network = half_way()
    before = fingerprint(network)
    with pytest.raises(ModelError, match="the evaluation 'failing' fails: ValueError: no such metric"):
        PROBES[name](live_runnable(network), data(), evaluator=failing)
    assert fingerprint(network) == before


class Fails(nn.Module):
    """Raises at one of its calls."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__()
        self.at, self.error, self.calls = at, error, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] == self.at:
            raise self.error("in the middle")
        return x


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(("call", "place"), [(1, "first"), (4, "second"), (8, "first"), (17, "second")])
@pytest.mark.parametrize("name", PROBES)
def test_the_model_is_given_back_after_an_exception_in_forward(
    name: str, call: int, place: str, error: type[BaseException]
) -> None:
    network = half_way()
    network.set_submodule(place, Fails(call, error))
    before = fingerprint(network)
    with contextlib.suppress(ModelError, KeyboardInterrupt):  # repeat lives with some errors of a model
        PROBES[name](live_runnable(network), data())
    assert fingerprint(network) == before


@pytest.mark.parametrize("batch", [1, 6, 10, 15])
@pytest.mark.parametrize("name", PROBES)
def test_the_model_is_given_back_after_ctrl_c(name: str, batch: int) -> None:
    network = half_way()
    before = fingerprint(network)
    done = 0

    def interrupting(_samples: int) -> None:
        nonlocal done
        done += 1
        if done == batch:
            raise KeyboardInterrupt

    runs = {"drift": 15, "repeat": 10}[name]
    if batch <= runs:
        with pytest.raises(KeyboardInterrupt):
            PROBES[name](live_runnable(network), data(), progress=interrupting)
    assert fingerprint(network) == before
