"""Intervals for a mean, and for a rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from orchestrator.statistics.numbers import TIE, Interval, in_unit, scaled, vector


def t_interval(values: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """Compute Student's interval for the mean (1908); None below two values. Equal values give a point.

    Assumption: independent values of one normal distribution. Coverage of the 95% interval as measured over 2,000
    samples of n = 6, 10, 20: 0.95, 0.95, 0.95 for a normal distribution; 0.88, 0.90, 0.92 for an exponential one, which
    is far more skewed than paired differences are.
    """
    x, exponent = scaled(vector(values))
    n = len(x)
    if n < 2:
        return None
    mean = float(x.mean())
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * float(x.std(ddof=1)) / n**0.5
    return in_unit(mean - half, exponent), in_unit(mean + half, exponent)


def bca_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 9_999) -> Interval | None:
    """Compute the bias-corrected and accelerated bootstrap interval for the mean (Efron 1987), from a fixed seed; None
    below two values. Equal values give a point.

    Assumption: independent values of one distribution, and enough of them to stand for it. Coverage at 95%, measured as
    for `t_interval`: 0.86, 0.90, 0.93 (normal) and 0.83, 0.87, 0.91 (exponential), so at few seeds it is a second
    opinion on the shape and not the interval to trust.
    """
    x, exponent = scaled(vector(values))
    n = len(x)
    if n < 2:
        return None
    mean, centred, scale = float(x.mean()), x - x.mean(), float(np.abs(x).max())
    if np.ptp(x) <= TIE * scale:
        return in_unit(mean, exponent), in_unit(mean, exponent)
    x, mean, centred = x / scale, mean / scale, centred / scale
    drawn = np.random.default_rng(0).integers(n, size=(resamples, n))
    means = x[drawn].mean(axis=1)
    below = (np.mean(means < mean - TIE) + np.mean(means <= mean + TIE)) / 2  # rounding breaks no tie
    bias = special.ndtri(np.clip(below, 1 / (resamples + 1), resamples / (resamples + 1)))
    # The jackknife's acceleration; for a mean it is the skewness of the values over 6 sqrt(n).
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    z = bias + special.ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, special.ndtr(bias + z / (1 - acceleration * z)))
    return in_unit(float(low) * scale, exponent), in_unit(float(high) * scale, exponent)


def wilson_interval(count: int, n: int, *, level: float = 0.95) -> Interval:
    """Compute Wilson's score interval for a rate of `count` in n (Wilson 1927); (0, 1) for n = 0.

    Assumption: n independent trials, each with the same rate. Coverage at 95%, exact, of n = 6, 10, 20, 40: 0.955,
    0.955, 0.954, 0.951 on average over rates of 0.01 to 0.99, and 0.83, 0.90, 0.92, 0.93 at the least.
    """
    if n == 0:
        return 0.0, 1.0
    z = float(special.ndtri((1 + level) / 2))
    rate, weight = count / n, z * z / n
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * float(np.sqrt(rate * (1 - rate) / n + weight / (4 * n)))
    return (0.0 if count == 0 else centre - half), (1.0 if count == n else centre + half)
