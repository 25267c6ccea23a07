"""Looks: each a function of the values, at the level, and only what differs ends its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.statistics import Course, Divergence, Looks, Measure, Question, Trained, compare, course
from orchestrator.statistics.joint import joint_test
from orchestrator.statistics.looks import refusal
from orchestrator.statistics.numbers import Floats

PLANNED = Looks(counts=[7, 10, 14], seeds=list(range(3, 17)), alpha=(0.05, 0.05))
TWO = Looks(
    counts=[7, 10, 14], seeds=list(range(3, 17)), alpha=(0.04, 0.01), measures=[Measure(smallest_difference=0.5)]
)
A, B, C = ("a", "base"), ("b", "base"), ("c", "base")


def values(columns: Mapping[str, Sequence[float] | Floats], planned: Looks = PLANNED) -> dict[str, dict[int, float]]:
    """Build the values of arms from their differences to a baseline at 0."""
    arms = {"base": [0.0] * len(planned.seeds)} | {arm: list(map(float, own)) for arm, own in columns.items()}
    return {arm: dict(zip(planned.seeds, own, strict=False)) for arm, own in arms.items()}


def trained_as_due(
    given: Mapping[str, Mapping[int, float]], contrasts: Sequence[tuple[str, str]], planned: Looks, order: int = 0
) -> tuple[Course, dict[str, dict[int, float]]]:
    """Train what the course asks for, one trial at a time in an order that `order` decides, until it asks no more."""
    rng = np.random.default_rng(order)
    have: dict[str, dict[int, float]] = {arm: {} for arm in given}
    while True:
        now = course(Trained(have), contrasts, planned)
        missing = [
            (arm, seed) for arm, count in now.due.items() for seed in planned.seeds[:count] if seed not in have[arm]
        ]
        if not missing:
            return now, have
        arm, seed = missing[rng.integers(len(missing))]
        have[arm][seed] = given[arm][seed]


def noise(seed: int, count: int = 14) -> Floats:
    drawn: Floats = np.random.default_rng(seed).normal(size=count)
    return drawn


def test_a_look_is_taken_when_all_its_seeds_have_ended_and_not_before() -> None:
    """Mutant check: a look that is taken as soon as one arm has its seeds."""
    whole = values({"a": noise(1)})
    partly = {arm: {seed: value for seed, value in own.items() if seed != 9} for arm, own in whole.items()}
    seven = {arm: dict(list(own.items())[:7]) for arm, own in whole.items()}
    assert course(Trained(partly), [A], PLANNED).taken == 0
    assert course(Trained(seven), [A], PLANNED).taken == 1
    assert course(Trained({**whole, "a": seven["a"]}), [A], PLANNED).taken == 1
    lost = Trained(partly, lost={"base": [9], "a": [9]})
    assert course(lost, [A], PLANNED).taken >= 1


def test_a_clear_difference_ends_at_the_first_look_and_nothing_more_is_asked_for() -> None:
    now, have = trained_as_due(values({"a": 3 + noise(2)}), [A], PLANNED)
    assert (now.taken, now.ended, now.standing[Question(A)].claim) == (1, "settled", "differs")
    assert {arm: len(own) for arm, own in have.items()} == {"base": 7, "a": 7}
    (judged,) = compare(have, [A], seeds=PLANNED.seeds, looked=now)
    assert (judged.verdict, judged.n, judged.look, judged.complete) == ("a_better", 7, 1, True)
    assert judged.interval is not None
    assert judged.interval[0] > 0


def test_only_what_differs_ends_its_seeds_and_the_baseline_runs_while_anything_is_open() -> None:
    """Mutant check: an equivalent arm that trains no further, or a baseline that ends with the first verdict."""
    planned = Looks(TWO.counts, TWO.seeds, TWO.alpha, [Measure(smallest_difference=1.0)])
    given = values({"a": 3 + 0.3 * noise(3), "b": 0.05 * noise(4), "c": 0.6 + 0.9 * noise(8)}, planned)
    now, have = trained_as_due(given, [A, B, C], planned)
    trained = {arm: len(own) for arm, own in have.items()}
    assert now.standing[Question(A)].claim == "differs"
    assert now.standing[Question(B)].claim == "equivalent"
    assert now.standing[Question(B)].look == 1
    assert trained["a"] == 7
    assert trained["b"] == trained["c"] == trained["base"] > 7


def test_what_a_look_decided_stays_whatever_later_seeds_say() -> None:
    tiny = np.concatenate([0.05 * noise(4, 7), np.full(7, 0.4)])
    given = values({"b": tiny, "c": 0.8 + 1.2 * noise(8)}, TWO)
    now, have = trained_as_due(given, [B, C], TWO)
    assert now.taken > 1
    assert now.standing[Question(B)].claim == "equivalent"
    judged = compare(have, [B, C], seeds=TWO.seeds, smallest_difference=0.5, looked=now)
    assert (judged[0].verdict, judged[0].n, judged[0].look) == ("equivalent", 7, 1)


def test_futile_looks_are_not_taken_and_hopeful_ones_are() -> None:
    flat = [1.0, -1.0, 0.5, -0.5, 0.8, -0.8, 0.1, *noise(1, 7)]
    assert trained_as_due(values({"a": flat}), [A], PLANNED)[0].ended == "futile"
    rising = [1.0, -0.4, 0.5, 0.9, 0.8, -0.3, 1.1, *noise(1, 7)]
    assert trained_as_due(values({"a": rising}), [A], PLANNED)[0].taken > 1


def test_a_lost_seed_leaves_its_contrast_inconclusive_and_the_others_judged() -> None:
    given = values({"a": 3 + noise(2), "b": 3 + noise(5)})
    del given["a"][5]
    now = course(Trained(given, lost={"a": [5]}), [A, B], PLANNED)
    assert (now.ended, now.standing[Question(A)].claim, now.standing[Question(B)].claim) == ("settled", "", "differs")
    judged = compare(given, [A, B], seeds=PLANNED.seeds, looked=now)
    assert [one.verdict for one in judged] == ["inconclusive", "a_better"]


def test_an_arm_that_diverges_is_told_at_the_first_look_and_keeps_nobody_waiting() -> None:
    given = {"base": dict.fromkeys(PLANNED.seeds, 0.0), "a": {}}
    fallen = Divergence({"a": PLANNED.seeds})
    now = course(Trained(given, fallen), [A], PLANNED)
    assert (now.taken, now.ended) == (1, "settled")
    assert compare(given, [A], seeds=PLANNED.seeds, looked=now, divergence=fallen)[0].verdict == "diverges"
    never = Divergence(unconfirmed=["a"])
    assert course(Trained({"base": given["base"]}, never), [A], PLANNED).ended == "settled"


def test_arms_of_one_objective_train_as_long_as_what_they_share_it_with() -> None:
    same = [("twin", "base")]
    given = values({"a": 0.8 * noise(4) + 0.5, "twin": np.zeros(14)})
    now = course(Trained(given), [A, *same], PLANNED, same_objective=same)
    assert now.due["twin"] == now.due["base"] == now.due["a"]
    settled = values({"a": 3 + noise(2), "twin": np.zeros(14)})
    now = course(Trained(settled), [A, *same], PLANNED, same_objective=same)
    assert set(now.due.values()) == {7}
    judged = compare(settled, [A, *same], seeds=PLANNED.seeds, looked=now, same_objective=same)
    assert [(one.verdict, one.n) for one in judged] == [("a_better", 7), ("equivalent", 7)]


@given(
    st.integers(0, 2**32),
    st.integers(0, 2**32),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.6]),
)
@settings(max_examples=40)
def test_the_course_follows_from_the_values_alone_whoever_ends_first(
    seed: int, order: int, effects: list[float], smallest: float
) -> None:
    """What was trained beyond what was due changes nothing either: as by a kill and a resumption, or an extension."""
    planned = Looks(PLANNED.counts, PLANNED.seeds, (0.04, 0.01), [Measure(smallest_difference=smallest)])
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c"][: len(effects)]
    given = values({arm: effect + rng.normal(size=14) for arm, effect in zip(names, effects, strict=True)}, planned)
    contrasts = [(arm, "base") for arm in names]
    first, have = trained_as_due(given, contrasts, planned, order)
    other, same = trained_as_due(given, contrasts, planned, order + 1)
    assert first == other == course(Trained(given), contrasts, planned)
    assert have == same
    assert first.ended


@given(st.integers(0, 2**32), st.integers(1, 3))
@settings(max_examples=25)
def test_with_one_look_it_is_the_joint_test_and_the_same_verdicts(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c"][:count]
    contrasts = [(arm, "base") for arm in names]
    planned = Looks([9], list(range(9)), (0.05, 0.05))
    given = values({arm: rng.normal(size=9) + rng.choice([0.0, 1.5]) for arm in names}, planned)
    now = course(Trained(given), contrasts, planned)
    assert compare(given, contrasts, seeds=planned.seeds, resamples=99) == [
        replaced
        for one in compare(given, contrasts, seeds=planned.seeds, looked=now, resamples=99)
        for replaced in [type(one)(**(vars(one) | {"look": None}))]
    ]
    d = np.column_stack([list(given[arm].values()) for arm in names])
    assert [now.standing[Question(c)].differs.p for c in contrasts] == [one.p for one in joint_test(d, 0.05)]


@pytest.mark.parametrize(
    ("looks", "alpha", "words"),
    [
        ([5, 10, 20], 0.05, "the fewest that can before 10 is 7"),
        ([6, 7], 0.01, "use for example"),
        ([7, 10, 14], 0.05, None),
        ([8, 12, 16, 20], 0.04, None),
    ],
)
def test_looks_that_make_no_test_are_refused_with_what_would(looks: list[int], alpha: float, words: str | None) -> None:
    why = refusal(looks, alpha)
    assert (why is None) == (words is None)
    assert why is None or (words or "") in why


@pytest.mark.parametrize(("effect", "low", "high"), [(0.0, 0.03, 0.065), (1.0, 0.83, 0.93)])
def test_one_contrast_is_claimed_at_the_level_and_found_with_the_power_that_was_said(
    effect: float, low: float, high: float
) -> None:
    """600 sweeps of normal differences; 0.05 and 0.88 are expected, without what futility takes from the power.
    Mutant check: looks that each have the whole level."""
    rng = np.random.default_rng(int(effect) + 5)
    claimed, seeds = 0, 0
    for _ in range(600):
        now = course(Trained(values({"a": effect + rng.normal(size=14)})), [A], PLANNED)
        claimed += now.standing[Question(A)].claim == "differs"
        seeds += now.due["a"]
    assert low <= claimed / 600 <= high
    assert seeds / 600 < 14
