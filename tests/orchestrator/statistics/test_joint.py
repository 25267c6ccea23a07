"""The joint test against brute force over all signs, against what must hold for any data, and by simulation."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.statistics import sign_flip_p
from orchestrator.statistics.joint import EXACT_UP_TO, JointResult, difference_interval, joint_test, spent
from orchestrator.statistics.tests import DRAWS

few = settings(deadline=None, max_examples=60)

Table = list[list[int]]


@st.composite
def tables(draw: st.DrawFn, seeds: int = 8, contrasts: int = 4) -> Table:
    """Whole numbers, so that ties are real ties; some rows and columns of zeros."""
    n, m = draw(st.integers(1, seeds)), draw(st.integers(1, contrasts))
    cell = st.one_of(st.just(0), st.integers(-5, 5), st.integers(1, 5))
    return draw(st.lists(st.lists(cell, min_size=m, max_size=m), min_size=n, max_size=n))


def square(column: list[int]) -> Fraction:
    """T squared, exactly."""
    below = sum(x * x for x in column)
    return Fraction(sum(column) ** 2, below) if below else Fraction(0)


def flipped(table: Table, signs: tuple[int, ...], contrast: int) -> list[int]:
    return [sign * row[contrast] for sign, row in zip(signs, table, strict=False)]


def oracle(table: Table, looks: list[int], levels: list[float]) -> list[tuple[float, bool]]:
    """p and rejection of each contrast, by definition: sets of assignments, one look after the other, in fractions."""
    n, m = len(table), len(table[0])
    everything = [(1, *rest) for rest in itertools.product((1, -1), repeat=n - 1)]
    observed = [square([row[j] for row in table]) for j in range(m)]
    family, result = sorted(range(m), key=lambda j: -observed[j]), dict[int, tuple[float, bool]]()
    worst, goes_on = 0.0, True
    while family:
        gone: set[tuple[int, ...]] = set()
        critical: Fraction | None = None
        p = 0.0
        for seeds, level in zip(looks, levels, strict=True):
            prefixes = {signs[:seeds] for signs in everything} - {signs[:seeds] for signs in gone}
            largest = {signs: max(square(flipped(table, signs, j)) for j in family) for signs in prefixes}
            alive = [signs for signs in everything if signs not in gone]
            top = family[0]
            p = (len(gone) + sum(largest[signs[:seeds]] >= observed[top] for signs in alive)) / len(everything)
            critical, chosen = None, set[tuple[int, ...]]()
            for value in sorted(set(largest.values()), reverse=True):
                wider = {signs for signs in alive if largest[signs[:seeds]] >= value}
                if len(gone | wider) > level * len(everything) + 1e-9:
                    break
                critical, chosen = value, wider
            gone |= chosen
        worst = max(worst, p)
        goes_on = goes_on and critical is not None and observed[family[0]] >= critical
        result[family[0]] = worst, goes_on
        family = family[1:]
    return [result[j] for j in range(m)]


@few
@given(tables(), st.sampled_from([0.05, 0.04, 0.2, 0.5]))
def test_one_look_is_the_largest_statistic_over_all_signs(table: Table, alpha: float) -> None:
    """Mutant checks: signs of its own for each contrast, no step-down, p without its running maximum."""
    tested = joint_test(table, alpha)
    expected = oracle(table, [len(table)], [alpha])
    assert [one.p for one in tested] == [p for p, _ in expected]
    assert [one.rejected for one in tested] == [rejected for _, rejected in expected]


@few
@given(tables(seeds=9, contrasts=3), st.data())
def test_looks_reject_what_fits_and_make_earlier_sets_anew(table: Table, data: st.DataObject) -> None:
    """Mutant checks: the same alpha at each look, counting what an earlier look has rejected again, sets of the first
    family for the later ones."""
    n = len(table)
    earlier = data.draw(st.lists(st.integers(1, max(1, n - 1)), max_size=2, unique=True).map(sorted))
    looks = [seeds for seeds in earlier if seeds < n] + [n]
    later = data.draw(st.lists(st.integers(n + 1, n + 4), max_size=1))
    tested = joint_test(table, 0.3, looks=[*looks, *later], taken=len(looks))
    levels = spent(0.3, [*looks, *later])[: len(looks)]
    expected = oracle(table, looks, levels)
    np.testing.assert_allclose([one.p for one in tested], [p for p, _ in expected], atol=1e-12)
    assert [one.rejected for one in tested] == [rejected for _, rejected in expected]
    assert all(one.p <= levels[-1] + 1e-12 for one in tested if one.rejected)


@few
@given(st.lists(st.integers(-40, 40).map(lambda k: k / 100), min_size=1, max_size=9))
def test_one_contrast_is_the_plain_sign_flip_test(d: list[float]) -> None:
    (tested,) = joint_test(np.array(d)[:, None], 0.05)
    assert tested.p == sign_flip_p(d)
    assert tested.rejected == (tested.p <= 0.05)


@few
@given(tables(), st.randoms(use_true_random=False))
def test_neither_order_nor_scale_nor_sign_of_a_contrast_matters(table: Table, random: object) -> None:
    d = np.array(table, dtype=float)
    rng = np.random.default_rng(d.size)
    rows, columns = rng.permutation(len(d)), rng.permutation(d.shape[1])
    tested = joint_test(d, 0.2)
    other = joint_test((d * rng.choice([-3.0, 0.5, 7.0], d.shape[1]))[rows][:, columns], 0.2)
    assert [(tested[j].p, tested[j].rejected) for j in columns] == [(one.p, one.rejected) for one in other]


def means_between(d: NDArray[np.float64], tested: JointResult) -> tuple[float, float] | None:
    return difference_interval(d, np.ones(len(d), dtype=bool), tested)


@few
@given(tables(seeds=9, contrasts=3), st.sampled_from([0.05, 0.2, 0.3]))
def test_nought_is_outside_of_the_interval_if_and_only_if_the_contrast_is_rejected(table: Table, alpha: float) -> None:
    d = np.array(table, dtype=float)
    for contrast, one in enumerate(joint_test(d, alpha)):
        ends = means_between(d[:, contrast], one)
        if ends is None:
            assert not one.rejected
        else:
            assert (ends[0] > 1e-12 or ends[1] < -1e-12) == one.rejected


@few
@given(st.lists(st.floats(-1, 1), min_size=5, max_size=9), st.floats(-1, 1))
def test_the_interval_holds_every_mean_that_the_same_count_would_not_have_rejected(d: list[float], mean: float) -> None:
    """One contrast: the test of any other mean. Mutant check: the (K + 1)-th mean."""
    values = np.array(d)
    (tested,) = joint_test(values[:, None], 0.2)
    ends = means_between(values, tested)
    (about,) = joint_test((values - mean)[:, None], 0.2)
    if ends is not None and min(abs(mean - end) for end in ends) > 1e-9 and np.isfinite(about.critical):
        assert (ends[0] < mean < ends[1]) == (sign_flip_p(values - mean) > tested.reached / 2 ** (len(d) - 1))


def test_the_interval_of_a_contrast_that_lacks_pairs_is_of_those_it_has() -> None:
    rng = np.random.default_rng(3)
    d = np.zeros((10, 2))
    d[:, 0], d[:7, 1] = rng.normal(0.8, 1, 10), rng.normal(2, 0.3, 7)
    present = np.array([True] * 7 + [False] * 3)
    tested = joint_test(d, 0.05)[1]
    ends = difference_interval(d[:, 1], present, tested)
    assert tested.rejected
    assert ends is not None
    assert 0 < ends[0] < d[:7, 1].mean() < ends[1]
    alone = joint_test(d[:7, 1:], 0.05)[0]
    assert tested.reached % 2**3 == 0
    assert alone.reached >= tested.reached >> 3


def test_a_contrast_that_alone_reaches_nothing_gets_the_statistic_inverted() -> None:
    """Two seeds of fifteen: no sign of theirs gives what the family asks for, and c^2 >= n leaves nothing to say."""
    rng = np.random.default_rng(0)
    d = np.zeros((12, 2))
    d[:, 0], d[:6, 1] = rng.normal(0, 1, 12), [1.0, 1.1, 0.9, 1.2, 1.0, 0.8]
    present = np.arange(12) < 6
    wide = JointResult(2.0, 0.1, 2.3, rejected=False, reached=0)
    ends = difference_interval(d[:, 1], present, wide)
    assert ends is not None
    c, n, s = 2.3, 6, np.std(d[:6, 1], ddof=1)
    assert ends[1] - ends[0] == pytest.approx(2 * c * math.sqrt((n - 1) / (n - c * c)) * s / math.sqrt(n))
    assert difference_interval(d[:, 1], present, JointResult(2.0, 0.1, 2.5, rejected=False, reached=0)) is None
    assert difference_interval(d[:, 1], present, JointResult(2.0, 0.1, math.inf, rejected=False, reached=0)) is None


def test_an_interval_with_no_room_is_none_and_no_huge_number() -> None:
    """c^2 is n up to rounding where another contrast's differences are all of one size."""
    d = np.column_stack([[0.01, -0.01] * 3, [0.03, 0.01, 0.02, -0.01, 0.02, 0.01]])
    for contrast, one in enumerate(joint_test(d, 0.04)):
        ends = means_between(d[:, contrast], one)
        assert ends is None or max(map(abs, ends)) < 1


@pytest.mark.parametrize("seeds", [21, 300])
def test_many_seeds_take_little_memory(seeds: int) -> None:
    tracemalloc.start()
    joint_test(np.random.default_rng(0).normal(size=(seeds, 2)), 0.05)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


def test_beyond_twenty_seeds_signs_are_drawn_and_the_interval_agrees_with_them() -> None:
    rng = np.random.default_rng(4)
    d = np.column_stack([rng.normal(0.45, 1, 30), rng.normal(0, 1, 30)])
    d[25:, 1] = 0.0
    first, second = joint_test(d, 0.05)
    assert first.p * (1 + DRAWS) == pytest.approx(round(first.p * (1 + DRAWS)))
    assert first.p == pytest.approx(sign_flip_p(d[:, 0]) * 2, rel=0.25)
    for column, one, there in ((0, first, np.ones(30, bool)), (1, second, np.arange(30) < 25)):
        ends = difference_interval(d[:, column], there, one)
        assert ends is not None
        assert (ends[0] > 0) == one.rejected
        half = 2.05 * np.std(d[there, column], ddof=1) / math.sqrt(there.sum())
        assert ends[1] - ends[0] == pytest.approx(2 * half, rel=0.2)


def test_no_contrast_and_no_seed_are_no_evidence() -> None:
    assert joint_test(np.zeros((5, 0)), 0.05) == []
    (one,) = joint_test(np.zeros((0, 1)), 0.05)
    assert (one.p, one.rejected) == (1.0, False)
    assert [one.p for one in joint_test(np.zeros((8, 3)), 0.05)] == [1.0] * 3


@pytest.mark.parametrize(
    ("looks", "taken"), [([3, 2], None), ([3, 3], None), ([5], None), ([2, 4], 1), ([4, 21], 1), ([0, 4], None)]
)
def test_looks_that_do_not_fit_are_refused(looks: list[int], taken: int | None) -> None:
    with pytest.raises(ValueError, match="do not fit 4 seeds"):
        joint_test(np.zeros((4, 1)), 0.05, looks=looks, taken=taken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        joint_test([[value]], 0.05)


def test_the_levels_of_looks_add_up_to_alpha() -> None:
    assert spent(0.05, [7, 10, 14]) == pytest.approx([0.0310, 0.0400, 0.05], abs=1e-4)
    assert spent(0.04, [12]) == pytest.approx([0.04])


# By simulation. Seeded, so that the tolerances are about the method and not about luck.


def rejections(sweeps: int, n: int, m: int, *, shape: str, effect: float = 0.0, seed: int = 0) -> float:
    """The share of sweeps with a rejection: m arms against one baseline, whose noise they share."""
    rng = np.random.default_rng(seed)
    draw: dict[str, Callable[[tuple[int, int]], NDArray[np.float64]]] = {
        "normal": rng.standard_normal,
        "t3": lambda size: rng.standard_t(3, size=size),
        "exponential": rng.standard_exponential,
    }
    wrong = 0
    for _ in range(sweeps):
        arms = draw[shape]((n, m + 1))
        wrong += any(one.rejected for one in joint_test(arms[:, 1:] - arms[:, :1] + effect, 0.05))
    return wrong / sweeps


@pytest.mark.parametrize("shape", ["normal", "t3", "exponential"])
@pytest.mark.parametrize(("n", "m"), [(7, 1), (9, 3), (9, 7)])
def test_any_wrong_claim_is_as_rare_as_alpha(shape: str, n: int, m: int) -> None:
    """Mutant check: each contrast by itself at 0.05 fails this for seven."""
    assert rejections(1000, n, m, shape=shape) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_one_real_difference_among_seven_is_found_where_holm_finds_none() -> None:
    """Power 0.81 at n = 7, one contrast of 2 standard deviations: 2^-6 times seven is above 0.05."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(400):
        d = rng.normal(size=(7, 7))
        d[:, 0] += 2
        found += joint_test(d, 0.05)[0].rejected
        assert 7 * sign_flip_p(d[:, 0]) > 0.05
    assert found / 400 == pytest.approx(0.81, abs=0.06)


@pytest.mark.parametrize(("effect", "power", "seeds"), [(0.0, 0.05, None), (1.0, 0.88, 10.0), (1.5, 1.00, 8.2)])
def test_looks_keep_alpha_and_stop_early(effect: float, power: float, seeds: float | None) -> None:
    """One contrast, 7, 10, 14 seeds. Mutant check: 0.05 at each look is wrong 0.09 of the time."""
    rng, found, used, looks = np.random.default_rng(2), 0, 0, [7, 10, 14]
    for _ in range(600):
        d = rng.normal(effect, 1, size=(14, 1))
        for taken, n in enumerate(looks, start=1):
            if joint_test(d[:n], 0.05, looks=looks, taken=taken)[0].rejected:
                found += 1
                break
        used += n
    assert found / 600 == pytest.approx(power, abs=0.03)
    assert seeds is None or used / 600 == pytest.approx(seeds, abs=0.4)


def test_exact_up_to_twenty_is_what_the_docstring_says() -> None:
    d = np.ones((EXACT_UP_TO, 1))
    assert joint_test(d, 0.05)[0].p == 2.0 ** (1 - EXACT_UP_TO)
