"""Layers without running statistics."""

from bncheck.rules.no_running_statistics import RULE
from bncheck.subjects.layer import StatisticsUse, inferred, stored
from tests.rules.layers import layer
from tests.rules.tables import Fires, Quiet, Undecided, fires, quiet, undecided, warning

NONE = {"running_mean": None, "running_var": None, "num_batches_tracked": None, "dtype": None}

QUIET: Quiet = {
    "statistics": layer(),
    "tracking turned off afterwards, buffers kept": layer(track_running_stats=stored(False)),
    "a lazy layer that never ran": layer(**NONE, without_data=("running_mean", "running_var")),
    "a frozen layer": layer(**NONE, use=StatisticsUse.FROZEN),
}

WITHOUT = {**NONE, "track_running_stats": stored(False)}
FIRES: Fires = {
    "train mode": (layer(**WITHOUT, training=stored(True)), warning()),
    "eval mode": (layer(**WITHOUT, training=stored(False)), warning()),
}

UNDECIDED: Undecided = {
    # CycleGAN's InstanceNorm2d, with the defaults of torch, leaves the same trace in `_metadata`.
    "instance norm or not": (
        layer(**NONE, kind=inferred("BatchNorm or InstanceNorm")),
        "without statistics, the file does not tell a BatchNorm from an InstanceNorm",
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
test_undecided = undecided(RULE, UNDECIDED)
