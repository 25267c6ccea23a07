"""How often what stands beside the verdicts is wrong, or holds what is true: drawn values of known truth.

As in simulated.py differences have a standard deviation of 1, and every function draws from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from simulated import SHAPES, Rate, differences

from orchestrator.statistics import (
    ALPHA,
    Looks,
    Measure,
    Trained,
    beaten_p,
    course,
    equivalence_p,
    holm,
    interaction_p,
    is_worse_than_untrained,
    mcnemar_p,
    one_sided_p,
    outlying,
    sign_flip_p,
    t_interval,
)
from orchestrator.statistics.joint import joint_test
from orchestrator.statistics.rows import RowVariance, between, interval, of_means

Floats = NDArray[np.float64]


def outlying_rate(shape: str, n: int, *, sweeps: int) -> Rate:
    """Contrasts of which any seed is named, though all are drawn alike."""
    rng, named = np.random.default_rng([20, n]), 0
    for _ in range(sweeps):
        named += bool(outlying(dict(enumerate(differences(rng, SHAPES[shape], n, [0.0])[:, 0]))))
    return Rate(named, sweeps)


def worse_rate(shape: str, n: int, *, sweeps: int) -> Rate:
    """Arms that are said to be worse than untrained, though training changes nothing on average."""
    rng, said = np.random.default_rng([21, n]), 0
    for _ in range(sweeps):
        said += is_worse_than_untrained(SHAPES[shape][0](rng, (n, 1))[:, 0].tolist(), "max")
    return Rate(said, sweeps)


def mcnemar_rate(discordant: int) -> float:
    """How often McNemar's p is at most 0.05 where both arms diverge equally often; exact."""
    of_each = np.array([stats.binom.pmf(count, discordant, 0.5) for count in range(discordant + 1)])
    rejected = [(mcnemar_p(count, discordant - count) or 1.0) <= ALPHA for count in range(discordant + 1)]
    return float(of_each[rejected].sum())


def one_sided_rate(shape: str, n: int, alpha: float, *, sweeps: int) -> Rate:
    """Arms without a difference that are kept at a level."""
    rng, kept = np.random.default_rng([22, n]), 0
    for _ in range(sweeps):
        kept += one_sided_p(differences(rng, SHAPES[shape], n, [0.0])[:, 0]) <= alpha
    return Rate(kept, sweeps)


def holm_rate(m: int, *, sweeps: int) -> Rate:
    """Sweeps of m contrasts without a difference of 12 seeds in which a sign-flip p by Holm is at most 0.05."""
    rng, wrong = np.random.default_rng([23, m]), 0
    for _ in range(sweeps):
        d = differences(rng, SHAPES["normal"], 12, [0.0] * m)
        wrong += min(holm([sign_flip_p(column) for column in d.T])) <= ALPHA
    return Rate(wrong, sweeps)


def equals_rate(m: int, *, sweeps: int) -> Rate:
    """Sweeps of m contrasts of 8 seeds that differ by the smallest difference that matters, any called equivalent."""
    rng, wrong = np.random.default_rng([27, m]), 0
    for _ in range(sweeps):
        d = differences(rng, SHAPES["normal"], 8, [1.0] * m)
        wrong += min(holm([equivalence_p(column, 1.0) for column in d.T])) <= ALPHA
    return Rate(wrong, sweeps)


def stepped_equivalence_rate(n: int, step: float, alpha: float, *, sweeps: int) -> Rate:
    """Contrasts that differ by the smallest difference that matters, of 1, and are called equivalent, where a metric
    has only every so many standard deviations a value, so that few seeds often differ equally."""
    rng, wrong = np.random.default_rng([26, n]), 0
    for _ in range(sweeps):
        wrong += equivalence_p(np.round(rng.normal(1, 1, n) / step) * step, 1.0) <= alpha
    return Rate(wrong, sweeps)


def interaction_rate(shape: str, n: int, levels: int, strata: int, *, sweeps: int) -> Rate:
    """Sweeps whose levels differ in the same way in every stratum, with an interaction at 0.05."""
    rng, wrong = np.random.default_rng([24, n, levels, strata]), 0
    for _ in range(sweeps):
        p = interaction_p([SHAPES[shape][0](rng, (n, levels)) for _ in range(strata)])
        wrong += p is not None and p <= ALPHA
    return Rate(wrong, sweeps)


def settings_part(settings: int, each: int, size: float, *, sweeps: int) -> tuple[float, float]:
    """Of seeds that share settings, whose effects have `size` standard deviations of a seed: the share of sweeps in
    which the part of settings is 0, and its mean, times the number of settings."""
    rng, labels = np.random.default_rng([25, settings]), np.repeat(range(settings), each).tolist()
    found = []
    for _ in range(sweeps):
        effects = np.repeat(size * rng.standard_normal(settings), each)
        found.append(between((effects + rng.standard_normal(settings * each)).tolist(), labels) or 0.0)
    return float(np.mean(np.array(found) == 0)), settings * float(np.mean(found))


def lost_best_rate(shape: str, n: int, levels: int, *, sweeps: int) -> Rate:
    """Sweeps of equally good levels in which a given one, as good as any, is said to be beaten."""
    rng, lost = np.random.default_rng([28, n]), 0
    for _ in range(sweeps):
        lost += beaten_p(SHAPES[shape][0](rng, (n, levels)))[0] <= ALPHA
    return Rate(lost, sweeps)


def dropping_rate(m: int, looks: Sequence[int], *, sweeps: int) -> Rate:
    """Sweeps without a difference in which one is found, where after each look the contrasts that seem to lose, of a
    statistic below 1, are dropped from the family: what looks.py does not do."""
    rng, wrong = np.random.default_rng([7, m]), 0
    for _ in range(sweeps):
        d, family = differences(rng, SHAPES["normal"], looks[-1], [0.0] * m), list(range(m))
        for taken, n in enumerate(looks, 1):
            tested = joint_test(d[:n, family], ALPHA, looks=looks, taken=taken)
            if any(one.rejected for one in tested):
                wrong += 1
                break
            family = [contrast for contrast, one in zip(family, tested, strict=True) if one.statistic >= 1]
            if not family:
                break
    return Rate(wrong, sweeps)


# Other rows

RowsDraw = Callable[[], tuple[Floats, RowVariance | None]]
"""Draws the differences of the seeds, of which 0 is the truth, and what is known of their rows."""


def normal_rows(rng: np.random.Generator, n: int, ratio: float) -> RowsDraw:
    """Differences of n seeds on 200 rows; the error by rows is `ratio` of that by seeds."""

    def draw() -> tuple[Floats, RowVariance | None]:
        x = _by_row(rng, n, ratio)
        return x.mean(1), of_means(x.mean(0))

    return draw


def _by_row(rng: np.random.Generator, n: int, ratio: float) -> Floats:
    """Differences [n, 200], seed by row."""
    seeds, rows = rng.normal(size=(n, 1)), rng.normal(size=(1, 200)) * ratio * math.sqrt(200)
    x: Floats = seeds + rows + rng.normal(size=(n, 200)) * 0.1
    return x


def grouped_rows(rng: np.random.Generator, n: int, size: int) -> RowsDraw:
    """Right or wrong on 400 rows in groups, whose ease either arm shares but for a part; both are as good."""

    def draw() -> tuple[Floats, RowVariance | None]:
        groups = np.repeat(np.arange(400 // size), size)
        ease = rng.normal(size=400 // size)
        bits = [
            rng.random((n, 400))
            < special.ndtr(1.3 + ease + 0.35 * rng.normal(size=len(ease)) + 0.03 * rng.normal(size=(n, 1)))[:, groups]
            for _ in range(2)
        ]
        x = bits[0].astype(float) - bits[1]
        return x.mean(1), of_means(x.mean(0), groups)

    return draw


@dataclass(frozen=True)
class RowsCoverage:
    """How often an interval has in it what is true of all rows."""

    on_other_rows: Rate
    """The interval of rows.py."""

    by_seeds: Rate
    """The t interval of the seeds alone."""

    not_rejected: Rate
    """Sweeps in which the joint test, of seeds alone, does not find a difference."""


def rows_coverage(draw: RowsDraw, *, sweeps: int) -> RowsCoverage:
    """How often the interval has 0 in it, which is the truth; and that by seeds alone."""
    hits = np.zeros(3, dtype=int)
    for _ in range(sweeps):
        d, known = draw()
        whole, seeds = interval(d, known or RowVariance(0, 2, 2), 0.95), t_interval(d)
        assert whole is not None
        assert seeds is not None
        rejected = joint_test(d[:, None], ALPHA)[0].rejected
        hits += [whole[0] <= 0 <= whole[1], seeds[0] <= 0 <= seeds[1], not rejected]
    return RowsCoverage(*(Rate(int(count), sweeps) for count in hits))


def two_way_bootstrap_coverage(n: int, ratio: float, *, sweeps: int, resamples: int = 400) -> Rate:
    """How often a percentile interval of seeds and rows that are drawn again, both at once, has 0 in it: what rows.py
    does not do."""
    rng, held = np.random.default_rng([29, n]), 0
    for _ in range(sweeps):
        x = _by_row(rng, n, ratio)
        seeds = rng.multinomial(n, [1 / n] * n, size=resamples) / n
        rows = rng.multinomial(200, [1 / 200] * 200, size=resamples) / 200
        low, high = np.quantile(((seeds @ x) * rows).sum(1), [0.025, 0.975])
        held += bool(low <= 0 <= high)
    return Rate(held, sweeps)


def several_metrics_rate(n: int, metrics: int, correlation: float, looks: Sequence[int] = (), *, sweeps: int) -> Rate:
    """Sweeps with a claim of a difference by any of so many metrics, so correlated, at 0.05: three contrasts with a
    baseline, without any difference."""
    rng, count = np.random.default_rng([n, metrics, len(looks)]), 0
    mixed = np.linalg.cholesky(correlation + (1 - correlation) * np.eye(metrics))
    contrasts = [(arm, "base") for arm in "abc"]
    for _ in range(sweeps):
        x = rng.normal(size=(4, n, metrics)) @ mixed.T  # arm, seed, metric
        if looks:
            measures = [Measure(str(k), ("max", "min")[k % 2]) for k in range(metrics)]
            by = [{arm: dict(enumerate(x[k, :, m])) for k, arm in enumerate(("base", *"abc"))} for m in range(metrics)]
            planned = Looks(looks, range(n), (0.05, 0.05), measures)
            ended = course(Trained(by[0], further={str(m): by[m] for m in range(1, metrics)}), contrasts, planned)
            count += any(one.claim == "differs" for one in ended.standing.values())
        else:  # the test that `compare_by` asks
            columns = (x[1:] - x[0]).transpose(1, 2, 0).reshape(n, -1)
            count += any(one.rejected for one in joint_test(columns, 0.05))
    return Rate(count, sweeps)
