"""Layers that were saved in train mode."""

from bncheck.rules.saved_in_train_mode import RULE
from bncheck.subjects.layer import StatisticsUse, stored
from tests.rules.layers import fresh, layer, of_state_dict
from tests.rules.tables import Fires, Quiet, Undecided, error, fires, quiet, undecided, warning

TRAINING = {"training": stored(True)}

QUIET: Quiet = {
    "eval mode": layer(),
    "a graph in eval mode": layer(baked=True),
    "a layer that never ran": fresh(**TRAINING),
    "a frozen layer does not look at the mode": layer(**TRAINING, use=StatisticsUse.FROZEN),
}

FIRES: Fires = {
    "a pickled module": (layer(**TRAINING), warning("rewrites the statistics")),
    "tracking off: nothing is rewritten": (
        layer(**TRAINING, track_running_stats=stored(False)),
        warning("by the batch"),
    ),
    "a layer that never ran, with its mode in a graph": (fresh(**TRAINING, baked=True), error("eval()")),
    "initial statistics that were counted": (fresh(**TRAINING, num_batches_tracked=3), warning("rewrites")),
    "a traced graph": (layer(**TRAINING, baked=True), error("eval() does not change it")),
}

UNDECIDED: Undecided = {"a state_dict": (of_state_dict(), "the file does not hold the mode")}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)
