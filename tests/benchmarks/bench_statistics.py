"""How often a verdict is wrong and how often it finds what is there: by simulation, beside the figures given before.

`make bench ONLY=statistics` prints the tables and fails where a rate of wrong verdicts is above its nominal one by more
than two standard errors. Seeds are fixed. It takes some 19 CPU minutes, 14 of them for 2,500 sweeps through Session.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nullsweeps import CONFIRM, Sampler, tuned_anew, tuned_once
from rates import (
    RowsDraw,
    dropping_rate,
    grouped_rows,
    lost_best_rate,
    normal_rows,
    rows_coverage,
    several_metrics_rate,
    two_way_bootstrap_coverage,
)
from simulated import (
    SHAPES,
    UNLIKE,
    Coverage,
    Rate,
    coverage,
    coverage_of_rates,
    coverage_of_the_mean,
    detectable,
    equivalence_rate,
    looked_at,
    looked_at_by_hand,
    null_rate,
    power_beside_holm,
    wrong_claims,
)

from orchestrator.statistics import ALPHA, Alpha, levels, power

SEVEN = (0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0)
"""True differences of seven contrasts, in standard deviations."""

pytestmark = pytest.mark.timeout(7200)


def test_wrong_claims_of_the_joint_test() -> None:
    """1,000 sweeps of each number of seeds, 6,000 of each row. Arms of unlike shape are held to what is documented."""
    print(f"\nsweeps without differences in which the joint test rejects any, at {ALPHA}, n = 7 ... 12 and all")
    rows = [(name, shape, ALPHA, "0.040 to 0.055") for name, shape in SHAPES.items()]
    rows += [(name, shape, documented, "up to 0.064") for name, (shape, documented) in UNLIKE.items()]
    too_often = []
    for name, shape, nominal, given in rows:
        for m in (1, 3, 7):
            by_seeds = [null_rate(shape, n, m, sweeps=1000) for n in range(7, 13)]
            rate = sum(by_seeds, Rate(0, 0))
            cells = " ".join(f"{one.share:.3f}" for one in by_seeds)
            print(f"  {name:36} m = {m}  {cells}  all {rate.share:.3f}  given: {given}")
            if rate.exceeds(nominal):
                too_often.append((name, m, rate))
    assert too_often == []


def test_wrong_claims_by_several_metrics() -> None:
    print("\nany wrong claim by any of three metrics, three contrasts, 2,000 sweeps; with looks 600; accepted 0.05")
    too_often = []
    for correlation in (0.0, 0.5, 0.9):
        rates = [several_metrics_rate(n, 3, correlation, sweeps=2000) for n in (8, 11)]
        rates.append(several_metrics_rate(14, 3, correlation, (7, 10, 14), sweeps=600))
        cells = " ".join(f"{rate.share:.3f}" for rate in rates)
        print(f"  correlated by {correlation}: 8 seeds, 11, looks at 7, 10, 14: {cells}")
        too_often += [(correlation, rate) for rate in rates if rate.exceeds(ALPHA)]
    assert too_often == []


def test_what_the_joint_test_finds_where_holm_does_not() -> None:
    print("\nmean power over the contrasts that differ: signs by Holm -> the joint test; 2,000 sweeps")
    one = (2.0, *[0.0] * 6)
    for effects, n, given in ((SEVEN, 6, "0.00 -> 0.41"), (SEVEN, 9, "0.66 -> 0.71"), (one, 7, "0.00 -> 0.81")):
        by_holm, jointly = power_beside_holm(effects, n, sweeps=2000)
        shown = ", ".join(f"{effect:g}" for effect in effects)
        print(f"  {shown} sd, n = {n}: {by_holm:.2f} -> {jointly:.2f}  given: {given}")
        assert jointly > by_holm + 0.03


def test_wrong_claims_of_equivalence() -> None:
    print(f"\nequivalent at {ALPHA} though the difference is the smallest that matters, n = 6, 8, 12; 6,000 of each")
    too_often = []
    for name, shape in (SHAPES | {name: shape for name, (shape, _) in UNLIKE.items()}).items():
        rates = [equivalence_rate(shape, n, sweeps=6000) for n in (6, 8, 12)]
        print(f"  {name:36} {'  '.join(f'{one.share:.3f}' for one in rates)}")
        too_often += [(name, rates)] if name in SHAPES and sum(rates, Rate(0, 0)).exceeds(ALPHA) else []
    assert too_often == []


def test_any_wrong_claim_of_a_sweep() -> None:
    """Half of the contrasts differ by the smallest difference that matters, or none of them does. The worst of both and
    of three such differences is shown."""
    chosen = [levels(2, 0.01), Alpha(0.05, 0.05), Alpha(0.025, 0.025)]
    print("\nsweeps with any wrong claim, better, worse and equivalent; 2,000 of each truth")
    print("  at the levels 0.04 and 0.01 (given: 0.030 to 0.048), 0.05 each (given: 0.06 to 0.09), 0.025 each")
    too_often = []
    for m in (2, 3, 7):
        for n in (6, 8, 12):
            rates = [
                wrong_claims([0.0] * (m - differ) + [smallest] * differ, n, smallest, chosen, sweeps=2000)
                for smallest in (0.5, 1.0, 2.0)
                for differ in (0, m // 2)
            ]
            worst = [max(of_truth[k].share for of_truth in rates) for k in range(len(chosen))]
            print(f"  m = {m}, n = {n:2}: " + "  ".join(f"{share:.3f}" for share in worst))
            too_often += [(m, n, of_truth[0]) for of_truth in rates if of_truth[0].exceeds(ALPHA)]
    assert too_often == []


def test_what_seeds_find() -> None:
    print("\neffect that is found four times in five, in sd, m = 1 / 3 / 7; 2,000 sweeps of each")
    for n, given in (
        (8, "1.16 / 1.52 / 1.77"),
        (10, "1.00 / 1.28 / 1.46"),
        (14, "0.82 / 1.01 / 1.14"),
        (20, "0.67 / 0.81 / 0.90"),
    ):
        at = [(n, m, levels(m, 0.01).difference) for m in (1, 3, 7)]
        found = [power.detectable(seeds, alpha, m) for seeds, m, alpha in at]
        simulated = [detectable(seeds, m, alpha, sweeps=2000) for seeds, m, alpha in at]
        print(f"  n = {n:2}: {_row(found)}, simulated {_row(simulated)}  given: {given}")
        assert all(abs(one - other) < 0.06 for one, other in zip(found, simulated, strict=True))


def _row(numbers: list[float]) -> str:
    return " / ".join(f"{number:.2f}" for number in numbers)


def test_what_intervals_hold() -> None:
    """Without differences an interval leaves 0 out where the joint test rejects, so that is asserted; the rest is as
    it is documented."""
    print("\ncoverage of the interval of a verdict, n = 6, 8, 12; 1,000 sweeps")
    print("  each contrast (given: 0.94 to 0.99); all of a sweep at once (given: 0.89 to 0.98)")
    too_rarely = list[tuple[str, Sequence[float], Coverage | Rate]]()
    for name, shape in SHAPES.items():
        for effects in ((0.0,), (0.0,) * 3, (0.0, 1.0, 2.0), (0.0,) * 7, SEVEN):
            m, cells, missed = len(effects), [], Rate(0, 0)
            alpha = levels(m, 0.01).difference
            for n in (6, 8, 12):
                held = coverage(shape, effects, n, alpha, sweeps=1000)
                cells.append(f"{held.lowest:.3f} to {held.highest:.3f}; {held.all_at_once.share:.3f}")
                missed += Rate(held.all_at_once.of - held.all_at_once.count, held.all_at_once.of)
                if held.lowest < 0.93 or held.all_at_once.share < 0.85:
                    too_rarely.append((name, effects, held))
            if not any(effects) and missed.exceeds(alpha):
                too_rarely.append((name, effects, missed))
            truth = "with differences" if any(effects) else "without"
            print(f"  {name:12} m = {m} {truth:16}  " + "   |   ".join(cells))
    assert too_rarely == []


def test_what_intervals_of_means_and_rates_hold() -> None:
    print("\ncoverage of 95% intervals: of a mean by t and by BCa (2,000 samples, 999 resamples), of a rate by Wilson")
    for name, given in (
        ("normal", "0.95, 0.95, 0.95 and 0.86, 0.90, 0.93"),
        ("exponential", "0.88, 0.90, 0.92 and 0.83, 0.87, 0.91"),
    ):
        held = [coverage_of_the_mean(name, n, sweeps=2000, resamples=999) for n in (6, 10, 20)]
        by_t, by_bca = (", ".join(f"{one[k]:.3f}" for one in held) for k in (0, 1))
        print(f"  {name:12} n = 6, 10, 20: {by_t} and {by_bca}  documented: {given}")
    for n in (6, 10, 20, 40):
        lowest, mean = coverage_of_rates(n)
        print(f"  Wilson, n = {n:2}: {mean:.3f} on average over rates, {lowest:.3f} at the least")
        assert mean > 0.945


def test_looks() -> None:
    looks, whole, divided = (7, 10, 14), levels(1, 0.0), levels(3, 1.0)
    print(f"\nlooks at {looks} seeds, whole courses; 4,000 sweeps of one contrast, 2,000 of several")
    too_often = []
    for m, count in ((1, 4000), (3, 2000), (7, 2000)):
        found = looked_at([0.0] * m, looks, whole, sweeps=count)
        print(f"  without differences, m = {m}: {found.wrong.share:.3f} false  given: 0.045 to 0.054")
        too_often += [(m, found)] if found.wrong.exceeds(ALPHA) else []
    for m in (3, 7):
        effects = [0.0] * (m - m // 2) + [1.0] * (m // 2)
        found = looked_at(effects, looks, divided, smallest_difference=1.0, sweeps=2000)
        print(f"  {m // 2} of {m} differ by as much as matters: {found.wrong.share:.3f} with any wrong claim")
        too_often += [(m, found)] if found.wrong.exceeds(ALPHA) else []
    for effects, at_levels, count, given in (
        ([1.0], whole, 4000, "0.88 with 10.0 (fixed 10: 0.78)"),
        ([1.5], whole, 4000, "1.00 with 8.2"),
        ([1.0] * 7, divided, 2000, "0.69 with 11.9 (fixed 10: 0.57)"),
    ):
        found, fixed = (looked_at(effects, at, at_levels, sweeps=count) for at in (looks, (10,)))
        print(
            f"  {effects[0]:g} sd, m = {len(effects)}: power {found.power:.2f} with {found.seeds:.1f} seeds"
            f" (fixed 10: {fixed.power:.2f})  given: {given}"
        )
        assert found.power > fixed.power
    by_hand = looked_at_by_hand((6, 9, 12), sweeps=4000)
    print(f"  tested by hand at 6, 9, 12: {by_hand.share:.3f} false  given: 0.093")
    assert by_hand.exceeds(ALPHA), "or this simulation would not see a level that is broken"
    assert too_often == []


def test_dropping_what_seems_to_lose_breaks_the_level() -> None:
    """Why an arm that is behind trains on with the others."""
    print("\nlooks at 7, 10, 14 without differences, of which those with T below 1 are dropped at each; 4,000 sweeps")
    for m, given in ((3, "0.075"), (7, "0.101")):
        dropped = dropping_rate(m, (7, 10, 14), sweeps=4000)
        print(f"  m = {m}: {dropped.share:.3f} false  given: {given}")
        assert dropped.exceeds(ALPHA), "or this simulation would not see a level that is broken"


def test_how_often_the_best_level_is_lost() -> None:
    """Five levels that are equally good, so that each is the best; 1,000 sweeps of each number of seeds."""
    print(f"\nthe best of five levels is said to be beaten, at {ALPHA}, n = 7 ... 12 and all")
    too_often = []
    for name in SHAPES:
        by_seeds = [lost_best_rate(name, n, 5, sweeps=1000) for n in range(7, 13)]
        rate = sum(by_seeds, Rate(0, 0))
        cells = " ".join(f"{one.share:.3f}" for one in by_seeds)
        print(f"  {name:12} {cells}  all {rate.share:.3f}  given: 0.045 to 0.053")
        too_often += [(name, rate)] if rate.exceeds(ALPHA) else []
    assert too_often == []


def test_what_seeds_say_of_other_rows() -> None:
    print("\nother rows: coverage of the 95% interval (given: 0.93 to 0.97), of that by seeds alone, and how often the")
    print("joint test of seeds alone finds a difference that is none; 2,000 sweeps of n = 6, 8, 10")
    too_rarely, by_seeds = [], "0.11 / 0.20 / 0.26"
    rows: dict[str, Callable[[np.random.Generator, int], RowsDraw]] = {
        "a row error of half the sd": partial(normal_rows, ratio=0.5),
        "a row error of two sd": partial(normal_rows, ratio=2.0),
        "right or wrong, groups of 8": partial(grouped_rows, size=8),
        "right or wrong, groups of 40": partial(grouped_rows, size=40),
    }
    for name, draws in rows.items():
        held = [rows_coverage(draws(np.random.default_rng([30, n]), n), sweeps=2000) for n in (6, 8, 10)]
        found = [1 - one.not_rejected.share for one in held]
        cells = [
            " / ".join(f"{one:.3f}" for one in row)
            for row in zip(*((one.on_other_rows.share, one.by_seeds.share) for one in held), strict=True)
        ]
        print(f"  {name:28} {cells[0]}, {cells[1]}, {_row(found)}" + (f"  given: {by_seeds}" if "half" in name else ""))
        assert found == sorted(found), "more seeds make it worse"
        missed = [Rate(one.on_other_rows.of - one.on_other_rows.count, one.on_other_rows.of) for one in held]
        too_rarely += [(name, one) for one in missed if one.exceeds(ALPHA)]
    print("  a two-way percentile bootstrap in its place, n = 6 (given: 0.907)")
    for ratio in (0.25, 0.5):
        boot = two_way_bootstrap_coverage(6, ratio, sweeps=2000)
        print(f"    row error {ratio:g} sd: {boot.share:.3f}")
        assert Rate(boot.of - boot.count, boot.of).exceeds(ALPHA), "as narrow as it is said to be"
    assert too_rarely == []


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    """Two processes: a session waits for its own threads a part of the time."""
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """On a disk in memory where there is one: a ledger writes through to its disk some hundred times a sweep."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="orchestrator-bench-") as made:
        yield Path(made)


@pytest.mark.parametrize("sampler", ["random", "grid", "tpe", "gp"])
def test_null_sweeps_through_a_session(sampler: Sampler, folder: Path, pool: Executor) -> None:
    """A switch that does nothing is never better or worse. Of equal methods with noise of their own the rate is shown:
    arms are confirmed at what each was tuned to, and that one found a better setting is no chance of its seeds."""
    found = list(pool.map(partial(tuned_once, sampler=sampler, folder=folder), range(500), chunksize=5))
    idle, equal = (Rate(sum(one[k].verdict != "inconclusive" for one in found), len(found)) for k in (0, 1))
    print(
        f"\n{len(found)} null sweeps through Session, {sampler}: idle switch {idle.share:.3f} false (given: 0), equal "
        f"methods {equal.share:.3f} false (given: 0.11 to 0.17)"
    )
    assert idle.count == 0


def test_equal_methods_that_are_tuned_anew_for_every_unit(folder: Path, pool: Executor) -> None:
    """Then that one setting is better than another is chance too."""
    found = list(pool.map(partial(tuned_anew, folder=folder), range(500), chunksize=5))
    equal = Rate(sum(one.verdict != "inconclusive" for one in found), len(found))
    print(
        f"\n{len(found)} null sweeps through Session, random, {CONFIRM} repeats: equal methods {equal.share:.3f} false "
        f"(given: at most {ALPHA})"
    )
    assert not equal.exceeds(ALPHA)
