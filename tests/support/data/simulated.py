"""Sweeps that were never trained: drawn arms of known truth, and how often the verdicts on them are wrong or right.

Differences have a standard deviation of 1, and all contrasts of a sweep share a baseline, as they do in a sweep. Every
function draws from a fixed seed, so that what it measures is the same on every machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from orchestrator.statistics import (
    ALPHA,
    Alpha,
    Interval,
    bca_interval,
    course,
    either_p,
    equivalence_p,
    holm,
    sign_flip_p,
    t_interval,
    wilson_interval,
)
from orchestrator.statistics.joint import difference_interval, joint_test
from orchestrator.statistics.looks import Looks, Trained
from orchestrator.statistics.numbers import TIE
from orchestrator.statistics.pairing import Measure, Question

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
"""Values [n, m] with mean 0 and a standard deviation of sqrt(0.5)."""


def _normal(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    return rng.standard_normal(size) * math.sqrt(0.5)


def _t3(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    return rng.standard_t(3, size) / math.sqrt(6)


def _exponential(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    return (rng.standard_exponential(size) - 1) * math.sqrt(0.5)


def _half_as_wide(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    return _normal(rng, size) / 2


SHAPES: dict[str, tuple[Draw, Draw]] = {
    "normal": (_normal, _normal),
    "t3": (_t3, _t3),
    "exponential": (_exponential, _exponential),
}
"""How arms and their baseline are distributed."""

UNLIKE: dict[str, tuple[tuple[Draw, Draw], float]] = {
    "exponential, normal baseline": ((_exponential, _normal), 0.064),
    "normal, exponential baseline": ((_normal, _exponential), 0.064),
    "exponential, baseline half as wide": ((_exponential, _half_as_wide), 0.12),
}
"""Arms whose differences to the baseline are not symmetric about their mean, as the joint test assumes, and how often
it is then wrong by its documentation."""


@dataclass(frozen=True)
class Rate:
    """How often something happened."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of

    def exceeds(self, nominal: float, errors: float = 2.0) -> bool:
        """Whether the share is above a nominal one by more than so many of that one's standard errors."""
        return self.share > nominal + errors * math.sqrt(nominal * (1 - nominal) / self.of)

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.count + other.count, self.of + other.of)


def differences(rng: np.random.Generator, shape: tuple[Draw, Draw], n: int, effects: Sequence[float]) -> Floats:
    """Differences [n, m] of arms to the baseline that they share."""
    arm, baseline = shape
    d: Floats = arm(rng, (n, len(effects))) - baseline(rng, (n, 1)) + np.asarray(effects)
    return d


def null_rate(shape: tuple[Draw, Draw], n: int, m: int, *, sweeps: int, alpha: float = 0.05) -> Rate:
    """Sweeps without differences in which the joint test rejects any."""
    rng = np.random.default_rng([1, n, m])
    wrong = 0
    for _ in range(sweeps):
        wrong += any(one.rejected for one in joint_test(differences(rng, shape, n, [0.0] * m), alpha))
    return Rate(wrong, sweeps)


def power_beside_holm(effects: Sequence[float], n: int, *, sweeps: int) -> tuple[float, float]:
    """Mean power over the contrasts that differ: of sign-flip tests adjusted by Holm, and of the joint test."""
    rng, real = np.random.default_rng([2, n]), np.asarray(effects) != 0
    found = np.zeros(2)
    for _ in range(sweeps):
        d = differences(rng, SHAPES["normal"], n, effects)
        by_holm = holm([sign_flip_p(d[:, contrast]) for contrast in range(len(effects))])
        jointly = [one.p for one in joint_test(d, 0.05)]
        found += (np.array([by_holm, jointly])[:, real] <= 0.05).mean(axis=1)
    return float(found[0]) / sweeps, float(found[1]) / sweeps


def equivalence_rate(shape: tuple[Draw, Draw], n: int, *, sweeps: int) -> Rate:
    """Single contrasts of which the true difference, of 1, is the smallest that matters, and that are called equivalent
    at 0.05."""
    rng, wrong = np.random.default_rng([9, n]), 0
    for _ in range(sweeps):
        wrong += equivalence_p(differences(rng, shape, n, [1.0])[:, 0], 1.0) <= ALPHA
    return Rate(wrong, sweeps)


@dataclass(frozen=True)
class Judged:
    """What decides on one contrast."""

    mean: float
    p: float
    """Of the joint test, which decides between better, worse and neither."""

    p_equivalence: float
    """Of the two one-sided t tests by Holm, which are asked first."""

    def claim(self, alpha: Alpha) -> Literal["equivalent", "a_better", "b_better", "inconclusive"]:
        """The verdict at these levels where more is better."""
        if self.p_equivalence <= alpha.equivalence:
            return "equivalent"
        if self.p > alpha.difference:
            return "inconclusive"
        return "a_better" if self.mean > 0 else "b_better"


def judged(d: Floats, smallest_difference: float) -> list[Judged]:
    """What decides on each contrast of a sweep, whose p values are those of any level."""
    jointly = [one.p for one in joint_test(d, ALPHA)]
    equal = holm([equivalence_p(column, smallest_difference) for column in d.T])
    return [Judged(float(mean), *ps) for mean, *ps in zip(d.mean(axis=0), jointly, equal, strict=True)]


def wrong_claims(
    truth: Sequence[float], n: int, smallest_difference: float, levels: Sequence[Alpha], *, sweeps: int
) -> list[Rate]:
    """Sweeps with any wrong claim, under each of several levels: a difference where there is none or to the wrong side,
    or `equivalent` where the true difference, of 0 or more, matters."""
    rng = np.random.default_rng([3, n, len(truth), round(100 * smallest_difference)])
    right = [
        ("inconclusive", "a_better" if effect else "", "equivalent" if effect < smallest_difference else "")
        for effect in truth
    ]
    wrong = np.zeros(len(levels), dtype=int)
    for _ in range(sweeps):
        found = judged(differences(rng, SHAPES["normal"], n, truth), smallest_difference)
        wrong += [any(one.claim(alpha) not in may for one, may in zip(found, right, strict=True)) for alpha in levels]
    return [Rate(int(count), sweeps) for count in wrong]


@dataclass(frozen=True)
class Coverage:
    """How often intervals hold what is true."""

    lowest: float
    """Of the contrast that is covered least."""

    highest: float
    all_at_once: Rate
    """Sweeps in which every interval does."""


def coverage(shape: tuple[Draw, Draw], effects: Sequence[float], n: int, alpha: float, *, sweeps: int) -> Coverage:
    """Coverage of the interval that is printed beside a verdict on a difference; that there is none counts as held."""
    rng, held, whole = np.random.default_rng([4, n, len(effects)]), np.zeros(len(effects)), 0
    present = np.ones(n, dtype=bool)
    for _ in range(sweeps):
        d = differences(rng, shape, n, effects)
        ends = [difference_interval(d[:, k], present, one) for k, one in enumerate(joint_test(d, alpha))]
        here = [_holds(interval, truth) for interval, truth in zip(ends, effects, strict=True)]
        held += here
        whole += all(here)
    return Coverage(float(held.min()) / sweeps, float(held.max()) / sweeps, Rate(whole, sweeps))


def _holds(interval: Interval | None, truth: float) -> bool:
    return interval is None or interval[0] <= truth <= interval[1]


def coverage_of_the_mean(shape: str, n: int, *, sweeps: int, resamples: int) -> tuple[float, float]:
    """Coverage of the 95% t interval and of the BCa interval for the mean of n values of one arm."""
    rng, held = np.random.default_rng([5, n]), np.zeros(2)
    for _ in range(sweeps):
        x = SHAPES[shape][0](rng, (n, 1))[:, 0]
        held += [_holds(t_interval(x), 0.0), _holds(bca_interval(x, resamples=resamples), 0.0)]
    return float(held[0]) / sweeps, float(held[1]) / sweeps


def either_rate(n: int, shared: float, effects: tuple[float, float] = (0.0, 0.0), *, sweeps: int) -> Rate:
    """Sweeps in which two arms are said to differ at either of two settings. shared: correlation of the differences at
    both; effects: the true ones."""
    rng, found = np.random.default_rng([9, n]), 0
    for _ in range(sweeps):
        common, own = rng.standard_normal((n, 1)), rng.standard_normal((n, 2))
        d = math.sqrt(shared) * common + math.sqrt(1 - shared) * own + np.asarray(effects)
        p = either_p(d[:, 0], d[:, 1])
        found += p is not None and p <= ALPHA
    return Rate(found, sweeps)


def coverage_of_rates(n: int) -> tuple[float, float]:
    """Coverage of the 95% Wilson interval, lowest and mean over rates of 0.01, 0.02, ..., 0.99; exact, by the binomial
    distribution."""
    rates = np.arange(1, 100) / 100
    ends = np.array([wilson_interval(count, n) for count in range(n + 1)])
    held = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
    covered = (held * stats.binom.pmf(np.arange(n + 1)[:, None], n, rates)).sum(axis=0)
    return float(covered.min()), float(covered.mean())


MOST_SIGNS = 4_096


def detectable(n: int, m: int, alpha: float, *, sweeps: int) -> float:
    """The effect that is found four times in five in one of m contrasts, to 0.005.

    By the largest statistic over all assignments of signs, or over 4,096 drawn ones where there are more, without
    stepping down: another way than `power` has.
    """
    rng = np.random.default_rng([6, n, m])
    if 2 ** (n - 1) <= MOST_SIGNS:
        signs = np.array([(1.0, *rest) for rest in itertools.product((1.0, -1.0), repeat=n - 1)])
    else:
        signs = rng.choice([-1.0, 1.0], (MOST_SIGNS, n))
        signs[0] = 1
    drawn = [differences(rng, SHAPES["normal"], n, [0.0] * m) for _ in range(sweeps)]
    of_first = np.array([d[:, 0] for d in drawn])
    others = np.array([_largest(d[:, 1:], signs) for d in drawn])
    sums, lean = of_first @ signs.T, signs.sum(axis=1)

    def power(effect: float) -> float:
        first = np.abs(sums + effect * lean) / np.linalg.norm(of_first + effect, axis=1)[:, None]
        reached = np.maximum(first, others) >= first[:, :1] - TIE
        return float(np.mean(reached.mean(axis=1) <= alpha))

    low, high = 0.0, 4.0
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= 0.8 else (middle, high)
    return high


def _largest(d: Floats, signs: Floats) -> Floats:
    """The largest statistic of contrasts [n, m], for each assignment; 0 without any."""
    statistics = np.abs(signs @ d) / np.linalg.norm(d, axis=0)
    largest: Floats = statistics.max(axis=1, initial=0.0)
    return largest


@dataclass(frozen=True)
class Course:
    """What a sweep with looks comes to."""

    wrong: Rate
    """Sweeps with any wrong claim."""

    power: float
    """Mean over the contrasts that differ; 0 without any."""

    seeds: float
    """Mean number of seeds of an arm."""


def looked_at(
    effects: Sequence[float], looks: Sequence[int], levels: Alpha, *, smallest_difference: float = 0.0, sweeps: int
) -> Course:
    """Follow sweeps from look to look: a contrast that is found to differ ends, and the sweep does where no seeds would
    help. effects: each 0, or at least the smallest difference that matters."""
    rng, real = np.random.default_rng([7, len(effects), len(looks)]), np.asarray(effects) != 0
    planned = Looks(
        looks,
        range(looks[-1]),
        (levels.difference, levels.equivalence),
        [Measure(smallest_difference=smallest_difference)],
    )
    names = [str(arm) for arm in range(len(effects))]
    wrong, power, seeds = 0, 0.0, 0.0
    for _ in range(sweeps):
        d = differences(rng, SHAPES["normal"], looks[-1], effects)
        values = {"base": dict.fromkeys(range(looks[-1]), 0.0)}
        values |= {arm: dict(enumerate(column)) for arm, column in zip(names, d.T.tolist(), strict=True)}
        ended = course(Trained(values), [(arm, "base") for arm in names], planned)
        claims = np.array([ended.standing[Question((arm, "base"))].claim for arm in names])
        wrong += bool(((claims == "differs") & ~real | (claims == "equivalent") & real).any())
        power += float(((claims == "differs") & real).sum()) / max(1, int(real.sum()))
        seeds += float(np.mean([ended.due[arm] for arm in names]))
    return Course(Rate(wrong, sweeps), power / sweeps, seeds / sweeps)


def looked_at_by_hand(looks: Sequence[int], *, sweeps: int) -> Rate:
    """Sweeps of one contrast without a difference that is found at any look, each tested at 0.05."""
    rng, wrong = np.random.default_rng(8), 0
    for _ in range(sweeps):
        d = differences(rng, SHAPES["normal"], looks[-1], [0.0])[:, 0]
        wrong += any(sign_flip_p(d[:n]) <= 0.05 for n in looks)
    return Rate(wrong, sweeps)
