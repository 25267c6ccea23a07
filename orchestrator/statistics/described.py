"""What is said beside the verdicts, of seeds, arms and searches: outside the 5 %, and labelled so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from orchestrator.statistics.intervals import t_interval
from orchestrator.statistics.numbers import TIE, Floats, Mode, scaled, vector
from orchestrator.statistics.tests import paired_t_p

MOST_DEVIATIONS = 5.0
"""Distance from the median in standard deviations, as the median of distances tells them, from which on a seed is an
outlier."""

FEWEST = 6
"""Differences below which none is."""


def mcnemar_p(only_a: int, only_b: int) -> float | None:
    """Compute McNemar's exact two-sided p (1947) that two arms diverge equally often: of the seeds in which one alone
    diverged, each arm has half. None without such a seed.

    Assumption: seeds are independent. At most 0.05, where the arms diverge equally often, of 5, 6, 10, 20 and 40 such
    seeds (exact): never, and in 0.031, 0.021, 0.041 and 0.038.
    """
    if only_a + only_b == 0:
        return None
    tail = float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5))
    return min(1.0, 2 * tail)  # both tails are alike; where the arms have as many, they share the middle


def outlying(differences: Mapping[int, float]) -> list[int]:
    """Find the seeds whose difference lies far from the others': more than MOST_DEVIATIONS from the median, in standard
    deviations as 1.4826 times the median distance tells them. None below FEWEST. Where most differences are equal that
    is 0, so all others are far.

    The median distance is Hampel's (1974). Assumption: all but a few differences are of one distribution that is about
    normal. Any seed is named, where all are of one (4,000 of each, n = 6, 10, 20), in 0.06, 0.04, 0.01 of contrasts of
    normal arms, 0.11, 0.12, 0.17 of t3 and 0.14, 0.14, 0.18 of exponential ones: it says where to look, and no more.
    """
    d, _ = scaled(vector(list(differences.values())))
    if len(d) < FEWEST:
        return []
    away = np.abs(d - np.median(d))
    least = max(MOST_DEVIATIONS * 1.4826 * float(np.median(away)), TIE * float(np.abs(d).max()))
    return [seed for seed, distance in zip(differences, away, strict=True) if distance > least]


def is_worse_than_untrained(gains: Sequence[float], mode: Mode) -> bool:
    """Return whether training made an arm worse: the 95 % t interval (Student 1908) of (final - untrained) over seeds
    lies on the bad side. False below two seeds.

    Assumption: that of `t_interval`. Where training changes nothing on average (4,000 of each, n = 6, 10, 20) it is so
    in 0.02 to 0.03 of normal arms and 0.02 of t3 ones, and in 0.12, 0.09, 0.08 of exponential ones, whose long side is
    the good one.
    """
    ends = t_interval(gains)
    if ends is None:
        return False
    return ends[1] < 0 if mode == "max" else ends[0] > 0


def either_p(at_one: ArrayLike, at_other: ArrayLike) -> float | None:
    """Compute the p that two arms do not differ in one direction at both of two settings: the larger of the two paired
    t tests' p, 1 where the mean differences have not one sign. None where either has fewer than two differences.

    An intersection-union test (Berger 1982): both must reject, so nothing is adjusted, however the two depend on each
    other. At most 0.05 if and only if both 95 % t intervals leave out 0 on one side.

    Assumption: that of `paired_t_p`, at each. At most 0.05 where the arms differ at neither setting (20,000 of each,
    normal, n = 6, 10, 20): 0.001 if the two differences of a seed are independent, 0.006 to 0.009 with a correlation of
    0.5, 0.023 to 0.030 with 0.9, 0.050 to 0.052 where both settings are the same. In 0.023 to 0.026 where the arms
    differ by 5 sd at one setting, and by nothing at the other.
    """
    ps = [paired_t_p(at_one), paired_t_p(at_other)]
    known = [p for p in ps if p is not None]
    if len(known) < 2:
        return None
    signs = {float(np.sign(scaled(vector(differences))[0].mean())) for differences in (at_one, at_other)}
    return max(known) if len(signs) == 1 else 1.0


def best_so_far(values: ArrayLike, *, mode: Mode) -> tuple[Floats, Floats, Floats]:
    """Compute how the best setting improved over the suggestions of a search.

    values [n, s]: suggestion by tune seed, NaN where a trial has no final value; a suggestion counts when all its
    seeds have one. Returns the mean, the lowest and the highest value over the seeds, each [n], of the best setting
    among the first k suggestions; NaN until there is one.
    """
    table = np.asarray(values, dtype=np.float64)
    means = table.mean(axis=1)
    curve = np.full((3, len(table)), np.nan)
    best: int | None = None
    for k, mean in enumerate(means):
        if np.isfinite(mean) and (best is None or (mean > means[best] if mode == "max" else mean < means[best])):
            best = k
        if best is not None:
            curve[:, k] = means[best], table[best].min(), table[best].max()
    return curve[0], curve[1], curve[2]
