"""How often a verdict is wrong, by simulation from fixed seeds: a small part of `make bench ONLY=statistics`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nullsweeps import Sampler, tuned_once
from rates import (
    dropping_rate,
    equals_rate,
    holm_rate,
    interaction_rate,
    lost_best_rate,
    mcnemar_rate,
    one_sided_rate,
    outlying_rate,
    settings_part,
    stepped_equivalence_rate,
    worse_rate,
)
from simulated import (
    SHAPES,
    UNLIKE,
    Rate,
    coverage,
    coverage_of_rates,
    detectable,
    differences,
    either_rate,
    judged,
    looked_at,
    looked_at_by_hand,
    null_rate,
    power_beside_holm,
    wrong_claims,
)

from orchestrator.statistics import ALPHA, Alpha, compare, either_p, levels, paired_t_p, power

SEVEN = (0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0)


@pytest.mark.parametrize("truth", [(0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)], ids=str)
def test_any_wrong_claim_of_a_sweep_is_as_rare_as_both_levels_together(truth: tuple[float, ...]) -> None:
    """Nothing, everything or a part of it differs by as much as matters. Mutant check: 0.05 for each, by which a sweep
    is wrong in both ways, is above where a part of it differs."""
    divided, whole = wrong_claims(truth, 8, 1.0, [levels(3, 1.0), Alpha(ALPHA, ALPHA)], sweeps=600)
    assert not divided.exceeds(ALPHA, errors=0)
    assert divided.count > 0
    assert (whole.share > ALPHA) == (0 < sum(truth) < 3)


def test_what_is_simulated_is_the_verdict_of_compare() -> None:
    rng, contrasts, said = np.random.default_rng(0), [(arm, "base") for arm in "abc"], set[str]()
    for _ in range(30):
        d = differences(rng, SHAPES["normal"], 12, (0.0, 0.5, 2.0)) / 2
        values = {arm: dict(enumerate(d[:, k])) for k, arm in enumerate("abc")} | {
            "base": dict.fromkeys(range(12), 0.0)
        }
        found = compare(values, contrasts, seeds=range(12), smallest_difference=0.7, resamples=9)
        assert [one.claim(levels(3, 0.7)) for one in judged(d, 0.7)] == [one.verdict for one in found]
        said |= {one.verdict for one in found}
    assert said >= {"equivalent", "a_better", "inconclusive"}


@pytest.mark.parametrize(
    ("name", "m"), [("exponential, normal baseline", 3), ("exponential, baseline half as wide", 7)]
)
def test_arms_of_unlike_shape_are_as_often_wrong_as_documented(name: str, m: int) -> None:
    """The assumption matters: of these a rate above nominal is expected."""
    shape, documented = UNLIKE[name]
    rate = null_rate(shape, 10, m, sweeps=800)
    assert not rate.exceeds(documented)
    assert rate.share > documented - 0.03


@pytest.mark.parametrize(
    ("shape", "effects"), [("normal", (0.0,) * 3), ("normal", (0.0, 1.0, 2.0)), ("exponential", SEVEN), ("t3", (0.0,))]
)
def test_intervals_hold_what_is_true_as_often_as_documented(shape: str, effects: tuple[float, ...]) -> None:
    """Mutant check: an interval by twice the count."""
    alpha = levels(len(effects), 0.01).difference
    held = coverage(SHAPES[shape], effects, 8, alpha, sweeps=400)
    assert held.lowest > 0.94 - 0.02
    assert held.all_at_once.share > 0.88 - 0.03
    if not any(effects):
        missed = Rate(held.all_at_once.of - held.all_at_once.count, held.all_at_once.of)
        assert not missed.exceeds(alpha, errors=3)


@pytest.mark.parametrize("n", [6, 20, 100])
def test_the_interval_of_a_rate_holds_it_as_often_as_it_says_on_average(n: int) -> None:
    lowest, mean = coverage_of_rates(n)
    assert mean == pytest.approx(0.955, abs=0.01)
    assert lowest > 0.83


@pytest.mark.parametrize("m", [1, 3, 7])
def test_looks_keep_the_level_of_a_whole_family(m: int) -> None:
    """A contrast that is found to differ ends, and the others go on. Mutant check: each look at the whole of alpha."""
    assert not looked_at([0.0] * m, (7, 10, 14), levels(1, 0.0), sweeps=400).wrong.exceeds(ALPHA, errors=3)


def test_looks_find_more_with_fewer_seeds_than_a_fixed_number() -> None:
    """Seven contrasts of one standard deviation: 0.69 with 11.9 seeds each, and 0.57 with ten."""
    found, fixed = (looked_at([1.0] * 7, looks, levels(7, 1.0), sweeps=200) for looks in ((7, 10, 14), (10,)))
    assert found.power == pytest.approx(0.69, abs=0.05)
    assert found.seeds == pytest.approx(11.9, abs=0.4)
    assert fixed.power == pytest.approx(0.57, abs=0.05)


def test_a_test_at_every_look_by_hand_would_be_seen_to_break_the_level() -> None:
    rate = looked_at_by_hand((6, 9, 12), sweeps=2000)
    assert rate.exceeds(ALPHA)
    assert rate.share == pytest.approx(0.093, abs=0.02)


def test_the_joint_test_finds_what_holm_cannot_at_six_seeds() -> None:
    by_holm, jointly = power_beside_holm(SEVEN, 6, sweeps=200)
    assert by_holm == 0
    assert jointly == pytest.approx(0.41, abs=0.04)


@pytest.mark.parametrize(("n", "m"), [(8, 1), (10, 3)])
def test_what_seeds_are_said_to_find_they_find(n: int, m: int) -> None:
    alpha = levels(m, 0.01).difference
    assert detectable(n, m, alpha, sweeps=500) == pytest.approx(power.detectable(n, alpha, m), abs=0.1)


@pytest.mark.few(2)
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_a_switch_that_does_nothing_is_never_better_or_worse(sampler: Sampler, tmp_path: Path) -> None:
    """Through Session, tuned and confirmed. Mutant check: samplers seeded by the label of the arm."""
    found = [tuned_once(number, sampler=sampler, folder=tmp_path) for number in range(4)]
    assert [(idle.delta, idle.verdict) for idle, _ in found] == [(0.0, "inconclusive")] * 4
    assert all(equal.delta for _, equal in found), "an arm with noise of its own differs"


def test_arms_that_do_not_differ_are_rarely_said_to_at_either_setting() -> None:
    """However alike both settings are. Mutant checks: the smaller of both p; whatever their signs."""
    rates = {shared: either_rate(8, shared, sweeps=3000) for shared in (0.0, 0.5, 0.9, 1.0)}
    assert not any(rate.exceeds(ALPHA) for rate in rates.values())
    assert rates[0.0].share < 0.004
    assert rates[0.5].share < 0.015
    assert rates[1.0].share > 0.04
    assert not either_rate(8, 0.0, (5.0, 0.0), sweeps=1000).exceeds(ALPHA / 2)
    assert either_rate(8, 0.0, (2.0, 2.0), sweeps=300).share > 0.95


def test_at_either_setting_takes_one_direction_at_both() -> None:
    up, down = [1.0, 1.1, 0.9, 1.2], [-1.0, -1.1, -0.9, -1.2]
    assert (either_p(up, up) or 1) < 0.01
    assert either_p(up, down) == 1.0
    assert either_p(up, [1.0]) is None
    assert either_p(up, [0.0, 0.0]) == 1.0
    assert paired_t_p([0.5, 0.5, 0.5]) == 0.0
    assert paired_t_p([0.0, 0.0]) == 1.0
    assert paired_t_p([0.5]) is None


# What the docstrings of the package say of the functions beside the verdicts. Draws have fixed seeds: what differs from
# these is another method, or another version of numpy.


def shares(rate: Callable[..., Rate], *arguments: object, sweeps: int) -> list[float]:
    return [rate(shape, *arguments, sweeps=sweeps).share for shape in SHAPES]


def test_a_seed_is_named_as_outlying_as_often_as_documented() -> None:
    """Mutant check: standard deviations in place of the median distance."""
    found = [shares(outlying_rate, n, sweeps=4000) for n in (6, 10, 20)]
    for by_shape, documented in zip(
        zip(*found, strict=True), ((0.06, 0.04, 0.01), (0.11, 0.12, 0.17), (0.14, 0.14, 0.18)), strict=True
    ):
        assert by_shape == pytest.approx(documented, abs=0.006)


def test_training_that_does_nothing_is_said_to_be_worse_as_often_as_documented() -> None:
    found = [shares(worse_rate, n, sweeps=4000) for n in (6, 10, 20)]
    assert all(0.015 < rate < 0.03 for by_shape in found for rate in by_shape[:2])
    assert [by_shape[2] for by_shape in found] == pytest.approx([0.12, 0.09, 0.08], abs=0.006)


def test_mcnemars_test_is_exact_and_so_below_its_level() -> None:
    assert [mcnemar_rate(count) for count in (5, 6, 10, 20, 40)] == pytest.approx(
        [0.0, 0.031, 0.021, 0.041, 0.038], abs=0.001
    )
    assert all(mcnemar_rate(count) <= ALPHA for count in range(1, 60))


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.05, 0.048, 0.055), (0.0025, 0.0017, 0.0027)])
def test_a_one_sided_test_keeps_its_level(alpha: float, low: float, high: float) -> None:
    found = [rate for n in (9, 12) for rate in shares(one_sided_rate, n, alpha, sweeps=6000)]
    assert low - 0.0005 <= min(found) <= max(found) <= high + 0.0005


def test_holms_adjustment_keeps_the_level_of_a_family() -> None:
    """Mutant check: p-values as they are."""
    found = [holm_rate(m, sweeps=4000) for m in (2, 3, 7)]
    assert [rate.share for rate in found] == pytest.approx([0.050, 0.049, 0.042], abs=0.001)
    equal = [equals_rate(m, sweeps=4000) for m in (2, 3, 7)]
    assert [rate.share for rate in equal] == pytest.approx([0.042, 0.044, 0.038], abs=0.001)
    assert not any(rate.exceeds(ALPHA) for rate in found + equal)


def test_equal_differences_of_few_seeds_are_as_often_by_chance_as_documented() -> None:
    """Two seeds in steps of a standard deviation are above the level, and the docstring says so."""
    cases = {(2, 1.0): (0.061, 0.061), (2, 0.5): (0.053, 0.053), (3, 1.0): (0.015, 0.015), (3, 0.5): (0.039, 0.007)}
    cases |= {(4, 1.0): (0.046, 0.003), (4, 0.5): (0.046, 0.012)}
    for (n, step), documented in cases.items():
        found = [stepped_equivalence_rate(n, step, alpha, sweeps=8000).share for alpha in (0.05, 0.01)]
        assert found == pytest.approx(documented, abs=0.001), (n, step)


def test_levels_that_differ_alike_everywhere_have_an_interaction_as_rarely_as_documented() -> None:
    found = [
        rate for layout in ((8, 3, 2), (8, 4, 3), (12, 3, 2)) for rate in shares(interaction_rate, *layout, sweeps=1000)
    ]
    assert 0.035 <= min(found) <= max(found) <= 0.061


def test_the_part_of_settings_is_on_average_what_it_is() -> None:
    effects = [settings_part(settings, 3, 1.0, sweeps=4000) for settings in (3, 6)]
    nothing = [settings_part(settings, 3, 0.0, sweeps=4000) for settings in (3, 6)]
    assert [mean for _, mean in effects] == pytest.approx([1.04, 1.03], abs=0.006)
    assert [mean for _, mean in nothing] == pytest.approx([0.13, 0.10], abs=0.006)
    assert [share for share, _ in effects + nothing] == pytest.approx([0.22, 0.07, 0.59, 0.55], abs=0.006)


def test_dropping_what_seems_to_lose_breaks_the_level_and_the_best_level_is_rarely_lost() -> None:
    """A small part of what the bench prints beside the figures given."""
    assert dropping_rate(7, (7, 10, 14), sweeps=800).exceeds(ALPHA)
    assert not sum((lost_best_rate(shape, 8, 5, sweeps=500) for shape in SHAPES), Rate(0, 0)).exceeds(ALPHA)
