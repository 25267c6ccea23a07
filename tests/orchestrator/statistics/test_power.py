"""How many seeds a question takes: against the figures that were asked for, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.statistics import equivalence_p
from orchestrator.statistics.joint import joint_test
from orchestrator.statistics.power import (
    MOST,
    WANTED,
    detectable,
    equivalence_power,
    power,
    seeds_to_exclude,
    seeds_to_find,
    t_test_power,
)

few = settings(deadline=None, max_examples=40)


@pytest.mark.parametrize(
    ("seeds", "effects"),
    [(8, (1.16, 1.52, 1.77)), (10, (1.00, 1.28, 1.46)), (14, (0.82, 1.01, 1.14)), (20, (0.67, 0.81, 0.90))],
)
def test_what_seeds_find_in_one_three_and_seven_contrasts(seeds: int, effects: tuple[float, ...]) -> None:
    """In standard deviations, rounded up. Mutant check: 0.05 in place of 0.04 for several contrasts."""
    found = [detectable(seeds, alpha, contrasts) for alpha, contrasts in ((0.05, 1), (0.04, 3), (0.04, 7))]
    assert [math.ceil(100 * effect) / 100 for effect in found] == list(effects)


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 8), (0.6, 20), (0.0, 6)])
def test_the_power_is_that_of_the_t_test(effect: float, seeds: int) -> None:
    d = np.random.default_rng(seeds).normal(effect, 1, (20_000, seeds))
    found = float(np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue <= 0.05))
    assert t_test_power(effect, seeds, 0.05) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(("room", "seeds"), [(1.0, 12), (0.5, 40)])
def test_the_power_of_equivalence_is_a_bound_from_below_and_close(room: float, seeds: int) -> None:
    d = np.random.default_rng(seeds).normal(0, 1, (4_000, seeds))
    found = float(np.mean([equivalence_p(row, room) <= 0.05 for row in d]))
    assert found - 0.03 <= equivalence_power(room, seeds, 0.05) <= found + 0.02


@few
@given(st.floats(0.02, 5), st.sampled_from([0.05, 0.04 / 3, 0.01 / 7]))
def test_the_fewest_seeds_are_enough_and_one_less_is_not(effect: float, alpha: float) -> None:
    found, excluded = seeds_to_find(effect, alpha), seeds_to_exclude(effect, alpha)
    assert found is not None
    assert excluded is not None
    assert power(effect, found, alpha, 1) >= WANTED > power(effect, found - 1, alpha, 1)
    assert equivalence_power(effect, excluded, alpha) >= WANTED > equivalence_power(effect, excluded - 1, alpha)


@few
@given(st.integers(8, 60), st.sampled_from([(0.05, 1), (0.04, 7)]))
def test_what_seeds_find_takes_that_many_seeds(seeds: int, level: tuple[float, int]) -> None:
    alpha, contrasts = level
    assert t_test_power(detectable(seeds, alpha, contrasts), seeds, alpha / contrasts) == pytest.approx(
        WANTED, abs=1e-6
    )


@pytest.mark.parametrize(("seeds", "contrasts", "alpha"), [(6, 1, 0.05), (7, 1, 0.05), (6, 2, 0.04), (7, 3, 0.04)])
def test_few_seeds_find_what_the_joint_test_finds_with_them(seeds: int, contrasts: int, alpha: float) -> None:
    """Mutant check: the t test, which has no sign patterns, says 1.43 in place of 1.81 for six."""
    effect, rng, found = detectable(seeds, alpha, contrasts), np.random.default_rng(9), 0
    for _ in range(1000):
        d = rng.normal(size=(seeds, contrasts))
        d[:, 0] += effect
        found += joint_test(d, alpha)[0].rejected
    assert found / 1000 == pytest.approx(WANTED, abs=0.04)


@pytest.mark.parametrize(("seeds", "alpha"), [(1, 0.05), (5, 0.05), (5, 0.04), (3, 0.2)])
def test_seeds_that_cannot_reach_the_level_find_nothing(seeds: int, alpha: float) -> None:
    assert detectable(seeds, alpha) == math.inf
    assert power(1e9, seeds, alpha, 1) == 0
    assert (seeds_to_find(1e9, alpha) or 0) > seeds


def test_there_is_a_limit_and_nothing_to_find_in_nothing() -> None:
    assert (detectable(1, 0.05), t_test_power(9, 1, 0.05), equivalence_power(9, 1, 0.05)) == (math.inf, 0, 0)
    assert (seeds_to_find(0.0, 0.05), seeds_to_find(1e-6, 0.05), seeds_to_exclude(0.0, 0.05)) == (None, None, None)
    assert seeds_to_find(-1.0, 0.05) == seeds_to_find(1.0, 0.05) == 10
    assert 70_000 < (seeds_to_find(0.01, 0.05) or 0) < MOST
