"""One joint test of all contrasts, at one look or several: exact sign flips, the largest statistic, step-down.

The differences of contrast j over seeds i are d_ij, 0 where the pair is absent. Without a difference between any two
arms, the vector of all contrasts' differences of a seed could as well have the other sign: one sign a seed flips all of
its contrasts together, which keeps how they depend on each other. The statistic of a contrast is

    T_j = |sum_i d_ij| / sqrt(sum_i d_ij^2),   0 where all differences are 0,

whose denominator no sign changes. The largest T of the family is held against the largest T of every assignment of
signs (Westfall and Young 1993); a contrast that is rejected leaves the family, and the rest is held against less.

Looks (Lan and DeMets 1983): by look k of K at most a_k = alpha ln(1 + (e - 1) n_k / n_K) of all assignments may have
been rejected. Look k rejects, of the assignments whose beginnings no earlier look has rejected, those with the largest
T, as many as fit. With one look this is the test above, at alpha.

Assumption: under the null a seed's vector of differences is symmetric about 0. Error rates as measured by `make bench
ONLY=statistics` (6,000 sweeps of each; alpha 0.05; n = 7 to 12; m = 1, 3, 7; normal, t3 and exponential arms): 0.040 to
0.050; with looks: see looks.py. Arms of unlike shape have differences that are not symmetric: exponential and normal
ones of one spread 0.049 to 0.062; exponential ones against a normal baseline of half their spread 0.07, 0.09 and 0.11
for m = 1, 3, 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.statistics.numbers import TIE, Floats, Interval, in_unit, scaled

EXACT_UP_TO = 20
"""Seeds for which all 2^(n-1) assignments are counted; the first seed keeps its sign, as T has none."""

DRAWS = 99_999
"""Random assignments beyond that, beside the observed one: p = (1 + hits) / (1 + draws) (Phipson and Smyth 2010)."""


AT_ONCE, TOGETHER = 2_500, 16
"""Of those: how many are held in memory, and for how many contrasts they are drawn once."""

ROUNDING = 1e-9
"""Of c^2 against n: less is no room."""


@dataclass(frozen=True)
class JointResult:
    """What the joint test says of one contrast, at the last of the looks that were taken."""

    statistic: float
    """T."""

    p: float
    """Adjusted for the whole family and all looks. At most a_k if and only if `rejected`."""

    critical: float
    """The least T that was rejected in the family in which the contrast was decided; inf where none can be."""

    rejected: bool
    reached: int
    """Assignments of this contrast alone with T >= critical: how many means its interval leaves out on either side."""


def spent(alpha: float, looks: Sequence[int]) -> list[float]:
    """Compute a_k, the share of all assignments that may be rejected by each look. looks: seeds at each, increasing."""
    return [alpha * math.log(1 + (math.e - 1) * seeds / looks[-1]) for seeds in looks]


def joint_test(
    differences: ArrayLike, alpha: float, *, looks: Sequence[int] = (), taken: int | None = None
) -> list[JointResult]:
    """Judge all contrasts at once, at the last of the looks that were taken.

    differences [n, m]: seed by contrast, 0 where a pair is absent; n is the number of seeds at that look. looks: seeds
    of all planned looks; none for one look at n. taken: how many of them, of all unless given. Raises ValueError for
    values that are not finite, and for looks that do not fit the seeds.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite numbers [seeds, contrasts], not {d.shape} with nan or inf")
    n, m = d.shape
    if n and m:
        widest = np.abs(d).max(axis=0)
        d = d / np.where(widest > 0, widest, 1.0)  # T has no scale, and squares must not overflow
    planned = list(looks) or [n]
    now = planned[: len(planned) if taken is None else taken]
    if not n or not m:
        return [JointResult(0.0, 1.0, math.inf, rejected=False, reached=0)] * m
    if (
        now[-1] != n
        or planned[0] < 1
        or sorted(set(planned)) != planned
        or (len(planned) > 1 and planned[-1] > EXACT_UP_TO)
    ):
        raise ValueError(
            f"looks at {planned} seeds, {len(now)} of them taken, do not fit {n} seeds; they must increase, end with "
            f"the seeds at hand, and be at most {EXACT_UP_TO} if there are several"
        )
    observed = _statistics(d)
    order = np.argsort(-observed, kind="stable")
    levels = spent(alpha, planned)[: len(now)]
    by_step = list(_families(d, order, now, levels, observed))
    return _stepped_down(d, order, observed, by_step)


def difference_interval(differences: ArrayLike, present: ArrayLike, tested: JointResult) -> Interval | None:
    """Compute the interval of a contrast's mean difference that agrees with the joint test: 0 lies outside if and only
    if the contrast was rejected.

    differences [n], as the test had them; present [n]: whether the pair is there. With K assignments that reach the
    critical value, it is the K-th smallest to the K-th largest mean of a non-empty subset of the differences (Hartigan
    1969). Where none of this contrast's own reaches what the family asks for, the statistic is inverted in place of
    counts. None where no difference whatever could be rejected.

    Assumption: as `joint_test`, about every value of the mean. Coverage as measured (1,000 sweeps of each: n = 6, 8,
    12, m = 1, 3, 7, normal, t3, exponential), all of a sweep at once in brackets: 0.94 to 1.00 (0.94 to 0.97) without
    differences; 0.96 to 1.00 where some contrasts differ (0.91 to 0.95, but 0.88 for seven contrasts at n = 6), as what
    is rejected leaves the family.
    """
    d, there = np.asarray(differences, dtype=np.float64), np.asarray(present, dtype=bool)
    (own, exponent), seeds = scaled(d[there]), len(d)
    n = len(own)
    if n < 2 or not math.isfinite(tested.critical):
        return None
    mean = float(own.mean())
    if not tested.reached:
        room = n - tested.critical**2
        if room <= ROUNDING * n:
            return None
        half = tested.critical * math.sqrt((n - 1) / room) * float(own.std(ddof=1)) / math.sqrt(n)
        return in_unit(mean - half, exponent), in_unit(mean + half, exponent)
    if seeds <= EXACT_UP_TO:
        means, rank = _subset_means(own), tested.reached >> (seeds - n)  # the absent pairs' signs change nothing
        low, high = means, means
    else:
        drawn = [(flipped.sum(1), flipped @ own) for signs in _drawn(seeds) for flipped in [signs[:, there] < 0]]
        sizes, sums = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        mixed = (sizes > 0) & (sizes < n)
        rank = tested.reached - int((~mixed).sum()) + 1  # an assignment of one sign counts whatever the mean is
        inside, size = sums[mixed] / sizes[mixed], sizes[mixed]
        outside = (mean * n - inside * size) / (n - size)
        low, high = np.minimum(inside, outside), np.maximum(inside, outside)
    if not 0 < rank <= len(low):
        return None
    ends = np.partition(low, rank - 1)[rank - 1], np.partition(high, len(high) - rank)[len(high) - rank]
    return in_unit(float(ends[0]), exponent), in_unit(float(ends[1]), exponent)


def _subset_means(d: Floats) -> Floats:
    """Compute the mean of every non-empty subset of d, [2^n - 1]."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums, sums + value])
    means: Floats = sums[1:] / _subset_sizes(len(d))
    return means


@lru_cache(maxsize=1)
def _subset_sizes(n: int) -> Floats:
    """Count the members of every non-empty subset of n, in the order of `_subset_means`. Most contrasts have one n."""
    sizes = np.zeros(1)
    for _ in range(n):
        sizes = np.concatenate([sizes, sizes + 1])
    return sizes[1:]


@dataclass(frozen=True)
class _Family:
    """The contrasts from one place of the order on."""

    p: float
    critical: float


def _families(
    d: Floats, order: NDArray[np.intp], looks: Sequence[int], levels: Sequence[float], observed: Floats
) -> Iterator[_Family]:
    """Yield the family of each step, the whole one first. Each is the next one and one contrast more, so they are made
    from the last on, and of no more than some contrasts are the statistics held at once."""
    largest = [np.full(_count(seeds), -1.0) for seeds in looks]
    families, up = [], order[::-1]
    for contrast, *of_looks in zip(up, *(_each_flipped(d[:seeds, up]) for seeds in looks), strict=True):
        for most, statistics in zip(largest, of_looks, strict=True):
            np.maximum(most, statistics, out=most)
        families.append(_judged(largest, levels, float(observed[contrast])))
    return reversed(families)


def _judged(largest: Sequence[Floats], levels: Sequence[float], statistic: float) -> _Family:
    """Build the rejection sets of all looks, and hold a family's largest statistic against the last one."""
    mass, rejected = 0.0, np.zeros(1, dtype=bool)
    for look, values in enumerate(largest):
        # An assignment begins as that with its number modulo theirs.
        alive = ~np.tile(rejected, values.size // rejected.size)
        share = 1 / values.size
        p = mass + float(np.count_nonzero(alive & (values >= statistic - TIE))) * share
        critical = _critical(values[alive], int((levels[look] - mass) / share + 1e-9))
        chosen = alive & (values >= critical - TIE)
        rejected = ~alive | chosen
        mass += float(np.count_nonzero(chosen)) * share
    return _Family(p, critical)


def _critical(values: Floats, fit: int) -> float:
    """Find the least of the largest values of which, ties together, at most `fit` are that large; inf for none."""
    if fit <= 0 or not values.size:
        return math.inf
    if fit >= values.size:
        return float(values.min())
    first_out = float(np.partition(values, values.size - fit - 1)[values.size - fit - 1])
    above = values[values > first_out + TIE]
    return float(above.min()) if above.size else math.inf


def _stepped_down(
    d: Floats, order: NDArray[np.intp], observed: Floats, families: Sequence[_Family]
) -> list[JointResult]:
    tested: dict[int, JointResult] = {}
    goes_on, p, critical = True, 0.0, math.inf
    for contrast, family, statistics in zip(order, families, _each_flipped(d[:, order]), strict=True):
        statistic = float(observed[contrast])
        p = max(p, family.p)
        if goes_on:
            critical = family.critical
            goes_on = statistic >= critical - TIE
        reached = int(np.count_nonzero(statistics >= critical - TIE))
        tested[int(contrast)] = JointResult(statistic, p, critical, rejected=goes_on, reached=reached)
    return [tested[contrast] for contrast in range(len(order))]


def _statistics(d: Floats) -> Floats:
    """Compute T of each contrast, [m]."""
    statistics: Floats = np.abs(d.sum(axis=0)) / _lengths(d)
    return statistics


def _each_flipped(d: Floats) -> Iterator[Floats]:
    """Yield T of each contrast for every assignment of signs to its differences, the observed one first. Where they are
    drawn, that is done once for TOGETHER contrasts."""
    if len(d) <= EXACT_UP_TO:
        yield from (_sums(column) / length for column, length in zip(d.T, _lengths(d), strict=True))
        return
    for begun in range(0, d.shape[1], TOGETHER):
        some = d[:, begun : begun + TOGETHER]
        sums = np.concatenate([np.abs(signs @ some) for signs in _drawn(len(d))])
        yield from (sums / _lengths(some)).T


def _lengths(d: Floats) -> Floats:
    """Compute the denominator of T of each contrast; 1 where all differences are 0, as the numerator is."""
    lengths: Floats = np.linalg.norm(d, axis=0)
    return np.where(lengths > 0, lengths, 1.0)


def _sums(d: Floats) -> Floats:
    """Compute |sum| for all assignments of signs to the differences of a contrast, of which the first keeps its own."""
    sums = d[:1]
    for value in d[1:]:  # so that the first seeds' signs are the lowest bits of an assignment's number
        sums = np.concatenate([sums + value, sums - value])
    return np.abs(sums)


def _count(seeds: int) -> int:
    return int(2 ** (seeds - 1)) if seeds <= EXACT_UP_TO else DRAWS + 1


def _drawn(seeds: int) -> Iterator[Floats]:
    """Draw assignments, the same for every contrast, the observed one first: [1 + DRAWS, seeds], some at a time."""
    rng = np.random.default_rng(seeds)
    for begun in range(0, DRAWS + 1, AT_ONCE):
        bits = rng.integers(0, 2, size=(min(AT_ONCE, DRAWS + 1 - begun), seeds), dtype=np.int8)
        signs: Floats = np.where(bits, 1.0, -1.0)
        if not begun:
            signs[0] = 1
        yield signs
