"""How many seeds a question takes: known before anything runs, and said where the answer is `inconclusive`.

The power is that of the two-sided t test on paired differences, to which the sign-flip test comes close from eight
seeds on. Assumption: normal differences; `effect` is a difference in units of their standard deviation. As measured by
simulated joint tests of sweeps whose arms share a baseline (8 to 20 seeds, 1, 3 and 7 contrasts, 2,000 sweeps of each):
what is found four times in five lies within 0.03 of `detectable`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import special

from orchestrator.statistics.numbers import TIE, Floats

WANTED = 0.8
"""Power that counts as enough."""

DRAWN = 4_000
"""Draws by which the power of few seeds is known to about 0.006."""

MOST = 100_000
"""Seeds beyond which none are counted."""

LEAST_CHOSEN, MOST_CHOSEN, UNKNOWN = 8, 20, 10
"""Seeds that `enough` chooses: at least, at most, and where it is not known what they would find."""


def t_test_power(effect: float, seeds: int, alpha: float) -> float:
    """Compute the power of the two-sided t test of so many paired differences; 0 below two seeds."""
    if seeds < 2:
        return 0.0
    df, centre = seeds - 1, abs(effect) * math.sqrt(seeds)
    edge = float(special.stdtrit(df, 1 - alpha / 2))
    below = float(special.nctdtr(df, centre, -edge))
    return 1 - float(special.nctdtr(df, centre, edge)) + (0.0 if math.isnan(below) else below)  # nan: too little to say


def equivalence_power(room: float, seeds: int, alpha: float) -> float:
    """Compute the power of two one-sided t tests where there is no difference, from below; 0 below two seeds.

    room: the smallest difference that matters, in standard deviations. From below, as both tests reject at least as
    often as the sum of their powers exceeds 1.
    """
    if seeds < 2:
        return 0.0
    edge = float(special.stdtrit(seeds - 1, 1 - alpha))
    return max(0.0, 1 - 2 * float(special.nctdtr(seeds - 1, room * math.sqrt(seeds), edge)))


def power(effect: float, seeds: int, alpha: float, contrasts: int) -> float:
    """Compute the power of the joint test for one real difference among so many contrasts, at the family's level.

    From LEAST_CHOSEN seeds on that of the t test at alpha / contrasts, which it is close to and mostly above; below,
    where there are few sign patterns, by 4,000 draws from a fixed seed, of independent contrasts. 0 where seeds cannot
    reach the level at all.
    """
    if smallest_p(seeds) > alpha:
        return 0.0
    if seeds >= LEAST_CHOSEN:
        return t_test_power(effect, seeds, alpha / contrasts)
    noise, critical = _few(seeds, alpha, contrasts)
    d = noise + abs(effect)
    return float(np.mean(np.abs(d.sum(1)) / np.linalg.norm(d, axis=1) >= critical(d) - TIE))


@lru_cache(maxsize=8)
def _few(seeds: int, alpha: float, contrasts: int) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Draw the differences of few seeds, [DRAWN, seeds], and return what finds the critical value of the largest
    statistic where the other contrasts have none."""
    rng = np.random.default_rng(seeds)
    noise: Floats = rng.normal(size=(DRAWN, seeds))
    signs = np.array([(1.0, *rest) for rest in itertools.product((1.0, -1.0), repeat=seeds - 1)])
    others = np.zeros((DRAWN, len(signs)))
    for _ in range(contrasts - 1):
        other = rng.normal(size=(DRAWN, seeds))
        np.maximum(others, np.abs(other @ signs.T) / np.linalg.norm(other, axis=1)[:, None], out=others)
    fit = int(alpha * len(signs) + 1e-9)

    def critical(d: Floats) -> Floats:
        largest = np.maximum(others, np.abs(d @ signs.T) / np.linalg.norm(d, axis=1)[:, None])
        least: Floats = np.sort(largest, axis=1)[:, -fit]
        return least

    return noise, critical


@lru_cache(maxsize=64)
def detectable(seeds: int, alpha: float, contrasts: int = 1) -> float:
    """Find the effect that so many seeds find with a power of 0.8 in one of so many contrasts, at the family's level;
    inf where they cannot reach the level at all."""
    if seeds < 2 or smallest_p(seeds) > alpha:
        return math.inf
    low, high = 0.0, 1.0
    while power(high, seeds, alpha, contrasts) < WANTED:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, seeds, alpha, contrasts) >= WANTED else (middle, high)
    return high


def smallest_p(seeds: int) -> float:
    """Compute 2^(1 - seeds), 1 at most: an exact sign-flip test goes no lower, whatever the number of contrasts."""
    return min(1.0, 2.0 ** (1 - seeds))


def fewest_seeds(alpha: float) -> int:
    """Find the fewest seeds that can reach a level at all, if every one of them agrees."""
    return next(seeds for seeds in itertools.count(2) if smallest_p(seeds) <= alpha)


def enough_seeds(needed: int | None) -> int:
    """Choose a number of seeds. needed: those that find the smallest difference that matters; None: not known."""
    return UNKNOWN if needed is None else min(max(needed, LEAST_CHOSEN), MOST_CHOSEN)


def seeds_to_find(effect: float, alpha: float, contrasts: int = 1) -> int | None:
    """Find the fewest seeds that find an effect with a power of 0.8, at the family's level; None beyond MOST, and for
    no effect."""
    return _fewest(lambda seeds: power(effect, seeds, alpha, contrasts)) if effect else None


def seeds_to_exclude(room: float, alpha: float) -> int | None:
    """Find the fewest seeds that show, with a power of 0.8, that no difference is one that matters, where there is
    none; None beyond MOST."""
    return _fewest(lambda seeds: equivalence_power(room, seeds, alpha)) if room > 0 else None


def _fewest(power: Callable[[int], float]) -> int | None:
    """Find the fewest seeds with a power of 0.8, which grows with them."""
    low, high = 1, 2
    while power(high) < WANTED:
        if high == MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= WANTED else (middle, high)
    return high
