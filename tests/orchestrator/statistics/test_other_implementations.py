"""The statistics against scipy and statsmodels, and against what is counted out by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from orchestrator.statistics import equivalence_p, holm, paired_t_p, t_interval, wilson_interval
from orchestrator.statistics.joint import JointResult, difference_interval, joint_test
from orchestrator.statistics.power import power, seeds_to_find, t_test_power

few = settings(deadline=None, max_examples=40)
whole = st.integers(-9, 9)


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(ps: list[float]) -> None:
    _, theirs, *_ = multipletests(ps, method="holm")
    assert holm(ps) == pytest.approx(theirs, abs=1e-15)


@pytest.mark.parametrize(("n", "room"), [(2, 1.0), (6, 0.2), (9, 1.5), (40, 0.3)])
def test_equivalence_is_that_of_statsmodels(n: int, room: float) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.1, 1, n), rng.normal(0, 1, n)
    theirs, *_ = ttost_paired(a, b, -room, room)
    assert equivalence_p(a - b, room) == pytest.approx(theirs, rel=1e-9)


@few
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_the_interval_of_a_rate_is_that_of_statsmodels(counted: tuple[int, int], level: float) -> None:
    theirs = proportion_confint(*counted, alpha=1 - level, method="wilson")
    assert wilson_interval(*counted, level=level) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(
    ("effect", "n", "alpha"), [(1.0, 8, 0.05), (-0.67, 20, 0.05), (1.77, 8, 0.04 / 7), (0.1, 3, 0.01)]
)
def test_the_power_of_the_t_test_is_that_of_scipy_and_statsmodels(effect: float, n: int, alpha: float) -> None:
    theirs = TTestPower().power(abs(effect), n, alpha)
    edge, lean = stats.t(n - 1).isf(alpha / 2), abs(effect) * np.sqrt(n)
    noncentral = stats.nct(n - 1, lean)
    assert t_test_power(effect, n, alpha) == pytest.approx(theirs, abs=1e-6)
    assert t_test_power(effect, n, alpha) == pytest.approx(noncentral.sf(edge) + noncentral.cdf(-edge), abs=1e-6)


@pytest.mark.parametrize(("effect", "alpha"), [(1.0, 0.05), (0.5, 0.05), (0.3, 0.01)])
def test_the_fewest_seeds_are_what_statsmodels_solves_for(effect: float, alpha: float) -> None:
    theirs = TTestPower().solve_power(effect_size=effect, alpha=alpha, power=0.8)
    assert seeds_to_find(effect, alpha) == int(np.ceil(theirs))
    assert power(effect, int(theirs), alpha, 1) < 0.8


@pytest.mark.parametrize(("n", "m"), [(6, 3), (9, 1), (9, 5)])
def test_the_joint_p_is_that_of_scipys_permutations_of_the_largest_statistic(n: int, m: int) -> None:
    """scipy flips a vector of ones, whose signs all contrasts have. Step by step: the family without its largest."""
    d = np.random.default_rng([n, m]).normal(0.5, 1, (n, m))
    family = list(np.argsort(-np.abs(d.sum(0)) / np.linalg.norm(d, axis=0)))
    tested, reached = joint_test(d, 0.05), 0.0
    while family:
        own = d[:, family]

        def largest(signs: np.ndarray, axis: int = -1, own: np.ndarray = own) -> np.ndarray:
            flipped = np.tensordot(np.moveaxis(signs, axis, -1), own, 1)
            return np.asarray((np.abs(flipped) / np.linalg.norm(own, axis=0)).max(axis=-1))

        theirs = stats.permutation_test(
            [np.ones(n)], largest, permutation_type="samples", alternative="greater", n_resamples=2**n, vectorized=True
        )
        reached = max(reached, float(theirs.pvalue))
        assert tested[family.pop(0)].p == pytest.approx(reached, rel=1e-12)


@few
@given(st.lists(whole, min_size=2, max_size=9), st.data())
def test_the_interval_is_made_of_typical_values(d: list[int], data: st.DataObject) -> None:
    """Hartigan 1969: the K-th smallest and the K-th largest of the 2^n - 1 means of non-empty subsets, in fractions.
    Mutant checks: the empty subset too; the (K + 1)-th."""
    subsets = itertools.chain.from_iterable(itertools.combinations(d, size) for size in range(1, len(d) + 1))
    means = sorted(Fraction(sum(subset), len(subset)) for subset in subsets)
    reached = data.draw(st.integers(1, 2 ** (len(d) - 1)))
    tested = JointResult(1.0, 0.5, 1.0, rejected=False, reached=reached)
    ends = difference_interval(np.array(d, dtype=float), np.ones(len(d), dtype=bool), tested)
    assert ends == pytest.approx((float(means[reached - 1]), float(means[-reached])), abs=1e-12)


@pytest.mark.parametrize(("n", "effect"), [(2, 0.3), (6, 0.0), (10, 0.8), (40, -0.4)])
def test_the_paired_t_test_is_that_of_scipy_and_its_interval_leaves_out_0_with_it(n: int, effect: float) -> None:
    rng = np.random.default_rng(n)
    d = rng.normal(effect, 1, n)
    theirs = stats.ttest_1samp(d, 0.0)
    p, ends = paired_t_p(d), t_interval(d)
    assert p is not None
    assert p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ends is not None
    assert (p <= 0.05) == (ends[0] > 0 or ends[1] < 0)
