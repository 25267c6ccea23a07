"""Statistics of a comparison: arrays in, verdicts out. numpy and scipy only, and nothing of the sweep is known here."""

from orchestrator.statistics.comparison import ALPHA, Alpha, Comparison, Verdict, compare, compare_by, levels
from orchestrator.statistics.described import best_so_far, either_p, is_worse_than_untrained, mcnemar_p, outlying
from orchestrator.statistics.intervals import bca_interval, t_interval, wilson_interval
from orchestrator.statistics.looks import Course, Looks, Trained, course
from orchestrator.statistics.numbers import Interval, Mode
from orchestrator.statistics.pairing import Divergence, Measure, Pair, Question
from orchestrator.statistics.power import smallest_p
from orchestrator.statistics.tests import equivalence_p, holm, one_sided_p, paired_t_p, sign_flip_p
from orchestrator.statistics.which import beaten_p, interaction_p

__all__ = [
    "ALPHA", "Alpha", "Comparison", "Course", "Divergence", "Interval", "Looks", "Measure", "Mode", "Pair", "Question",
    "Trained", "Verdict", "bca_interval", "beaten_p", "best_so_far", "compare", "compare_by", "course", "either_p",
    "equivalence_p", "holm", "interaction_p", "is_worse_than_untrained", "levels", "mcnemar_p", "one_sided_p",
    "outlying", "paired_t_p", "sign_flip_p", "smallest_p", "t_interval", "wilson_interval",
]  # fmt: skip
