"""Which of several levels may be the best, and whether the answer depends on the stratum.

Of ordered levels, such as temperatures, a reader asks which one to take: a second question beside the verdicts, with an
error of its own. A level is out where another one is better than it: the largest one-sided statistic over the other
levels,

    T_ij = sum_s (x_js - x_is) / sqrt(sum_s (x_js - x_is)^2),   the largest over j,

is held against that of every assignment of signs to the seeds. What is left may be the best: the truly best level is in
it with a probability of 1 - alpha at least (Hsu 1984 asks the same of normal values).

Assumption: a seed's vector of differences between levels that are equally good is symmetric about 0. The best of five
levels was lost in 0.045 to 0.053 of sweeps (alpha 0.05, n of 7 to 12); of five that are equally good, as measured by
`make bench ONLY=statistics` (6,000 sweeps each of normal, t3 and exponential ones): 0.044, 0.049 and 0.051.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.statistics.joint import AT_ONCE, joint_test
from orchestrator.statistics.numbers import TIE, Floats, scaled

COUNTED = 16
"""Seeds up to which all assignments are counted."""

DRAWS = 99_999
"""Random assignments where there are too many to count, beside the observed one."""


def beaten_p(values: ArrayLike) -> list[float]:
    """Compute for each level the p of the hypothesis that no other one is better.

    values [n, L]: seed by level, of which more is better; every seed has all levels. 1 for a single level, and without
    seeds. Raises ValueError for values that are not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"values must be finite numbers [seeds, levels], not {x.shape} with nan or inf")
    n, levels = x.shape
    if not n or levels < 2:
        return [1.0] * levels
    x, _ = scaled(x)
    rounding = TIE * float(np.abs(x).max())  # of the values: where levels are alike, their differences are nothing else
    x = x - x.mean(axis=1, keepdims=True)
    sums = np.ascontiguousarray(np.concatenate([signs @ x for signs in _signs(n)]).T)
    return [_p(x - x[:, [level]], sums, level, rounding) for level in range(levels)]


def interaction_p(values: Sequence[ArrayLike]) -> float | None:
    """Compute the p of the hypothesis that levels differ in the same way in every stratum: the joint test of
    (a_l - a_1)_s - (a_l - a_1)_1 over all levels l and strata s. It describes, and decides nothing.

    values: of each stratum, [n, L] with the same seeds and levels. None for one stratum or one level.

    Assumption: a seed's vector of these is symmetric about 0 where levels differ alike. At most 0.05 there, as measured
    (1,000 sweeps of each: three levels in two strata, n = 8 and 12; four in three, n = 8; normal, t3 and exponential
    arms): in 0.036 to 0.060.
    """
    strata = [np.asarray(own, dtype=np.float64) for own in values]
    if len(strata) < 2 or strata[0].shape[1] < 2 or not strata[0].shape[0]:
        return None
    whole, _ = scaled(np.stack(strata))
    effects = whole[:, :, 1:] - whole[:, :, :1]
    d = np.concatenate(list(effects[1:] - effects[0]), axis=1)
    tested = joint_test(np.where(np.abs(d) > TIE * np.abs(whole).max(), d, 0.0), 0.05)
    return min(one.p for one in tested)


def _signs(n: int) -> Iterator[Floats]:
    """Yield the assignments of signs, [count, n] at a time, the observed one first: all of them, or some at random."""
    if n <= COUNTED:
        yield np.asarray(1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1), dtype=np.float64)
        return
    rng = np.random.default_rng(n)
    for begun in range(0, DRAWS + 1, AT_ONCE):
        bits = rng.integers(0, 2, size=(min(AT_ONCE, DRAWS + 1 - begun), n), dtype=np.int8)
        if not begun:
            bits[0] = 0
        yield np.asarray(1.0 - 2.0 * bits, dtype=np.float64)


def _p(differences: Floats, sums: Floats, level: int, rounding: float) -> float:
    """Compute the share of assignments with a largest statistic of at least the observed one.

    differences [n, L]: of every level over this one. sums [L, count]: of each level's values by every assignment, so
    that those of the differences are theirs less this level's. rounding: up to which a level does not differ.
    """
    lengths = np.linalg.norm(differences, axis=0)
    others = np.flatnonzero(lengths > rounding)
    if not others.size:
        return 1.0
    largest = np.full(sums.shape[1], -np.inf)
    for other in others:
        np.maximum(largest, (sums[other] - sums[level]) / lengths[other], out=largest)
    return float(np.mean(largest >= largest[0] - TIE))
