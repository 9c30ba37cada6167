"""Equal weights with the statistics of different data."""

from __future__ import annotations

import numpy as np

from bncheck.rules.ranks_disagree import RULE
from tests.rules.layers import layer
from tests.rules.pairs import MOVED, NEARLY, TRAINED, file, paired
from tests.rules.tables import Fires, Quiet, error, fires, quiet, warning

APART = {"running_mean": [0.2, -0.3, 0.4, 0.1], "running_var": [0.55, 1.5, 2.0, 1.0]}

QUIET: Quiet = {
    "the same statistics": paired(file(layer()), file(layer())),
    "as DistributedDataParallel leaves them: the last batch differs": paired(file(layer()), file(layer(**NEARLY))),
    "other weights": paired(file(layer()), file(layer(**MOVED, **TRAINED))),
    "a later checkpoint": paired(file(layer()), file(layer(**MOVED, num_batches_tracked=1024))),
    "two files without counters may be one network and its drift": paired(
        file(layer(num_batches_tracked=None)), file(layer(**MOVED, num_batches_tracked=None))
    ),
    "counters that averages carry": paired(
        file(layer(num_batches_tracked=1)), file(layer(**MOVED, num_batches_tracked=1))
    ),
    "statistics that are not finite": paired(file(layer()), file(layer(running_var=np.nan, running_mean=np.nan))),
    "no statistics": paired(file(layer()), file(layer(running_mean=None, running_var=None))),
}

FIRES: Fires = {
    "a little": (
        paired(file(layer()), file(layer(**APART))),
        warning(
            message="the weights are equal in every bit and both count 1,000 batches, but the statistics are 0.09082 "
            "standard deviations apart (median of the channels): they come from different data"
        ),
    ),
    "far": (paired(file(layer()), file(layer(**MOVED))), error()),
    "far, in three files": (paired(file(layer()), file(layer(**MOVED)), several=True), error()),
    "three files without counters": (
        paired(file(layer(num_batches_tracked=None)), file(layer(**MOVED, num_batches_tracked=None)), several=True),
        error(),
    ),
    "three files with counters of 0": (
        paired(file(layer(num_batches_tracked=0)), file(layer(**MOVED, num_batches_tracked=0)), several=True),
        error(),
    ),
    "the variances alone": (
        paired(file(layer()), file(layer(running_var=[1.0, 3.0, 4.0, 2.0]))),
        error(),
    ),
}

test_quiet = quiet(RULE, QUIET)
test_fires = fires(RULE, FIRES)
