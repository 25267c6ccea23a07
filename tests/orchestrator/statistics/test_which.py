"""Which level is best, and what is described beside a verdict: against brute force, scipy, and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from orchestrator.statistics.described import is_worse_than_untrained, mcnemar_p, outlying
from orchestrator.statistics.joint import joint_test
from orchestrator.statistics.numbers import Floats
from orchestrator.statistics.which import beaten_p, interaction_p


def by_hand(x: Floats, level: int) -> float:
    """Count over all assignments, one level and one pair at a time."""
    n, levels = x.shape
    statistics = []
    for signs in itertools.product((1, -1), repeat=n):
        own = []
        for other in range(levels):
            if other != level and np.any(x[:, other] != x[:, level]):
                d = x[:, other] - x[:, level]
                own.append(float(np.dot(signs, d) / np.sqrt(np.dot(d, d))))
        statistics.append(max(own, default=0.0))
    return float(np.mean([statistic >= statistics[0] - 1e-12 for statistic in statistics]))


@given(st.integers(2, 6), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=25)
def test_it_is_what_counting_by_hand_gives(n: int, levels: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, levels))
    np.testing.assert_allclose(beaten_p(x), [by_hand(x, level) for level in range(levels)], rtol=0, atol=1e-12)


@given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(-10, 10))
@settings(max_examples=25)
def test_it_knows_neither_scale_nor_what_a_seed_brings_to_all_levels(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(7, 3))
    np.testing.assert_allclose(beaten_p(x), beaten_p(scale * x + shift + rng.normal(size=(7, 1))), atol=1e-9)


def test_a_clear_best_level_beats_the_others_and_nothing_beats_it() -> None:
    x = np.random.default_rng(0).normal(size=(9, 4)) + np.array([0, 0, 5, 0])
    p = beaten_p(x)
    assert p[2] > 0.5
    assert max(p[0], p[1], p[3]) <= 2**-8
    assert beaten_p(np.zeros((9, 3))) == [1.0] * 3
    assert beaten_p(np.zeros((0, 3))) == [1.0] * 3
    assert beaten_p(x[:, :1]) == [1.0]
    with pytest.raises(ValueError, match="finite"):
        beaten_p(np.array([[np.nan, 1.0]]))


def test_the_best_level_is_lost_as_often_as_the_level_says() -> None:
    """600 sweeps of four levels that are equally good, of which any may be called the best. Mutant check: the two-sided
    statistic, or a test of each pair at the level."""
    rng, lost = np.random.default_rng(3), 0
    for _ in range(600):
        lost += beaten_p(rng.normal(size=(8, 4)))[0] <= 0.05
    assert 0.025 <= lost / 600 <= 0.075


def test_many_seeds_are_drawn_and_agree_with_counting() -> None:
    x = np.random.default_rng(1).normal(size=(18, 3)) + np.array([0, 0.4, 0.7])
    drawn = beaten_p(x)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=17)))
    d = np.delete(x - x[:, [0]], 0, axis=1)
    d /= np.linalg.norm(d, axis=0)
    exact = np.mean(
        np.concatenate([(sign * d[0] + signs @ d[1:]).max(axis=1) for sign in (1, -1)]) >= d.sum(0).max() - 1e-12
    )
    assert drawn[0] == pytest.approx(exact, abs=0.004)


def test_an_effect_that_depends_on_the_stratum_is_seen_and_one_that_does_not_is_not() -> None:
    rng = np.random.default_rng(2)
    alike = [rng.normal(size=(10, 3)) + np.array([0, 1, 2]) for _ in range(2)]
    turned = [alike[0], alike[1] + np.array([0, 6, 0])]
    assert (interaction_p(alike) or 0) > 0.05
    assert (interaction_p(turned) or 1) < 0.01
    d = (turned[1][:, 1:] - turned[1][:, :1]) - (turned[0][:, 1:] - turned[0][:, :1])
    assert interaction_p(turned) == min(one.p for one in joint_test(d, 0.05))
    assert interaction_p(alike[:1]) is None


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_sign_test_of_discordant_seeds(only_a: int, only_b: int) -> None:
    p, n = mcnemar_p(only_a, only_b), only_a + only_b
    if n == 0:
        assert p is None
        return
    least = min(only_a, only_b)
    assert p == pytest.approx(min(1.0, 2 * float(stats.binom.cdf(least, n, 0.5))), abs=1e-12)


def test_a_seed_far_from_the_others_is_named_and_one_of_few_never() -> None:
    """Where most are equal the median distance is 0, and what is not equal is further than five of it."""
    near = dict(enumerate([0.10, 0.11, 0.12, 0.09, 0.10, 0.105]))
    assert outlying(near) == []
    assert outlying(near | {17: 0.9}) == [17]
    assert outlying(dict(list(near.items())[:4]) | {17: 0.9}) == []
    assert outlying(dict.fromkeys(range(8), 0.1) | {17: 0.9}) == [17]
    assert outlying(dict(enumerate([0.0] * 6 + [0.5]))) == [6]
    assert outlying(dict(enumerate([0.3] * 6 + [0.1 + 0.2]))) == [], "rounding is no distance"
    assert outlying(dict.fromkeys(range(8), 0.1)) == []
    assert outlying({}) == []


def test_training_that_made_an_arm_worse_is_seen_in_the_direction_of_the_metric() -> None:
    assert is_worse_than_untrained([-0.10, -0.12, -0.11], "max")
    assert not is_worse_than_untrained([-0.10, -0.12, -0.11], "min")
    assert is_worse_than_untrained([0.10, 0.12, 0.11], "min")
    assert not is_worse_than_untrained([-0.10, 0.12, -0.11], "max")
    assert not is_worse_than_untrained([-0.10], "max")
