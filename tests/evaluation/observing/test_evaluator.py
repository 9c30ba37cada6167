"""The user's own evaluation is run as they would run it, and what it does to the layers is seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from bncheck.errors import ModelError, UnreadableError
from bncheck.evaluation.data.batches import Batch, Data
from bncheck.evaluation.models.runnable import Runnable, live_runnable
from bncheck.evaluation.probes.drift import drift
from bncheck.evaluation.probes.repeat import repeat
from bncheck.findings.report import Report
from bncheck.findings.rule import Severity
from bncheck.judgement.diagnosis import diagnose_evaluation
from bncheck.rules import DRIFT_RULES, REPEAT_RULES
from tests.evaluation.networks import BATCH, CLASSES, SAMPLES, FunctionalDropout, data, images, trained
from tests.evaluation.probes.test_drift import LABELS, norms, without_modes

Found = list[tuple[str, str, str | None]]


def built(*modules: nn.Module) -> Runnable:
    """A state_dict in a model that was just built, and is in train mode as such."""
    return without_modes(trained("plain", *modules).train())


def watched(evaluator: Any, runnable: Runnable | None = None, source: Data | None = None) -> Report:
    evaluation = drift(runnable or built(), source or data(images(samples=96)), evaluator=evaluator)
    return diagnose_evaluation(evaluation, Severity.ERROR, DRIFT_RULES)


def repeated(evaluator: Any, runnable: Runnable | None = None) -> Report:
    evaluation = repeat(runnable or built(), data(labels=LABELS), evaluator=evaluator)
    return diagnose_evaluation(evaluation, Severity.ERROR, REPEAT_RULES)


def found(report: Report) -> Found:
    return [(finding.rule, finding.severity.value, finding.layer) for finding in report.findings]


def loop(model: Any, batches: Any) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch)


# -- evaluations as people write them


def sound(model: nn.Module, batches: Any) -> None:
    model.eval()
    loop(model, batches)


def with_data_of_its_own(model: nn.Module) -> float:
    model.eval()
    with torch.inference_mode():
        return float(model(images(samples=20)).mean())


def in_half_precision(model: nn.Module, batches: Any) -> None:
    model.eval().bfloat16()
    with torch.no_grad():
        for batch in batches:
            model(batch.bfloat16())


def behind_data_parallel(model: nn.Module, batches: Any) -> None:
    loop(nn.DataParallel(model).eval(), batches)


def compiled(model: nn.Module, batches: Any) -> None:
    loop(torch.compile(model, backend="eager").eval(), batches)


def averaged_copy(model: nn.Module, batches: Any) -> None:
    """Runs a copy: what happens to that is no matter of the released file."""
    loop(copy.deepcopy(model).train(), batches)


def tracking_off_in_eval_mode(model: nn.Module, batches: Any) -> None:
    """Since torch 1.6 the flag does nothing in eval mode, where there are statistics."""
    for layer in norms(model):
        layer.track_running_stats = False
    sound(model, batches)


def stops_early(model: nn.Module, batches: Any) -> None:
    model.eval()
    model(next(iter(batches)))


@pytest.mark.parametrize(
    "evaluator",
    [
        sound, with_data_of_its_own, in_half_precision, behind_data_parallel, compiled, averaged_copy,
        tracking_off_in_eval_mode, stops_early,
    ],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_a_sound_evaluation_is_found_sound(evaluator: Any) -> None:
    report = watched(evaluator)
    assert found(report) == []
    assert report.undecided == ()
    assert report.measurements.watched == "the evaluator"


# -- and as they get them wrong


def forgets_eval(model: nn.Module, batches: Any) -> None:
    loop(model, batches)


def trains_a_part(model: nn.Module, batches: Any) -> None:
    model.eval()
    model.get_submodule("bn2").train()
    loop(model, batches)


def goes_back_to_train_mode_too_early(model: nn.Module, batches: Any) -> None:
    model.eval()
    for number, batch in enumerate(batches):
        model(batch)
        if number == 2:
            model.train()


def freezes_by_requires_grad(model: nn.Module, batches: Any) -> None:
    model.requires_grad_(False)
    with torch.inference_mode():
        for batch in batches:
            model(batch)


def tracking_off(model: nn.Module, batches: Any) -> None:
    for layer in norms(model):
        layer.track_running_stats = False
    loop(model, batches)


def statistics_off(model: nn.Module, batches: Any) -> None:
    model.eval()
    for layer in norms(model):
        layer.running_mean = layer.running_var = None
    loop(model, batches)


def resets(model: nn.Module, batches: Any) -> None:
    model.eval()
    model.get_submodule("bn1").reset_running_stats()  # type: ignore[operator]
    loop(model, batches)


def compiled_in_train_mode(model: nn.Module, batches: Any) -> None:
    loop(torch.compile(model, backend="eager"), batches)


def parallel_in_train_mode(model: nn.Module, batches: Any) -> None:
    loop(nn.DataParallel(model), batches)


BOTH = ("bn1", "bn2")
CAUGHT: list[tuple[Any, str, tuple[str, ...], int | None]] = [
    (forgets_eval, "error", BOTH, 12),
    (trains_a_part, "error", ("bn2",), 12),
    (goes_back_to_train_mode_too_early, "error", BOTH, 9),
    (freezes_by_requires_grad, "error", BOTH, 12),
    (tracking_off, "warning", BOTH, 0),
    (statistics_off, "error", BOTH, None),
    (resets, "error", ("bn1",), None),
    (compiled_in_train_mode, "error", BOTH, 12),
    (parallel_in_train_mode, "error", BOTH, 12),
]


@pytest.mark.parametrize(
    ("evaluator", "severity", "layers", "updates"), CAUGHT, ids=[function.__name__ for function, *_ in CAUGHT]
)
def test_an_evaluation_is_caught_in_the_act(
    evaluator: Any, severity: str, layers: tuple[str, ...], updates: int | None
) -> None:
    report = watched(evaluator)
    assert found(report) == [("changed-in-evaluation", severity, layer) for layer in layers]
    if updates is not None:
        assert {finding.measured["updates"] for finding in report.findings} == {updates}


def test_a_pickled_module_with_an_evaluator_is_watched_in_the_modes_of_the_evaluator() -> None:
    shipped = live_runnable(trained("plain").train())
    assert found(watched(sound, shipped)) == []
    assert len(found(watched(None, shipped))) == 2


# -- what cannot be decided


def never_calls(model: nn.Module, batches: Any) -> float:
    model.eval()
    return 0.9


@pytest.mark.parametrize("evaluator", [None, never_calls], ids=["none", "one that does not call the model"])
def test_without_a_watched_evaluation_nothing_passes_by_construction(evaluator: Any) -> None:
    report = watched(evaluator)
    assert found(report) == []
    reason = "the evaluator did not call the model" if evaluator else "no evaluation of yours was watched"
    [undecided] = report.undecided
    assert undecided.rule == "changed-in-evaluation"
    assert undecided.reason.startswith(reason)


def test_repeat_says_nothing_of_a_model_that_was_not_called() -> None:
    report = repeated(never_calls)
    assert found(report) == []
    assert {open_.rule for open_ in report.undecided} == {rule.id for rule in REPEAT_RULES}
    assert {open_.reason for open_ in report.undecided} == {"the evaluator did not call the model"}


# -- how it is called


class Evaluation:
    """An object whose call takes the model and the batches."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, model: nn.Module, batches: Any) -> None:
        model.eval()
        for batch in batches:
            self.seen.append(batch)
            model(batch[0])

    def with_more(self, model: nn.Module, batches: Any, *, verbose: bool = False) -> None:
        self(model, batches)

    def with_anything(self, *arguments: Any) -> None:
        self(*arguments)


@pytest.mark.parametrize("name", ["__call__", "with_more", "with_anything"])
def test_the_batches_are_what_the_data_hold(name: str) -> None:
    evaluation = Evaluation()
    evaluator = evaluation if name == "__call__" else getattr(evaluation, name)
    watched(evaluator, source=data(labels=LABELS))
    assert len(evaluation.seen) == SAMPLES // BATCH
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in evaluation.seen]), images())
    assert torch.equal(torch.cat([labels for _, labels in evaluation.seen]), LABELS)


def test_what_a_callable_yields_reaches_the_evaluation_untouched() -> None:
    item = {"pixels": images(samples=4), "name": "four"}
    source = Data(lambda: (batch for batch in [Batch(item["pixels"], None, 4, item)]), {})  # type: ignore[arg-type,return-value]
    seen: list[Any] = []

    def evaluator(model: nn.Module, batches: Any) -> None:
        for batch in batches:
            seen.append(batch)
            model.eval()(batch["pixels"])

    watched(evaluator, source=source)
    assert seen[0] is item


def test_what_it_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def evaluator(model: nn.Module, batches: Any) -> None:
        print("accuracy 0.9")
        sound(model, batches)

    watched(evaluator)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "accuracy 0.9\n")


def raises(model: nn.Module, batches: Any) -> None:
    raise ValueError("no such metric\nin any of\nthree lines")


def leaves(model: nn.Module, batches: Any) -> None:
    raise SystemExit(3)


def takes_nothing() -> None:
    pass


def no_function(model: nn.Module, batches: Any, threshold: float) -> None:
    pass


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (raises, "the evaluation 'raises' fails: ValueError: no such metric"),
        (leaves, "the evaluation 'leaves' fails: SystemExit: 3"),
        (takes_nothing, "the evaluation 'takes_nothing' fails: TypeError: takes_nothing() takes 0 positional"),
        (no_function, "the evaluation 'no_function' fails: TypeError: no_function() missing 1 required"),
        (3, "the evaluation 'int' fails: TypeError: 'int' object is not callable"),
    ],
    ids=["raises", "exits", "takes nothing", "takes more", "a number"],
)
@pytest.mark.parametrize("probe", [watched, repeated], ids=["drift", "repeat"])
def test_one_that_fails_is_told_in_a_sentence(probe: Any, evaluator: Any, message: str) -> None:
    with pytest.raises(ModelError) as error:
        probe(evaluator)
    assert error.value.message.startswith(message)
    assert "\n" not in error.value.message
    assert "function(model, batches)" in error.value.hint


def test_an_error_of_the_data_stays_what_it_is() -> None:
    def start() -> Any:
        yield Batch(images(samples=4), None, 4)
        raise UnreadableError("image 7 cannot be read", "Remove it.")

    with pytest.raises(UnreadableError, match="image 7 cannot be read"):
        watched(sound, source=Data(start, {}))


# -- what it returns


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, {}),
        (0.5, {"result": 0.5}),
        (torch.tensor(0.5), {"result": 0.5}),
        (torch.tensor([0.25]), {"result": 0.25}),
        (True, {"result": 1.0}),
        ({"accuracy": torch.tensor(0.5).numpy(), "loss": 2, "matrix": torch.ones(2)}, {"accuracy": 0.5, "loss": 2.0}),
        ("fine", {}),
        ([0.5], {}),
    ],
    ids=["nothing", "a number", "a tensor", "a tensor of one", "a truth", "a mapping", "a text", "a list"],
)
def test_the_numbers_that_it_returns_are_kept(returned: Any, expected: dict[str, float]) -> None:
    def evaluator(model: nn.Module, batches: Any) -> Any:
        sound(model, (images for images, _ in batches))
        return returned

    report = repeated(evaluator)
    assert found(report) == []
    assert report.measurements.repeat.metrics == (expected, expected)


def accuracy(model: nn.Module, batches: Any) -> dict[str, float]:
    model.eval()
    right = [(model(inputs).argmax(1) == labels).double().mean() for inputs, labels in batches]
    return {"accuracy": float(sum(right) / len(right)), "classes": CLASSES}


def by_monte_carlo(model: nn.Module, batches: Any) -> float:
    model.eval()
    [model(inputs) for inputs, _ in batches]
    return float(torch.rand(()))


def test_numbers_that_differ_between_runs_are_told_beside_their_cause() -> None:
    assert found(repeated(accuracy)) == []
    report = repeated(lambda model, batches: {"loss": loss(model, batches)}, built(FunctionalDropout()))
    [finding] = report.findings
    assert (finding.rule, finding.measured["cause"]) == ("differs-between-runs", "random-operator")
    assert "the evaluation returned loss " in finding.message


def loss(model: nn.Module, batches: Any) -> torch.Tensor:
    model.eval()
    losses = [nn.functional.cross_entropy(model(inputs), labels) for inputs, labels in batches]
    return torch.stack(losses).mean()


def test_numbers_that_differ_though_the_model_does_not_are_found() -> None:
    [finding] = repeated(by_monte_carlo).findings
    assert finding.rule == "differs-between-runs"
    assert finding.message.startswith("the evaluation returned other numbers when it was run again: result ")


def test_repeat_runs_the_model_in_the_modes_of_the_evaluation() -> None:
    def half(model: nn.Module, batches: Any) -> None:
        model.eval()
        model.get_submodule("bn2").train()
        loop(model, (inputs for inputs, _ in batches))

    [finding] = repeated(half).findings
    assert (finding.rule, finding.measured["modules"]) == ("depends-on-batch", ("bn2",))
