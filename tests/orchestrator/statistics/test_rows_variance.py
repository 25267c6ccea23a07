"""What other rows would say: variances are those of their definitions, intervals cover as often as they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rates import grouped_rows, normal_rows, rows_coverage
from scipy import special, stats

from orchestrator.statistics import t_interval
from orchestrator.statistics.rows import (
    RowVariance,
    VarianceParts,
    between,
    half_width,
    interval,
    of_blocks,
    of_means,
    parts,
)

Floats = NDArray[np.float64]

numbers = st.floats(-1, 1).map(lambda x: x if abs(x) > 1e-100 else 0.0)
"""Whose squares are numbers too."""

differences = st.lists(numbers, min_size=2, max_size=60)


@given(differences)
def test_the_variance_of_a_mean_is_that_of_its_rows(d: list[float]) -> None:
    found = of_means(d)
    assert found is not None
    assert found.variance == pytest.approx(float(np.var(d, ddof=1)) / len(d), abs=1e-15)
    assert (found.units, found.rows, found.groups) == (len(d), len(d), None)


@given(differences, st.integers(1, 6))
def test_rows_that_say_the_same_count_as_one(d: list[float], times: int) -> None:
    """A row repeated in its group adds nothing. Mutant check: by rows, the variance would fall with `times`."""
    rows, groups = np.repeat(d, times), np.repeat(np.arange(len(d)), times)
    one, many = of_means(d), of_means(rows, groups)
    assert one is not None
    assert many is not None
    assert many.variance == pytest.approx(one.variance, abs=1e-15)
    assert (many.units, many.rows, many.groups) == (len(d), times * len(d), len(d))


@given(differences)
def test_the_jackknife_of_a_mean_without_each_row_is_the_same(d: list[float]) -> None:
    x = np.array(d)
    without = [np.delete(x, k).mean() for k in range(len(x))]
    found, expected = of_blocks(float(x.mean()), without, [1] * len(x)), of_means(x)
    assert found is not None
    assert expected is not None
    assert found.variance == pytest.approx(expected.variance, rel=1e-6, abs=1e-14)
    assert found.is_jackknife


def test_blocks_of_any_sizes_are_those_of_busing() -> None:
    """The formula of Busing, Meijer and van der Leeden (1999), step by step. Mutant check: h of the rows left fails."""
    x, sizes = np.random.default_rng(0).normal(size=23), [3, 7, 5, 8]
    block = np.repeat(range(4), sizes)
    n, whole = len(x), float(np.exp(x.mean()))
    without = [float(np.exp(x[block != k].mean())) for k in range(4)]
    h = [n / m for m in sizes]
    jackknife = 4 * whole - sum((1 - m / n) * t for m, t in zip(sizes, without, strict=True))
    pseudo = [h_k * whole - (h_k - 1) * t for h_k, t in zip(h, without, strict=True)]
    expected = sum((p - jackknife) ** 2 / (h_k - 1) for p, h_k in zip(pseudo, h, strict=True)) / 4
    found = of_blocks(whole, without, sizes, groups=9)
    assert found is not None
    assert found.variance == pytest.approx(expected, rel=1e-12)
    assert (found.units, found.rows, found.groups) == (4, 23, 9)


def test_of_a_single_row_group_or_block_nothing_is_known() -> None:
    assert of_means([0.5]) is None
    assert of_means([]) is None
    assert of_means([0.5, 0.1, 0.2], np.zeros(3, dtype=np.int64)) is None
    assert of_blocks(0.1, [0.2], [7]) is None
    known = RowVariance(1.0, 10, 10)
    assert interval([0.1], known, 0.95) is None
    assert parts([0.1], known, 0.95) == VarianceParts()


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(0.5, 0.999))
def test_without_any_variance_of_rows_it_is_the_t_interval(d: list[float], level: float) -> None:
    found, expected = interval(d, RowVariance(0.0, 50, 50), level), t_interval(d, level=level)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_degrees_of_freedom_are_satterthwaites() -> None:
    """By hand: s^2 / n = 0.5 with 3 degrees of freedom, v = 0.25 with 39."""
    d = np.array([1.0, -1.0, 1.0, -1.0]) * math.sqrt(1.5) + 2
    nu = 0.75**2 / (0.5**2 / 3 + 0.25**2 / 39)
    half = stats.t.ppf(0.98, nu) * math.sqrt(0.75)
    assert interval(d, RowVariance(0.25, 40, 40), 0.96) == pytest.approx((2 - half, 2 + half))


@pytest.mark.parametrize("scale", [1e-90, 1e-30, 1.0, 1e90])
def test_the_scale_does_not_matter(scale: float) -> None:
    """Mutant check: the square of a variance of 1e-90 is 0."""
    d, known = np.array([1.0, 2.0, 4.0]), RowVariance(0.2, 30, 30)
    one = interval(d, known, 0.95)
    assert one is not None
    found = interval(d * scale, RowVariance(0.2 * scale**2, 30, 30), 0.95)
    assert found == pytest.approx((one[0] * scale, one[1] * scale), rel=1e-9)


def test_equal_seeds_and_equal_rows_give_a_point() -> None:
    assert interval([0.25, 0.25], RowVariance(0.0, 5, 5), 0.95) == (0.25, 0.25)


# What more of them would buy


@given(st.lists(numbers, min_size=2, max_size=20), st.floats(1e-9, 1.0), st.integers(2, 5000))
def test_what_more_would_buy_is_the_interval_with_more(d: list[float], v: float, rows: int) -> None:
    known = RowVariance(v, rows, rows)
    found = parts(d, known, 0.95)
    now = half_width(np.array(d), known, 0.95)
    assert now is not None
    assert found.interval == pytest.approx((np.mean(d) - now, np.mean(d) + now), abs=1e-12)
    assert found.next_1000_rows is not None
    assert found.next_seed is not None
    more = half_width(np.array(d), RowVariance(v * rows / (rows + 1000), rows + 1000, rows + 1000), 0.95)
    assert found.next_1000_rows == pytest.approx(now - float(more or 0), abs=1e-12)
    assert found.next_1000_rows >= 0 or np.var(d) > 0, "degrees of freedom may fall, where seeds are few"
    assert found.seeds == pytest.approx(float(np.var(d, ddof=1)) / len(d))
    assert found.rows == v
    assert (found.judged_rows, found.groups, found.settings) == (rows, None, None)


def test_more_rows_bring_more_groups_and_no_more_blocks() -> None:
    grouped, blocks = RowVariance(1.0, 20, 1000, 20), RowVariance(1.0, 20, 1000, is_jackknife=True)
    assert grouped.of_more(1000) == RowVariance(0.5, 40, 2000, 20)
    assert blocks.of_more(3000) == RowVariance(0.25, 20, 4000, is_jackknife=True)


def test_without_rows_a_seed_still_buys_something() -> None:
    d = np.array([0.1, 0.2, 0.4, 0.1])
    found = parts(d, None, 0.95)
    t3, t4 = special.stdtrit(3, 0.975), special.stdtrit(4, 0.975)
    s = float(d.std(ddof=1))
    assert found.next_seed == pytest.approx(t3 * s / 2 - t4 * s / math.sqrt(5))
    assert (found.rows, found.interval, found.next_1000_rows, found.judged_rows) == (None, None, None, None)


# Tuned settings


def test_the_part_of_settings_is_the_variance_component_of_a_one_way_layout() -> None:
    """Against mean squares by hand; and on average it is what was put in. Mutant check: MSB in place of MSB - MSW."""
    values, labels = [1.0, 3.0, 10.0, 14.0], ["a", "a", "b", "b"]
    inside, outside = (2 + 8) / 2, 2 * (2 - 7) ** 2 + 2 * (12 - 7) ** 2
    assert between(values, labels) == pytest.approx((outside - inside) / 2 / 2)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        settings_drawn = np.repeat(rng.normal(size=6), 3)
        drawn.append(between((settings_drawn + rng.normal(size=18)).tolist(), np.repeat(range(6), 3).tolist()))
    assert np.mean([float(found or 0) for found in drawn]) == pytest.approx(1 / 6, rel=0.05)


def test_settings_that_all_share_or_none_say_nothing() -> None:
    assert between([1.0, 2.0], ["a", "a"]) is None
    assert between([1.0, 2.0], ["a", "b"]) is None
    assert between([1.0, 1.5, 1.0, 1.5], ["a", "a", "b", "b"]) == 0.0, "less between than within"


# Coverage


@pytest.mark.parametrize("n", [6, 10])
@pytest.mark.parametrize(
    ("kind", "given"), [(normal_rows, 0.5), (normal_rows, 2.0), (grouped_rows, 8), (grouped_rows, 40)]
)
def test_the_interval_covers_as_often_as_it_says(kind: Any, given: Any, n: int) -> None:
    """0.945 to 0.969 over 2,000; of 600 the standard error is 0.009. By seeds alone it is far from that, and further
    the more seeds there are. Mutant check: rows as independent where they are not (of_means without groups)."""
    held = rows_coverage(kind(np.random.default_rng(n), n, given), sweeps=600)
    assert 0.925 <= held.on_other_rows.share <= 0.985
    assert held.by_seeds.share < 0.9
