"""Units do not matter: what is said of differences is said in any unit, and numbers that have one change as it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator import statistics
from orchestrator.statistics import (
    Divergence,
    Looks,
    Trained,
    bca_interval,
    beaten_p,
    best_so_far,
    compare,
    course,
    either_p,
    equivalence_p,
    interaction_p,
    is_worse_than_untrained,
    one_sided_p,
    outlying,
    paired_t_p,
    sign_flip_p,
    t_interval,
)
from orchestrator.statistics.joint import difference_interval, joint_test
from orchestrator.statistics.pairing import Measure, Question, paired
from orchestrator.statistics.rows import RowVariance, between, half_width, interval, of_blocks, of_means, parts
from orchestrator.statistics.tests import PRECISION, one_sided_bound

SEEN = (1.8, -0.9, 2.1, 0.4, 2.6, -1.1, 1.2, 1.6)
"""Inconclusive where 1 is the smallest difference that matters; called "equivalent, p = 0" in units of 1e12."""

NO_ROWS = RowVariance(0.0, 9, 9)

exponents = st.integers(-300, 300)
differences = st.lists(st.integers(-40, 40).map(lambda k: k / 16), min_size=2, max_size=9)
many = settings(deadline=None, max_examples=60)


def same(found: Any, expected: Any) -> bool:
    """Whether two answers agree but for rounding."""
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return bool(found == pytest.approx(expected, rel=1e-9, abs=1e-12))
    return bool(found == expected)


def with_unit(ends: tuple[float, float] | None, unit: float) -> list[float] | None:
    """An interval, in the unit that its differences have."""
    return None if ends is None else [end / unit for end in ends]


def table(d: Sequence[float]) -> Any:
    """Of seeds and three levels, of which the last is one difference above the first."""
    noise = np.random.default_rng(len(d)).integers(-8, 9, size=(len(d), 3)) / 16
    noise[:, 2] = noise[:, 0] + d
    return noise


P_VALUES: dict[str, Callable[[Any, float], Any]] = {
    "sign_flip_p": lambda d, _: sign_flip_p(d),
    "one_sided_p": lambda d, _: one_sided_p(d),
    "paired_t_p": lambda d, _: paired_t_p(d),
    "equivalence_p": equivalence_p,
    "either_p": lambda d, _: either_p(d, d[::-1] + d.max()),
    "joint_test": lambda d, _: [(one.p, one.statistic, one.rejected) for one in joint_test(d[:, None], 0.05)],
    "beaten_p": lambda d, unit: beaten_p(unit * table(d / unit)),
    "interaction_p": lambda d, unit: interaction_p([unit * table(d / unit), unit * table(d[::-1] / unit)]),
    "outlying": lambda d, _: outlying(dict(enumerate(d))),
    "is_worse_than_untrained": lambda d, _: [is_worse_than_untrained(d, mode) for mode in ("max", "min")],
}
"""What has no unit."""

INTERVALS: dict[str, Callable[[Any], Any]] = {
    "t_interval": t_interval,
    "bca_interval": lambda d: bca_interval(d, resamples=99),
    "interval": lambda d: interval(d, NO_ROWS, 0.95),
    "half_width": lambda d: (half_width(d, None, 0.95), half_width(d, None, 0.95, more_seeds=1)),
    "of the joint test": lambda d: difference_interval(d, np.ones(len(d), dtype=bool), joint_test(d[:, None], 0.3)[0]),
    "of its statistic": lambda d: difference_interval(
        d, np.ones(len(d), dtype=bool), joint_test(np.stack([d, np.abs(d).max() + d], axis=1), 0.3)[0]
    ),
    "best_so_far": lambda d: tuple(best_so_far(d.reshape(-1, 1), mode="max")[0]),
}
"""What is in units of the differences."""


@pytest.mark.parametrize("name", P_VALUES)
@many
@given(d=differences, exponent=exponents)
@example(d=list(SEEN), exponent=-12)
@example(d=[0.0, 0.25, 0.25], exponent=-300)
def test_a_p_value_is_that_in_any_unit(name: str, d: list[float], exponent: int) -> None:
    """Mutant check: a tolerance of 1e-12 in whatever unit."""
    unit, said = float(f"1e{exponent}"), P_VALUES[name]
    assert same(said(np.array(d) * unit, unit), said(np.array(d), 1.0))


@many
@given(d=differences, exponent=exponents)
@example(d=list(SEEN), exponent=-12)
@example(d=list(SEEN), exponent=300)
def test_a_one_sided_bound_has_the_unit_of_its_differences(d: list[float], exponent: int) -> None:
    """As precise as it is found."""
    unit, expected = float(f"1e{exponent}"), one_sided_bound(d, 0.3)
    found = one_sided_bound(np.array(d) * unit, 0.3)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found / unit == pytest.approx(expected, abs=3 * PRECISION * max(map(abs, d)))


@pytest.mark.parametrize("name", INTERVALS)
@many
@given(d=differences, exponent=exponents)
@example(d=list(SEEN), exponent=-12)
@example(d=list(SEEN), exponent=-300)
@example(d=list(SEEN), exponent=300)
def test_an_interval_has_the_unit_of_its_differences(name: str, d: list[float], exponent: int) -> None:
    """Mutant checks: squares of 1e-300 are 0, of 1e300 are beyond a float."""
    unit, said = float(f"1e{exponent}"), INTERVALS[name]
    assert same(with_unit(said(np.array(d) * unit), unit), with_unit(said(np.array(d)), 1.0))


@pytest.mark.parametrize("mode", ["max", "min"])
@many
@given(d=differences, exponent=exponents, lost=st.sets(st.integers(0, 8), max_size=2))
@example(d=list(SEEN), exponent=-12, lost=set())
@example(d=list(SEEN), exponent=-300, lost={1})
def test_a_verdict_is_that_in_any_unit(mode: statistics.Mode, d: list[float], exponent: int, lost: set[int]) -> None:
    def of(unit: float) -> dict[str, Any]:
        values = {"a": dict(enumerate(unit * x for x in d)), "b": dict.fromkeys(range(len(d)), 0.0)}
        divergence = Divergence({"a": [seed for seed in lost if seed < len(d)]})
        (found,) = compare(
            values, [("a", "b")], seeds=range(len(d)), mode=mode, smallest_difference=unit, divergence=divergence,
            resamples=99,
        )  # fmt: skip
        (pair, *_) = paired(values, divergence, ("a", "b"), range(len(d)), mode)
        ends = (found.ci95, found.ci95_bca, found.ci90, found.interval)
        return {
            "ps": (found.p, found.p_adjusted, found.p_equivalence, found.p_equivalence_holm),
            "said": (found.verdict, found.needed, found.diverged_arms, pair.diverged),
            "delta": None if found.delta_trained is None else found.delta_trained / unit,
            "ends": [with_unit(one, unit) for one in ends],
        }

    assert same(of(float(f"1e{exponent}")), of(1.0))


@many
@given(d=st.lists(st.integers(-40, 40).map(lambda k: k / 16), min_size=11, max_size=11), exponent=exponents)
def test_looks_end_where_they_do_in_any_unit(d: list[float], exponent: int) -> None:
    """Whether more seeds would help is asked of a spread. Mutant check: that of 1e-300 is 0, so they always would."""

    def of(unit: float) -> Any:
        values = {"a": dict(enumerate(unit * x for x in d)), "b": dict.fromkeys(range(11), 0.0)}
        looks = Looks((7, 9, 11), range(11), (0.04, 0.01), [Measure(smallest_difference=unit)])
        found = course(Trained(values), [("a", "b")], looks)
        standing = found.standing[Question(("a", "b"))]
        return found.taken, found.ended, standing.claim, standing.look, standing.differs.p, standing.equals.p

    assert same(of(float(f"1e{exponent}")), of(1.0))


@many
@given(d=differences, exponent=st.integers(-140, 140))
def test_variances_have_the_square_of_the_unit_where_it_is_a_number(d: list[float], exponent: int) -> None:
    x, unit = np.array(d), float(f"1e{exponent}")
    groups = np.arange(len(d)) // 2

    def of(y: Any, scale: float) -> list[Any]:
        known, labels = of_means(y), ["a", "b"] * len(y)
        in_groups = of_means(y, groups)
        blocks = of_blocks(float(y.mean()), [np.delete(y, k).mean() for k in range(len(y))], [1] * len(y))
        found, apart = parts(y, known, 0.95), between(list(y), labels[: len(y)])
        lengths = [found.next_seed, found.next_1000_rows, *(found.interval or ())]
        squares = [
            apart,
            found.seeds,
            found.rows,
            *(None if one is None else one.variance for one in (known, in_groups, blocks)),
        ]
        return [
            [None if length is None else length / scale for length in lengths],
            [None if square is None else square / scale / scale for square in squares],
            found.rows_leave_it_open,
        ]

    assert same(of(x * unit, unit), of(x, 1.0))


@pytest.mark.parametrize("unit", [1e-300, 1e-170, 1e170, 1e300])
def test_a_variance_that_is_no_number_is_none(unit: float) -> None:
    """0 or infinite as a square, it would be a claim; the interval by seeds is there all the same."""
    d = np.array(SEEN) * unit
    assert parts(d, None, 0.95).seeds is None
    assert all(map(math.isfinite, interval(d, NO_ROWS, 0.95) or [math.nan]))
    assert between([unit, 2 * unit, 4 * unit], ["a", "a", "b"]) is None
    assert of_means(d) is of_blocks(float(d.mean()), d, [1] * len(d)) is None


def test_where_the_difference_is_the_smallest_that_matters_tiny_ones_are_as_rarely_equivalent() -> None:
    """Seen: 0.48 in units of 1e12. 2,000 samples."""
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(2000):
        wrong += equivalence_p(rng.normal(1, 1, 8) * 1e-12, 1e-12) <= 0.05
    assert 0 < wrong / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_levels_that_differ_by_rounding_alone_are_no_question() -> None:
    """Rounding is known by the size of the values, and not by that of their differences. Mutant check: by the latter,
    the levels of a sweep without any effect beat each other."""
    seeds = np.linspace(0.3, 0.9, 8)
    one, other = np.stack([seeds, seeds + 0.2], axis=1), np.stack([seeds + 0.1, seeds + 0.1 + 0.2], axis=1)
    for unit in (1e-290, 1e-12, 1.0, 1e290):
        assert interaction_p([one * unit, other * unit]) == 1.0
        assert beaten_p(np.stack([seeds * unit, (seeds + 0.2 - 0.2) * unit], axis=1)) == [1.0, 1.0]
