"""How many seeds a question takes: known before anything runs, and said where the answer is `inconclusive`.

The power is that of the two-sided t test on paired differences, to which the sign-flip test comes close from eight
seeds on. Assumption: normal differences; `effect` is a difference in units of their standard deviation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from scipy import special

WANTED = 0.8
"""Power that counts as enough."""

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


def detectable(seeds: int, alpha: float) -> float:
    """Find the effect that so many seeds find with a power of 0.8; inf below two seeds."""
    if seeds < 2:
        return math.inf
    low, high = 0.0, 1.0
    while t_test_power(high, seeds, alpha) < WANTED:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if t_test_power(middle, seeds, alpha) >= WANTED else (middle, high)
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


def seeds_to_find(effect: float, alpha: float) -> int | None:
    """Find the fewest seeds that find an effect with a power of 0.8; None beyond MOST, and for no effect."""
    return _fewest(lambda seeds: t_test_power(effect, seeds, alpha)) if effect else None


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
