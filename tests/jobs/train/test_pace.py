"""Shares of a budget: in steps they are functions of the step, in seconds of the clock, and both end together."""

from __future__ import annotations

import itertools
import math
import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import optim
from jobs.config import POINTS, JobConfig, Optimizer
from jobs.train.budget import LOGGED, BudgetMeter

BASE: dict[str, Any] = {"task": "image", "data": {"train": "digits", "confirm": "digits"}, "batch": {"size": 16}}

few = settings(deadline=None, max_examples=60)


def pace(budget: dict[str, Any], *, times: int = 4, optimizer: dict[str, Any] | None = None) -> BudgetMeter:
    return BudgetMeter(
        JobConfig.model_validate(BASE | {"budget": budget, "evaluate": {"times": times}, "optimizer": optimizer or {}})
    )


@few
@given(st.integers(1, 400), st.integers(1, 12))
def test_a_job_of_steps_is_evaluated_after_the_steps_that_its_config_names(steps: int, times: int) -> None:
    """Mutant check: rounding down where the config rounds up fails this."""
    one = pace({"steps": steps}, times=times)
    due = [s for s in range(1, steps + 1) if one.evaluations(s, 0.0) > one.evaluations(s - 1, 0.0)]
    assert due == one.job.evaluation_steps
    assert [s for s in range(steps + 2) if one.is_exhausted(s, 0.0)] == [steps, steps + 1]


@few
@given(st.floats(0.01, 1e4), st.lists(st.floats(1e-4, 10), min_size=1, max_size=200), st.integers(1, 8))
def test_a_job_of_seconds_ends_with_the_first_step_that_uses_them_up(
    budget: float, taken: list[float], times: int
) -> None:
    """Whatever the steps take, evaluations come in order, none twice, the last with the end.
    Mutant check: taking the share before the step for `evaluations` fails this."""
    one, seconds, seen = pace({"seconds": budget}, times=times), 0.0, []
    for step, took in enumerate(taken, 1):
        before, seconds = seconds, seconds + took
        if one.evaluations(step, seconds) > one.evaluations(step - 1, before):
            seen.append(one.evaluations(step, seconds))
        if one.is_exhausted(step, seconds):
            assert seconds >= budget > before
            assert seen[-1] == times
            assert one.logged(step, before, seconds)
            break
    assert seen == sorted(set(seen))
    assert (list(itertools.accumulate(taken))[-1] >= budget) == (times in seen)


LARGEST, SMALLEST = sys.float_info.max, math.ulp(0.0)

durations = (
    st.floats(SMALLEST, LARGEST)
    | st.floats(1e-3, 1e6)
    | st.sampled_from([SMALLEST, math.ulp(1.0), sys.float_info.min, LARGEST, 0.1, 0.3, 5.86904003196482])
)
"""Any budget that a job may have: subnormal, huge, and those that people give."""


@given(durations, st.integers(1, 40), st.integers(0, 40), st.integers(-3, 3))
@settings(deadline=None, max_examples=400)
def test_shares_of_seconds_are_compared_exactly_and_every_question_agrees_on_the_end(
    budget: float, times: int, k: int, ulps: int
) -> None:
    """Times within three of the smallest differences of the share k / times of the budget, above and below it.
    Mutant check: `int(times * seconds / budget)` in `_fraction_used` fails this, as does `seconds / budget >= 1` in
    `is_exhausted`."""
    one, seconds = pace({"seconds": budget}, times=times), float(min(Fraction(LARGEST), Fraction(budget) * k / times))
    for _ in range(abs(ulps)):
        seconds = min(LARGEST, math.nextafter(seconds, math.copysign(math.inf, ulps)))
    seconds = max(0.0, seconds)
    share = Fraction(seconds) / Fraction(budget)
    assert one.is_exhausted(9, seconds) == (share >= 1)
    for parts, passed in ((times, one.evaluations(9, seconds)), (LOGGED, one._fraction_used(LOGGED, 9, seconds))):
        assert passed == min(parts, math.floor(parts * share))
        assert one.is_exhausted(9, seconds) == (passed == parts)
    if one.is_exhausted(9, seconds):
        assert one.logged(9, 0.0, seconds)
    falling = pace({"seconds": budget}, optimizer={"schedule": "linear", "warmup": 0.0, "lr": 1.0})
    assert (falling.rate(10, seconds) == 0) == one.is_exhausted(9, seconds)


@given(durations, st.integers(1, 40))
@settings(deadline=None, max_examples=200)
def test_one_step_that_takes_exactly_the_budget_passes_every_evaluation(budget: float, times: int) -> None:
    """As hypothesis found it: 5.86904003196482 seconds, used up by one step, counted 2 evaluations of 3."""
    one = pace({"seconds": budget}, times=times)
    assert one.is_exhausted(1, budget)
    assert one.evaluations(1, budget) == times
    assert one.evaluations(1, math.nextafter(budget, 0.0)) < times
    assert not one.is_exhausted(1, math.nextafter(budget, 0.0))


@few
@given(st.integers(200, 5000))
def test_both_kinds_of_budget_log_about_as_many_points(steps: int) -> None:
    """A job of `steps` steps of one second each, told as steps and as seconds; the first step is one of them."""
    counted = [
        sum(one.logged(step, step - 1.0, float(step)) for step in range(1, steps + 1))
        for one in (pace({"steps": steps}), pace({"seconds": float(steps)}))
    ]
    assert counted[1] == LOGGED + 1
    assert LOGGED < counted[0] <= 2 * LOGGED + 1


@few
@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 0.9),
    st.integers(50, 2000),
)
def test_the_rate_has_the_same_shape_in_seconds_as_in_steps(schedule: str, warmup: float, steps: int) -> None:
    """Steps of one second: the two rates differ by less than two steps' worth of the steepest part.
    Mutant check: forgetting the warm-up in `rate_at` fails this."""
    chosen = {"schedule": schedule, "warmup": warmup, "lr": 0.1}
    by_step, by_time = pace({"steps": steps}, optimizer=chosen), pace({"seconds": float(steps)}, optimizer=chosen)
    steepest = max(1 / max(1.0, warmup * steps), (math.pi / 2) / max(1.0, (1 - warmup) * steps - 1))
    for step in range(1, steps + 1, max(1, steps // 50)):
        assert by_step.rate(step, 0.0) == optim.rate(by_step.job.optimizer, step=step, steps=steps)
        assert by_time.rate(step, step - 1.0) == pytest.approx(by_step.rate(step, 0.0), abs=0.1 * 2.5 * steepest)


def test_the_rate_of_a_timed_job_starts_and_ends_at_nothing() -> None:
    chosen = Optimizer(lr=1.0, warmup=0.1, schedule="cosine")
    assert [optim.rate_at(chosen, used=used) for used in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0, 0.5, 1, 0])


def test_a_person_can_read_how_far_it_is() -> None:
    assert pace({"steps": 120}).describe(30, 4.0) == "step 30 of 120"
    assert pace({"seconds": 10.0}).describe(30, 2.46) == "step 30, 2.5 of 10 s"


def recorded(one: BudgetMeter, ends_s: list[float]) -> tuple[list[int], list[int]]:
    """Steps that are evaluated, and those of them that are recorded. ends_s: the seconds after each step."""
    evaluated, kept, before = [], [], 0.0
    for step, seconds in enumerate(ends_s, 1):
        if one.evaluations(step, seconds) > one.evaluations(step - 1, before):
            evaluated.append(step)
            kept += [step] if one.recorded(step, before, seconds) else []
        before = seconds
    return evaluated, kept


@few
@given(st.integers(1, 6000), st.integers(1, 20_000), st.booleans())
def test_of_many_evaluations_at_most_a_thousand_are_recorded_evenly_the_last_among_them(
    steps: int, times: int, timed: bool
) -> None:
    """The one before the first step is recorded too, whatever the number. Mutant check: keeping every n-th one with
    n = times // POINTS keeps up to twice as many and loses the last; both fail this."""
    budget: dict[str, Any] = {"seconds": float(steps)} if timed else {"steps": steps}
    one = pace(budget, times=times)
    evaluated, kept = recorded(one, [float(step) for step in range(1, steps + 1)])
    assert kept[-1] == evaluated[-1] == steps
    assert len(kept) <= POINTS - 1
    assert kept == evaluated or len(kept) == POINTS - 1 or timed
    if not timed:
        assert kept == one.job.recorded_steps
        place = {step: number for number, step in enumerate(evaluated, 1)}
        gaps = [b - a for a, b in itertools.pairwise([0, *(place[step] for step in kept)])]
        assert max(gaps) - min(gaps) <= 1


@few
@given(st.integers(1, 10_000), st.integers(1, 50))
def test_the_first_and_the_last_step_of_a_job_are_logged(steps: int, seconds: int) -> None:
    one = pace({"steps": steps})
    assert one.logged(1, 0.0, 0.0)
    assert one.logged(steps, 0.0, 0.0)
    assert pace({"seconds": float(seconds)}).logged(1, 0.0, 1e-3)
