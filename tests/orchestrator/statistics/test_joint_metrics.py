"""Contrasts by several metrics are one family: against brute force, against what must hold for any data, by
simulation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rates import several_metrics_rate
from scipy import stats

from orchestrator.statistics import Course, Divergence, Looks, Measure, Question, Trained, compare, compare_by, course
from orchestrator.statistics.numbers import Floats
from orchestrator.statistics.power import seeds_to_exclude, seeds_to_find

few = settings(deadline=None, max_examples=25)

ARMS = ("a", "b")
CONTRASTS = [(arm, "base") for arm in ARMS]
HIGH, LOW = Measure("accuracy", "max", 0.5), Measure("loss", "min", 2.0)

By = dict[str, dict[int, float]]


def values_of(d: Floats) -> By:
    """The values of which d [seeds, arms] are the differences from a baseline of 0."""
    seeds = range(len(d))
    return {"base": dict.fromkeys(seeds, 0.0)} | {
        arm: {seed: float(d[seed, k]) for seed in seeds} for k, arm in enumerate(ARMS[: d.shape[1]])
    }


def adjusted(columns: Floats) -> list[float]:
    """The p of the step-down test, by its definition: every assignment of one sign a seed, each column's T."""
    n, m = columns.shape
    length = np.sqrt((columns**2).sum(axis=0))
    length[length == 0] = 1
    signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=n - 1)])
    statistics = np.abs(signs @ columns) / length  # [assignments, m], the observed one first
    order, worst = sorted(range(m), key=lambda j: -statistics[0, j]), 0.0
    p = [0.0] * m
    for step, j in enumerate(order):
        largest = statistics[:, order[step:]].max(axis=1)
        worst = max(worst, float(np.mean(largest >= statistics[0, j] - 1e-12)))
        p[j] = worst
    return p


def drawn(seed: int, n: int, effect: float = 0.0) -> Floats:
    """Differences [n, 4] of two arms by two metrics, which depend on each other."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 1))
    made: Floats = 0.6 * common + rng.normal(size=(n, 4)) + effect * np.array([1.0, 0.0, 0.0, -2.0])
    return made


@few
@given(st.integers(0, 10**6), st.integers(5, 8), st.sampled_from([0.0, 1.5]))
def test_the_family_is_all_contrasts_by_all_metrics_with_one_sign_a_seed(seed: int, n: int, effect: float) -> None:
    """Mutant checks: a test of its own for each metric; signs of its own for each metric."""
    d = drawn(seed, n, effect)
    found = compare_by({HIGH: values_of(d[:, :2]), LOW: values_of(d[:, 2:])}, CONTRASTS, seeds=range(n), resamples=9)
    assert [(one.metric, one.a) for one in found] == [(m, arm) for m in ("accuracy", "loss") for arm in ARMS]
    np.testing.assert_allclose([one.p_adjusted for one in found], adjusted(d), atol=1e-12)  # type: ignore[arg-type]
    for one in found:
        claims = one.verdict in ("a_better", "b_better")
        assert not claims or (one.p_adjusted or 1) <= 0.04, "the level of better and worse, over both metrics"
        if claims:
            assert (one.verdict == "a_better") == (((one.delta or 0) > 0) == (one.metric == "accuracy"))


@few
@given(st.integers(0, 10**6), st.floats(0.1, 0.9), st.floats(1.0, 4.0))
def test_each_metric_is_equivalent_by_its_own_smallest_difference(seed: int, one: float, other: float) -> None:
    """Two one-sided t tests each, Holm over all that declare one. Mutant checks: the first metric's for all; Holm
    within a metric; a metric without any is counted."""
    n, rng = 9, np.random.default_rng(seed)
    d = np.hstack([rng.normal(size=(n, 2)) * 0.3, rng.normal(size=(n, 2)), rng.normal(size=(n, 2))])
    measures = [Measure("x", "max", one), Measure("y", "max", 0.0), Measure("z", "min", other)]
    measured = {measure: values_of(d[:, 2 * k : 2 * k + 2]) for k, measure in enumerate(measures)}
    found = compare_by(measured, CONTRASTS, seeds=range(n), resamples=9)
    asked = [(k, limit) for k, limit in enumerate([one, one, 0.0, 0.0, other, other]) if limit]
    alone = {
        k: max(
            float(stats.ttest_1samp(d[:, k], -limit, alternative="greater").pvalue),
            float(stats.ttest_1samp(d[:, k], limit, alternative="less").pvalue),
        )
        for k, limit in asked
    }
    expected, worst = dict.fromkeys(range(6), 1.0), 0.0
    for rank, k in enumerate(sorted(alone, key=lambda k: alone[k])):
        worst = expected[k] = min(1.0, max(worst, alone[k] * (4 - rank)))
    np.testing.assert_allclose([c.p_equivalence_holm for c in found], list(expected.values()), atol=1e-12)  # type: ignore[arg-type]
    assert [c.verdict == "equivalent" for c in found] == [p <= 0.01 for p in expected.values()]


@few
@given(st.integers(0, 10**6))
def test_a_metric_that_says_the_same_twice_costs_nothing(seed: int) -> None:
    """Its statistic is that of the other one under every sign, in any unit. Bonferroni would ask twice as much."""
    d = drawn(seed, 8, 1.5)[:, :2]
    alone = compare(values_of(d), CONTRASTS, seeds=range(8), resamples=9)
    both = compare_by(
        {Measure("x"): values_of(d), Measure("y", "min"): values_of(-1000 * d)}, CONTRASTS, seeds=range(8), resamples=9
    )
    assert [one.p_adjusted for one in both] == [one.p_adjusted for one in alone] * 2
    assert [one.verdict for one in both] == [one.verdict for one in alone] * 2


def test_one_metric_by_its_name_is_judged_as_without() -> None:
    d = drawn(3, 9, 1.0)[:, :2]
    options = {"seeds": range(9), "resamples": 99}
    alone = compare(values_of(d), CONTRASTS, mode="min", smallest_difference=0.4, **options)  # type: ignore[arg-type]
    assert compare_by({Measure("loss", "min", 0.4): values_of(d)}, CONTRASTS, **options) == alone  # type: ignore[arg-type]


def test_what_diverged_counts_against_its_arm_by_every_metric() -> None:
    """As the widest difference of that metric. Mutant check: the widest of the first metric for all."""
    d = drawn(5, 7)
    measured = {HIGH: values_of(d[:, :2]), LOW: values_of(d[:, 2:])}
    for by in measured.values():
        del by["a"][2]
    found = compare_by(measured, CONTRASTS, seeds=range(7), divergence=Divergence({"a": [2]}), resamples=9)
    of_arm = {one.metric: one for one in found if one.a == "a"}
    for k, (metric, sign) in enumerate((("accuracy", -1), ("loss", 1))):
        (pair,) = [pair for pair in of_arm[metric].pairs if pair.diverged]
        assert pair.difference == sign * np.abs(np.delete(d[:, 2 * k], 2)).max()
        assert (pair.diverged, of_arm[metric].delta) == ("a", None)


def test_a_lost_seed_leaves_its_contrast_open_by_every_metric_and_in_the_family() -> None:
    d = drawn(6, 8, 3.0)
    measured = {HIGH: values_of(d[:, :2]), LOW: values_of(d[:, 2:])}
    for by in measured.values():
        del by["b"][1]
    found = compare_by(measured, CONTRASTS, seeds=range(8), resamples=9)
    assert [one.verdict for one in found if one.a == "b"] == ["inconclusive"] * 2
    d[1, [1, 3]] = 0
    np.testing.assert_allclose([one.p_adjusted for one in found], adjusted(d), atol=1e-12)  # type: ignore[arg-type]


def test_seeds_needed_are_those_of_the_whole_family_at_the_metrics_own_spread() -> None:
    rng = np.random.default_rng(1)
    d = rng.normal(size=(8, 4)) * np.array([1.0, 1.0, 10.0, 10.0])
    found = compare_by(
        {Measure("x", "max", 0.9): values_of(d[:, :2]), Measure("y", "max", 12.0): values_of(d[:, 2:])},
        CONTRASTS,
        seeds=range(8),
        resamples=9,
    )
    for k, one in enumerate(found):
        effect = (0.9, 12.0)[k // 2] / float(d[:, k].std(ddof=1))
        most = max(seeds_to_find(effect, 0.04, 4) or 0, seeds_to_exclude(effect, 0.01 / 4) or 0)
        assert one.needed == (most if one.verdict == "inconclusive" else None)
    assert sum(one.needed is not None for one in found) >= 2, "so that something is asserted"


LOOKS = Looks([7, 10, 14], range(14), (0.04, 0.01), [HIGH, LOW])


def followed(d: Floats) -> Course:
    """Give each arm the seeds that are due, until there are none."""
    every = {HIGH.name: values_of(d[:, :2]), LOW.name: values_of(d[:, 2:])}
    due = dict.fromkeys(("base", *ARMS), 7)
    while True:
        have = {m: {arm: dict(list(by[arm].items())[: due[arm]]) for arm in due} for m, by in every.items()}
        now = course(Trained(have[HIGH.name], further={LOW.name: have[LOW.name]}), CONTRASTS, LOOKS)
        if now.ended or dict(now.due) == due:
            return now
        due = dict(now.due)


def test_an_arm_trains_on_until_all_of_its_metrics_are_settled() -> None:
    """By accuracy it differs at the first look, by loss only later. Mutant check: an arm whose first metric has left
    trains no more."""
    rng = np.random.default_rng(8)
    d = rng.normal(size=(14, 4)) + np.array([9.0, 0.0, 1.6, 0.0])
    now = followed(d)
    first, second = (now.standing[Question(("a", "base"), m)] for m in ("accuracy", "loss"))
    assert (first.claim, first.look) == ("differs", 1)
    assert second.look > 1
    assert now.due["a"] > 7
    assert len(now.standing) == 4


def test_by_one_metric_the_looks_are_those_of_before() -> None:
    """And what is drawn for futility does not depend on what the metric is called: runs under way go on alike."""
    for seed in range(6):
        d = drawn(seed, 14, 0.8)[:, :2]
        named, plain = (Looks(LOOKS.counts, LOOKS.seeds, LOOKS.alpha, [Measure(m, "max", 0.5)]) for m in ("x", ""))
        one, other = (course(Trained(values_of(d)), CONTRASTS, looks) for looks in (named, plain))
        assert (one.taken, one.ended, dict(one.due)) == (other.taken, other.ended, dict(other.due))
        assert list(one.standing.values()) == list(other.standing.values())


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_any_wrong_claim_over_several_metrics_is_as_rare_as_by_one(correlation: float) -> None:
    """At 0.05, of 400 sweeps; a test of its own for each metric would be wrong in about 0.10 to 0.14 by three
    independent ones. The soak and `make bench` have more."""
    assert not several_metrics_rate(8, 3, correlation, sweeps=400).exceeds(0.05)


@pytest.mark.soak
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("n", "looks"), [(8, ()), (11, ()), (14, (7, 10, 14))], ids=str)
def test_any_wrong_claim_over_several_metrics_whatever_they_share(
    correlation: float, n: int, looks: Sequence[int]
) -> None:
    assert not several_metrics_rate(n, 3, correlation, looks, sweeps=1500).exceeds(0.05)
