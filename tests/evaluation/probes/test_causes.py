"""Every cause of a difference gets its name, alone and in pairs, in three architectures; sound networks get none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from torch import nn

from bncheck.evaluation.data.batches import Data
from bncheck.evaluation.models.runnable import live_runnable
from bncheck.evaluation.probes.repeat import repeat
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose_evaluation
from bncheck.rules import REPEAT_RULES
from bncheck.subjects.evaluation import CauseKind, Evaluation
from tests.evaluation.networks import (
    MIDDLE,
    NETWORKS,
    Centered,
    DropPath,
    FunctionalDropout,
    GaussianNoise,
    HiddenChance,
    NotFinite,
    NumpyNoise,
    OwnGenerator,
    SharedNoise,
    Stateful,
    augmented,
    data,
    shuffled,
    trained,
)


@dataclass(frozen=True)
class Injected:
    """A cause: a module to put in, a change of the network, or other data; and what must be said."""

    kind: CauseKind
    module: Callable[[], nn.Module] | None = None
    change: Callable[[nn.Module, str], None] | None = None
    data: Callable[[], Data] | None = None
    named: bool = True  # whether the module's name must be told


def dropout_in_train_mode() -> nn.Module:
    return nn.Dropout(0.3)  # `inject` leaves what it puts in in train mode


def batchnorm_in_train_mode(network: nn.Module, kind: str) -> None:
    network.get_submodule(MIDDLE[kind]).train()


def batchnorm_without_statistics(network: nn.Module, kind: str) -> None:
    layer = network.get_submodule(MIDDLE[kind])
    layer.running_mean = layer.running_var = None  # type: ignore[assignment]


CAUSES: dict[str, Injected] = {
    "shuffling": Injected(CauseKind.INPUTS, data=shuffled),
    "augmentation": Injected(CauseKind.INPUTS, data=augmented),
    "dropout": Injected(CauseKind.RANDOM_OPERATOR, dropout_in_train_mode),
    "functional dropout": Injected(CauseKind.RANDOM_OPERATOR, FunctionalDropout),
    "gaussian noise": Injected(CauseKind.RANDOM_OPERATOR, GaussianNoise),
    "noise of a batch": Injected(CauseKind.RANDOM_OPERATOR, SharedNoise),
    "drop path": Injected(CauseKind.RANDOM_OPERATOR, DropPath),
    "own generator": Injected(CauseKind.RANDOM_OPERATOR, OwnGenerator),
    "numpy": Injected(CauseKind.RANDOM_OPERATOR, NumpyNoise, named=False),
    "kernel": Injected(CauseKind.KERNEL, HiddenChance, named=False),
    "state": Injected(CauseKind.STATE, Stateful, named=False),
    "train mode": Injected(CauseKind.BATCHNORM, change=batchnorm_in_train_mode),
    "no statistics": Injected(CauseKind.BATCHNORM, change=batchnorm_without_statistics),
    "coupling": Injected(CauseKind.BATCH_COUPLING, Centered),
}


def inject(kind: str, *names: str) -> Evaluation:
    """The evaluation of a trained network with these causes, modules at its first and second place."""
    causes = [CAUSES[name] for name in names]
    modules = [cause.module() if cause.module else None for cause in causes]
    network = trained(kind, *(None if module is None else nn.Identity() for module in modules))
    for place, module in zip(("first", "second"), modules, strict=False):
        if module is not None:
            setattr(network, place, module.train())
    for cause in causes:
        if cause.change:
            cause.change(network, kind)
    source = next((cause.data for cause in causes if cause.data), data)
    return repeat(live_runnable(network), source())


def told(evaluation: Evaluation) -> set[str]:
    assert evaluation.repeat is not None
    return {cause.kind for cause in (*evaluation.repeat.run_causes, *evaluation.repeat.company_causes)}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_sound_network_gives_no_cause(kind: str) -> None:
    evaluation = repeat(live_runnable(trained(kind)), data())
    assert told(evaluation) == set()
    assert not diagnose_evaluation(evaluation, Severity.NOTE, REPEAT_RULES).findings
    found = evaluation.repeat
    assert found is not None
    assert found.identical_inputs
    assert found.same_batches_max_difference == 0.0
    assert found.company_dtype == "float64"
    assert found.other_company_max_difference is not None
    assert found.other_company_max_difference < 1e-14


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_alone_gets_its_name(kind: str, name: str) -> None:
    evaluation = inject(kind, name)
    assert told(evaluation) == {CAUSES[name].kind.value}
    assert evaluation.repeat is not None
    [cause] = [*evaluation.repeat.run_causes, *evaluation.repeat.company_causes]
    if CAUSES[name].module and CAUSES[name].named:
        assert cause.modules == ("first",)
    if CAUSES[name].change:
        assert cause.modules == (MIDDLE[kind],)
    report = diagnose_evaluation(evaluation, Severity.ERROR, REPEAT_RULES)
    expected = "depends-on-batch" if cause in evaluation.repeat.company_causes else "differs-between-runs"
    assert [finding.rule for finding in report.findings] == [expected]


PAIRS = [pair for pair in combinations(CAUSES, 2) if CAUSES[pair[0]].kind is not CAUSES[pair[1]].kind]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_causes_in_pairs_get_both_names(pair: tuple[str, str]) -> None:
    for kind in NETWORKS:
        assert told(inject(kind, *pair)) == {CAUSES[name].kind.value for name in pair}, kind


def test_the_first_module_that_differs_is_named() -> None:
    evaluation = inject("residual", "gaussian noise")
    assert evaluation.repeat is not None
    assert evaluation.repeat.first_difference == "first"


def test_the_first_module_that_is_not_finite_is_named() -> None:
    network = trained("plain", None, nn.Identity())
    network.second = NotFinite()
    evaluation = repeat(live_runnable(network), data())
    [finding] = diagnose_evaluation(evaluation, Severity.ERROR, REPEAT_RULES).findings
    assert finding.rule == "output-not-finite"
    assert finding.measured["module"] == "second"


def test_small_batches_without_statistics_cost_predictions() -> None:
    network = trained("plain")
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = None
    evaluation = repeat(live_runnable(network), data())
    assert evaluation.repeat is not None
    by_size = evaluation.repeat.predictions_by_batch_size
    assert set(by_size) == {1, 2, 8, 32}
    assert by_size[1] > 0


def test_the_model_is_given_back_as_it_came() -> None:
    from bncheck.evaluation.restoring import fingerprint

    network = trained("residual", nn.Identity())
    network.first = nn.Dropout(0.5).train()
    network.get_submodule("block.1").train()
    before = fingerprint(network)
    repeat(live_runnable(network), augmented())
    assert fingerprint(network) == before


def test_a_damped_defect_shows_in_float64_only() -> None:
    """A layer whose effect on the output is 1e-9 of it."""
    network = trained("plain")
    with torch.no_grad():
        network.bn2.weight *= 1e-8  # type: ignore[union-attr,operator]
    batchnorm_without_statistics(network, "plain")
    evaluation = repeat(live_runnable(network), data())
    assert told(evaluation) == {CauseKind.BATCHNORM.value}
    assert evaluation.repeat is not None
    assert evaluation.repeat.other_company_max_difference is not None
    assert evaluation.repeat.other_company_max_difference < 1e-6
