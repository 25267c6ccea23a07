"""Tests of one contrast, and Holm's adjustment for several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from orchestrator.statistics.numbers import TIE, Floats, in_unit, scaled, vector

EXACT_UP_TO = 40
"""Differences for which every sign assignment is counted; 2^20 sums in each half."""

DRAWS = 99_999
"""Random sign assignments beyond that: p is then known to about 0.0007 near 0.05."""

PRECISION = 1e-7
"""Of a bound that is found by halving, as a share of the largest difference."""


def sign_flip_p(differences: ArrayLike) -> float:
    """Compute the two-sided p of the sign-flip test on the mean of n paired differences.

    The share of the 2^n sign assignments (Fisher 1935) with a |sum| at least the observed one, ties within TIE
    included. Exact up to EXACT_UP_TO differences: sums of one half are sorted and those of the other looked up in them,
    so 2^(n/2) sums do the work of 2^n. Beyond, DRAWS random assignments from a fixed seed, and p = (1 + hits) / (1 +
    DRAWS), which is a valid p-value itself (Phipson and Smyth 2010). No differences, or only zeros: 1.

    Assumption: without a difference each could as well have the other sign. Error rates: those of joint.py for m = 1.
    """
    d, _ = scaled(vector(differences))
    at_least = float(abs(d.sum()) - TIE * np.abs(d).sum())
    if at_least <= 0:
        return 1.0
    n = len(d)
    if n > EXACT_UP_TO:
        rng, hits = np.random.default_rng(n), 0
        for _ in range(9):
            sums = rng.choice((-1.0, 1.0), size=(DRAWS // 9, n)) @ d
            hits += int(np.count_nonzero(np.abs(sums) >= at_least))
        return (1 + hits) / (1 + DRAWS)
    left, right = np.sort(_signed_sums(d[: n // 2])), np.sort(_signed_sums(d[n // 2 :]))
    upper = left.size * right.size - int(np.searchsorted(left, at_least - right).sum())
    return float(2 * upper / 2**n)  # the sums are symmetric about 0, so both tails are equal


def one_sided_p(differences: ArrayLike) -> float:
    """Compute the p of the sign-flip test against the alternative that the mean difference is above 0: the share of the
    2^n assignments (Fisher 1935) with a sum of at least the observed one, counted as by `sign_flip_p`. No differences,
    or only zeros: 1.

    Assumption: where there is no difference, each is symmetric about 0. As measured there (6,000 of each; normal, t3
    and exponential arms; n = 9 and 12): at most 0.05 in 0.048 to 0.055, at most 0.0025 in 0.0017 to 0.0027.
    """
    d, _ = scaled(vector(differences))
    at_least = float(d.sum() - TIE * np.abs(d).sum())
    n = len(d)
    if not d.any():
        return 1.0
    if n > EXACT_UP_TO:
        sums = np.concatenate([_drawn_sums(d, draw) for draw in range(9)])
        return float(1 + np.count_nonzero(sums >= at_least)) / (1 + DRAWS)
    left, right = np.sort(_signed_sums(d[: n // 2])), np.sort(_signed_sums(d[n // 2 :]))
    upper = left.size * right.size - int(np.searchsorted(left, at_least - right).sum())
    return float(upper / 2**n)


def paired_t_p(differences: ArrayLike) -> float | None:
    """Compute the two-sided p of Student's paired t test (1908): at most 1 - level if and only if the `t_interval` of
    that level leaves out 0. None below two differences; of equal ones, which have no spread to hold them against, 0, or
    1 where they are 0.

    Assumption: normal differences of independent seeds. As measured with no difference at all (20,000 of each, alpha
    0.05, n = 6, 10, 20): 0.050, 0.049, 0.050 of normal arms, 0.042, 0.042, 0.045 of t3 ones, 0.037, 0.042, 0.047 of
    exponential ones.
    """
    d, _ = scaled(vector(differences))
    n = len(d)
    if n < 2:
        return None
    error = float(d.std(ddof=1)) / n**0.5
    if error <= TIE * float(np.abs(d).max()):
        return 0.0 if d.any() else 1.0
    return float(2 * special.stdtr(n - 1, -abs(float(d.mean())) / error))


def one_sided_bound(differences: ArrayLike, alpha: float) -> float | None:
    """Compute the lower bound of the mean difference that agrees with `one_sided_p`: above 0 if and only if that p is
    at most alpha.

    With K = alpha 2^n it is the K-th smallest mean of a non-empty subset of the differences (Hartigan 1969), found by
    halving, as p rises with the value that the differences are held against. None where so few can reject nothing.
    Assumption: that of the test, about every value of the mean.
    """
    d, exponent = scaled(vector(differences))
    low, high = float(d.min(initial=0.0)) - 1.0, float(d.max(initial=0.0))
    if one_sided_p(d - low) > alpha:
        return None
    if one_sided_p(d) > alpha:
        high = 0.0
    else:
        low = 0.0
    while high - low > PRECISION / 2:  # the largest is at least half of the unit
        middle = (low + high) / 2
        low, high = (middle, high) if one_sided_p(d - middle) <= alpha else (low, middle)
    return in_unit(high, exponent)


def holm(ps: Sequence[float]) -> list[float]:
    """Apply Holm's step-down adjustment (1979) to p-values, in the order given: the k-th smallest times (m + 1 - k), at
    most 1, and never below the value before it.

    Assumption: each p-value is at most a level as often as the level says, where its hypothesis is true; they may
    depend on each other however they do. Then any of these is wrongly at most a level no more often. As measured of
    sign-flip tests of 2, 3 and 7 contrasts that share a baseline (4,000 sweeps of 12 seeds, alpha 0.05): 0.050, 0.049
    and 0.042.
    """
    p = vector(ps)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def equivalence_p(differences: ArrayLike, smallest_difference: float) -> float:
    """Compute p of the hypothesis that the mean difference is at least `smallest_difference` in size, by two one-sided
    t tests (TOST; Schuirmann 1987), the larger p of the two.

    For one contrast p <= 0.05 says the same as "the 90% t interval lies inside +-smallest_difference". For several the
    p-values go through `holm`, so that the k-th smallest of m is held to a 1 - 2 * 0.05 / (m + 1 - k) interval.
    1 below two differences; never below 0.5 where no smallest difference (0) was declared; 0 for equal differences
    within it, which have no spread to hold them against: the limit of the t test, however few they are. Where a metric
    has few values, two seeds are often equal by chance: see below.

    Assumption: normal differences. As measured where the true difference is the smallest that matters (6,000 of each,
    alpha 0.05, n = 6, 8, 12; normal, t3 and exponential arms): 0.042 to 0.051. Arms of unlike shape, whose differences
    are skewed: 0.03 to 0.07 of one spread, up to 0.11 against a baseline of half the spread. Differences that come in
    steps of a whole and of half a standard deviation (8,000 of each, alpha 0.05 and 0.01): 0.061 and 0.053 of two
    seeds, at either level; 0.015 and 0.039 (0.015 and 0.007) of three; 0.046 (0.003 and 0.012) of four.
    """
    d, exponent = scaled(vector(differences))
    n = len(d)
    if n < 2:
        return 1.0
    room = in_unit(smallest_difference, -exponent) - abs(float(d.mean()))
    error = float(d.std(ddof=1)) / n**0.5
    rounding = TIE * float(np.abs(d).max())
    if error <= rounding:
        return 0.0 if room > rounding else 1.0
    return float(special.stdtr(n - 1, -room / error))


def _signed_sums(d: Floats) -> Floats:
    """Compute every sum of +-d, 2^len(d) of them."""
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    return sums


def _drawn_sums(d: Floats, draw: int) -> Floats:
    """Draw sums of +-d, a ninth of DRAWS."""
    sums: Floats = np.random.default_rng([len(d), draw]).choice((-1.0, 1.0), size=(DRAWS // 9, len(d))) @ d
    return sums
