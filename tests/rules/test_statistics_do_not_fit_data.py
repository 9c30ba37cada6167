"""Statistics far from what the layers see on the data."""

from __future__ import annotations

import numpy as np
import pytest

from bncheck.rules.statistics_do_not_fit_data import RULE
from bncheck.subjects.evaluation import Agreement, EvaluatedLayer, Evaluation
from bncheck.subjects.layer import stored
from tests.rules.evaluations import evaluated, evaluation, fitted
from tests.rules.tables import Fires, Quiet, Undecided, asked, error, fires, quiet, the_one, undecided, warning

NAN = float("nan")
TOO_FEW = "20 samples in 1 batch are too few to say that the statistics fit (64 in 4 are enough)"


def agreement(changed: float | None) -> Agreement:
    return Agreement(360, changed, 0.1)


def few_samples(mean: float) -> Evaluation:
    return evaluation(fitted(mean=mean, samples=20), samples=20, batches=1)


def trained(name: str, mean: float = 0.0) -> EvaluatedLayer:
    """A layer whose statistics are not those of a new one."""
    return fitted(name, mean, 2.0, running_var=2.0)


QUIET: Quiet = {
    "sound": evaluation(fitted("a", 0.01), fitted("b", 0.02)),
    "sound, high learning rate: the last layer lags": evaluation(
        fitted("a", 0.002), fitted("b", 0.223), fit=agreement(0.046)
    ),
    "the first layer just below": evaluation(fitted("a", 0.099, 0.61)),
    "an EfficientNet-Lite0 with its own normalisation: 0.15 at the first layer": evaluation(
        fitted("a", 0.057, 1.353), fitted("b", 0.2)
    ),
    "100 samples: 20 % of the predictions are no more than chance": evaluation(
        fitted(), samples=100, fit=agreement(0.2)
    ),
    "a later layer just below": evaluation(fitted("a"), fitted("b", 0.49, 0.61)),
    "few channels far off": evaluation(fitted(mean=[0, 0, 0, 50])),
    "images that differ much: chance explains it": evaluation(fitted(mean=0.3, spread=2.0)),
    "a small momentum tells more; here it is large": evaluation(fitted(mean=0.3, spread=1.0, momentum=stored(0.9))),
    "channels that are dead in the layer and in the data do not count": evaluation(
        fitted(mean=0, variance=[0, 0, 1, 1], running_var=[0, 0, 1, 1])
    ),
    "stored by batches, data of many classes in each": evaluation(fitted(variance=1.0, pooled=4.0)),
    "stored for the population, small ordered batches": evaluation(fitted(variance=0.2, pooled=1.0)),
    "no BatchNorm layer": evaluation(),
}

FIRES: Fires = {
    "no mean/std step: 0.37 at the first layer of a MobileNetV2": (
        evaluation(fitted("a", 0.37, 0.04), fitted("b")),
        warning(layer="a"),
    ),
    "pixels from 0 to 255": (
        evaluation(fitted("a", 85, 2666), fitted("b", 3)),
        [warning(layer="a"), warning(layer="b")],
    ),
    # ln(2) / 2 = 0.35, and 0.25 is allowed.
    "the variance alone": (evaluation(fitted(variance=0.5)), warning()),
    "ten updates after a reset": (
        evaluation(fitted("a", 0.003), fitted("b", 0.642), fitted("c", 0.257)),
        warning(layer="b"),
    ),
    "statistics that were reset": (
        evaluation(fitted("a", 0.005, 0.6), fitted("b", 1.43)),
        [warning(layer="a"), warning(layer="b")],
    ),
    "the same with data that the user vouches for": (
        evaluation(fitted("a", 0.005, 0.6), fitted("b", 1.43), in_distribution=True),
        [warning(layer="a"), error(layer="b")],
    ),
    "vouched for, and little": (evaluation(fitted(mean=0.3), in_distribution=True), warning()),
    "vouched for, little, and many predictions change": (
        evaluation(fitted(mean=0.3), in_distribution=True, fit=agreement(0.27)),
        error(),
    ),
    "each layer a little, and the predictions": (
        evaluation(fitted("a", 0.05), fitted("b", 0.4), fit=agreement(0.17)),
        warning(layer=""),
    ),
    "predictions, vouched for": (
        evaluation(fitted(), fit=agreement(0.3), in_distribution=True),
        error(layer=""),
    ),
    "no number fits NaN": (evaluation(fitted("a"), fitted("b", running_var=[NAN, 1, 1, 1])), error(layer="b")),
    "little data, and far beyond chance": (few_samples(85), warning()),
    "negative variances": (evaluation(fitted(running_var=-1)), warning()),
    # The first layer that drifts says what to do about all of them.
    "from the first layer on": (
        evaluation(trained("a", 1.0), trained("b", 1.0)),
        [warning(layer="a", fix="preprocessing"), warning(layer="b", fix="preprocessing")],
    ),
    "from a later layer on": (
        evaluation(trained("a"), trained("b", 1.0)),
        warning(layer="b", fix="The layers before 'b' fit: the statistics lag behind the weights"),
    ),
    "from a layer on that was reset": (
        evaluation(trained("a"), fitted("b", 1.0), trained("c", 1.0)),
        [
            warning(layer="b", fix="begins at 'b', whose statistics are those of a new layer"),
            warning(layer="c", fix="begins at 'b', whose statistics are those of a new layer"),
        ],
    ),
}

UNDECIDED: Undecided = {
    "little data that show nothing prove nothing": (few_samples(0.01), TOO_FEW),
    "nor do few predictions": (evaluation(fitted(), samples=20, batches=1, fit=agreement(0.3)), TOO_FEW),
    "no layer was seen": (evaluation(evaluated()), "no layer with running statistics was called"),
    "no layer could be seen": (
        evaluation(evaluated(), unable={"fit to the data": "the graph runs in train mode"}),
        "the graph runs in train mode",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)


def test_the_message_has_the_shift_its_noise_and_the_ratio() -> None:
    examined = evaluation(fitted(mean=0.5, variance=4.0, spread=0.19))
    chance = 0.19 * (1 / 360 + 0.1 / 1.9 / 16) ** 0.5
    message = the_one(RULE, examined).message
    assert f"lies 0.5 standard deviations from running_mean (median of the channels; {chance:.4g} is chance)" in message
    assert "standard deviation at 2 of the stored one" in message


def test_an_eps_of_0_is_no_missing_one() -> None:
    examined = evaluation(fitted(variance=4e-8, running_var=1e-8, eps=stored(0.0)))
    assert "standard deviation at 2 of the stored one" in the_one(RULE, examined).message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf"), 1e38, 0.0])
def test_no_number_of_the_data_or_the_layer_makes_it_raise(bad: float) -> None:
    for examined in (fitted(mean=bad), fitted(variance=bad), fitted(running_var=bad), fitted(running_mean=bad)):
        asked(RULE, evaluation(examined))
    asked(RULE, evaluation(fitted(running_mean=np.float32(bad), running_var=[bad, 1, 1, 1], mean=[bad, 0, 0, 0])))
