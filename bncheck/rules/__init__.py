"""The catalogue: every rule that bncheck knows, in the order in which they are asked.

A rule is a module named like its id, with a docstring under fixed headings and a constant `RULE`.
"""

from __future__ import annotations

from bncheck.rules.architecture_mismatch import RULE as ARCHITECTURE_MISMATCH
from bncheck.rules.changed_in_evaluation import RULE as CHANGED_IN_EVALUATION
from bncheck.rules.counter_without_history import RULE as COUNTER_WITHOUT_HISTORY
from bncheck.rules.dead_channels import RULE as DEAD_CHANNELS
from bncheck.rules.depends_on_batch import RULE as DEPENDS_ON_BATCH
from bncheck.rules.differs_between_runs import RULE as DIFFERS_BETWEEN_RUNS
from bncheck.rules.dummy_input_statistics import RULE as DUMMY_INPUT_STATISTICS
from bncheck.rules.extreme_gain import RULE as EXTREME_GAIN
from bncheck.rules.frozen_but_drifting import RULE as FROZEN_BUT_DRIFTING
from bncheck.rules.impossible_lineage import RULE as IMPOSSIBLE_LINEAGE
from bncheck.rules.inconsistent_settings import RULE as INCONSISTENT_SETTINGS
from bncheck.rules.invalid_momentum import RULE as INVALID_MOMENTUM
from bncheck.rules.lost_eps import RULE as LOST_EPS
from bncheck.rules.low_precision_statistics import RULE as LOW_PRECISION_STATISTICS
from bncheck.rules.mixed_modes import RULE as MIXED_MODES
from bncheck.rules.more_updates_than_steps import RULE as MORE_UPDATES_THAN_STEPS
from bncheck.rules.negative_variance import RULE as NEGATIVE_VARIANCE
from bncheck.rules.never_updated_statistics import RULE as NEVER_UPDATED_STATISTICS
from bncheck.rules.no_running_statistics import RULE as NO_RUNNING_STATISTICS
from bncheck.rules.non_finite_statistics import RULE as NON_FINITE_STATISTICS
from bncheck.rules.output_not_finite import RULE as OUTPUT_NOT_FINITE
from bncheck.rules.ranks_disagree import RULE as RANKS_DISAGREE
from bncheck.rules.saved_in_train_mode import RULE as SAVED_IN_TRAIN_MODE
from bncheck.rules.settings_changed import RULE as SETTINGS_CHANGED
from bncheck.rules.stale_averaged_statistics import RULE as STALE_AVERAGED_STATISTICS
from bncheck.rules.statistics_do_not_fit_data import RULE as STATISTICS_DO_NOT_FIT_DATA
from bncheck.rules.statistics_do_not_fit_weights import RULE as STATISTICS_DO_NOT_FIT_WEIGHTS
from bncheck.rules.statistics_lost import RULE as STATISTICS_LOST
from bncheck.rules.swapped_momentum import RULE as SWAPPED_MOMENTUM
from bncheck.rules.sync_batchnorm import RULE as SYNC_BATCHNORM
from bncheck.rules.tracking_switched_off import RULE as TRACKING_SWITCHED_OFF
from bncheck.rules.under_converged_statistics import RULE as UNDER_CONVERGED_STATISTICS
from bncheck.rules.uneven_counters import RULE as UNEVEN_COUNTERS
from bncheck.rules.unexpected_globals import RULE as UNEXPECTED_GLOBALS
from bncheck.rules.unusable_buffers import RULE as UNUSABLE_BUFFERS
from bncheck.rules.unusable_counter import RULE as UNUSABLE_COUNTER
from bncheck.rules.zero_scale import RULE as ZERO_SCALE

INSPECT_RULES = (
    NON_FINITE_STATISTICS,
    NEGATIVE_VARIANCE,
    NEVER_UPDATED_STATISTICS,
    DUMMY_INPUT_STATISTICS,
    UNDER_CONVERGED_STATISTICS,
    LOW_PRECISION_STATISTICS,
    DEAD_CHANNELS,
    EXTREME_GAIN,
    ZERO_SCALE,
    NO_RUNNING_STATISTICS,
    SAVED_IN_TRAIN_MODE,
    TRACKING_SWITCHED_OFF,
    SWAPPED_MOMENTUM,
    INVALID_MOMENTUM,
    LOST_EPS,
    UNUSABLE_COUNTER,
    SYNC_BATCHNORM,
    UNUSABLE_BUFFERS,
    MIXED_MODES,
    INCONSISTENT_SETTINGS,
    UNEVEN_COUNTERS,
    COUNTER_WITHOUT_HISTORY,
    MORE_UPDATES_THAN_STEPS,
    STALE_AVERAGED_STATISTICS,
    ARCHITECTURE_MISMATCH,
    UNEXPECTED_GLOBALS,
    STATISTICS_DO_NOT_FIT_WEIGHTS,
)

DRIFT_RULES = (CHANGED_IN_EVALUATION, STATISTICS_DO_NOT_FIT_DATA)
REPEAT_RULES = (DIFFERS_BETWEEN_RUNS, DEPENDS_ON_BATCH, OUTPUT_NOT_FINITE)
PAIR_RULES = (STATISTICS_LOST, IMPOSSIBLE_LINEAGE, FROZEN_BUT_DRIFTING, RANKS_DISAGREE, SETTINGS_CHANGED)
DIFF_RULES = (*PAIR_RULES, STALE_AVERAGED_STATISTICS)
RULES = (*INSPECT_RULES, *DRIFT_RULES, *REPEAT_RULES, *PAIR_RULES)
