"""Statistics at their initial values, and why."""

from bncheck.rules.never_updated_statistics import RULE
from bncheck.subjects.layer import StatisticsUse, stored
from tests.rules.layers import fresh, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, error, fires, note, quiet

TRAINED_PARAMETERS = {"weight": [0.3, 1.2, 0.8, 1.1], "bias": [0.1, 0.2, -0.3, 0.0]}

QUIET: Quiet = {
    "trained layers": (layer("a"), layer("b")),
    "counters of 0 with trained statistics, as averaged weights have them": (layer(num_batches_tracked=0),),
    "a single channel at 0 and 1": (layer(running_mean=[0, 1, 1, 1], running_var=[1, 2, 2, 2]),),
    "no statistics": (layer(running_mean=None, running_var=None),),
}

FIRES: Fires = {
    "a part that was not loaded": ((layer("a"), fresh("b")), error("was not loaded or never ran", layer="b")),
    "a model that never ran": ((fresh("a"), fresh("b")), [error("the model never ran", layer="a"), error(layer="b")]),
    "a fresh model with zero_init_residual": ((fresh("a", weight=0),), error("the model never ran", layer="a")),
    "a fresh model without parameters": ((fresh("a", weight=None, bias=None),), error("never ran", layer="a")),
    "buffers that were not saved": (
        (fresh("a", **TRAINED_PARAMETERS), fresh("b", **TRAINED_PARAMETERS)),
        [error("the buffers were not saved or not loaded", layer="a"), error(layer="b")],
    ),
    "statistics that were reset after training": (
        (fresh("a", num_batches_tracked=500),),
        error("counts 500 updates: they were reset", layer="a"),
    ),
    "momentum 0": ((fresh("a", num_batches_tracked=500, momentum=stored(0.0)),), note("momentum is 0", layer="a")),
    "statistics folded into the parameters": (
        (fresh("a", num_batches_tracked=None, **TRAINED_PARAMETERS),),
        note("folded into weight and bias", layer="a"),
    ),
    "detectron2's FrozenBatchNorm2d starts at 1 - eps": (
        (fresh("a", num_batches_tracked=None, running_var=1 - 1e-5, use=StatisticsUse.FROZEN, **TRAINED_PARAMETERS),),
        note("folded", layer="a"),
    ),
    "a state_dict": (
        (of_state_dict("a"), of_state_dict("b", running_mean=0, running_var=1)),
        error("reset", layer="b"),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
