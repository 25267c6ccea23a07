"""The rules by which sweeps share a cluster, on pictures of clusters: who gives, who may ask, and what follows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.session.cluster.sharing import (
    PLAIN,
    Amounts,
    Claim,
    Held,
    Picture,
    gives_to,
    may_ask,
    placeable,
    placed,
)

ME, OTHER, THIRD = "01000000", "02000000", "03000000"


def slot(ranks: int, job: str = OTHER, *, strategy: str = "PACK", name: str = "claim", gpus: float = 0) -> Claim:
    bundle = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    return Claim(f"{name}-{job}", job, (bundle,) * ranks, strategy)


def cluster(
    *cpus: float, held: Mapping[str, Sequence[Mapping[int, float]]], claims: tuple[Claim, ...] = (), **more: object
) -> Picture:
    """A cluster whose nodes have `cpus`; held: by job, for each of its groups what that has of each node."""
    groups = [
        Held(f"{job}-{at}", job, {node: {"CPU": amount} for node, amount in one.items()})
        for job, all_ in held.items()
        for at, one in enumerate(all_)
    ]
    free = [
        {"CPU": total - sum(one.on[node]["CPU"] for one in groups if node in one.on)} for node, total in enumerate(cpus)
    ]
    plain = more.pop("plain", 0.0)
    assert isinstance(plain, float)
    free[0]["CPU"] -= plain
    sweeps = more.pop("sweeps", {ME, OTHER, THIRD})
    assert isinstance(sweeps, set)
    return Picture(ME, tuple({"CPU": one} for one in cpus), tuple(free), tuple(groups), claims, frozenset(sweeps))


# Who gives


def test_of_two_slots_one_is_given_to_a_sweep_that_has_none_and_then_no_more() -> None:
    first = cluster(2, held={ME: [{0: 1}, {0: 1}]}, claims=(slot(1),))
    assert gives_to(first) == slot(1)
    assert gives_to(cluster(2, held={ME: [{0: 1}], OTHER: [{0: 1}]}, claims=(slot(1),))) is None


def test_the_only_slot_is_given_to_a_sweep_that_has_none() -> None:
    assert gives_to(cluster(2, held={ME: [{0: 2}]}, claims=(slot(2),))) == slot(2)


def test_all_slots_are_given_one_by_one_to_a_claim_that_needs_them_all() -> None:
    both = cluster(2, held={ME: [{0: 1}, {0: 1}]}, claims=(slot(2),))
    one = cluster(2, held={ME: [{0: 1}]}, claims=(slot(2),))
    assert gives_to(both) == gives_to(one) == slot(2)


def test_to_one_that_has_a_slot_only_as_much_is_given_as_leaves_the_giver_no_less() -> None:
    """Mutant check: to look at one slot at a time would give two for a claim that needs three, and end there."""
    held = {ME: [{0: 1}] * 6, OTHER: [{0: 1}]}
    assert gives_to(cluster(7, held=held, claims=(slot(2),))) == slot(2)
    assert gives_to(cluster(7, held=held, claims=(slot(3),))) is None


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (cluster(2, held={ME: [{0: 2}]}, claims=(slot(3),)), "more than there is"),
        (cluster(2, held={ME: [{0: 1}], "09000000": [{0: 1}]}, claims=(slot(2, THIRD),)), "one who never gives has it"),
        (
            cluster(2, 2, held={ME: [{0: 2}], OTHER: [{1: 2}]}, claims=(slot(3, THIRD, strategy="STRICT_PACK"),)),
            "on one",
        ),
        (cluster(2, held={ME: [{0: 2}]}, claims=(slot(2, THIRD, strategy="STRICT_SPREAD"),)), "on two nodes"),
        (cluster(3, held={ME: [{0: 2}]}, claims=(slot(1),)), "there is room for it as it is"),
        (cluster(2, held={ME: [{0: 2}]}, claims=(slot(1, ME),)), "its own"),
        (cluster(2, held={OTHER: [{0: 2}]}, claims=(slot(1, THIRD),)), "nothing to give"),
    ],
)
def test_nothing_is_given_where_it_would_not_help(picture: Picture, why: str) -> None:
    assert gives_to(picture) is None, why


def test_who_holds_processors_does_not_give_them_to_one_who_waits_for_another_sweeps_gpu() -> None:
    held = (Held("a", ME, {0: {"CPU": 2.0}}), Held("b", OTHER, {1: {"CPU": 1.0, "GPU": 1.0}}))
    total: tuple[Amounts, ...] = ({"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0})
    waits = slot(1, THIRD, gpus=1)
    picture = Picture(ME, total, ({}, {}), held, (waits,), frozenset({ME, OTHER, THIRD}))
    assert gives_to(picture) is None
    assert gives_to(Picture(OTHER, total, ({}, {}), held, (waits,), frozenset({ME, OTHER, THIRD}))) == waits


def test_tasks_and_actors_outside_of_placement_groups_are_given_room_too_but_not_all_of_it() -> None:
    waits = Claim("plain", PLAIN, ({"CPU": 1.0},))
    assert gives_to(cluster(2, held={ME: [{0: 1}, {0: 1}]}, claims=(waits,))) == waits
    assert gives_to(cluster(2, held={ME: [{0: 1}]}, plain=1.0, claims=(waits,))) is None


def test_a_claim_that_takes_no_room_though_there_is_some_is_ignored() -> None:
    picture = cluster(4, held={ME: [{0: 2}]}, claims=(slot(2),))
    assert placeable(picture) == [slot(2)]
    assert not may_ask(picture, slot(2, ME))
    assert may_ask(picture, slot(2, ME), ignored={slot(2).id})


# Who may ask


def test_who_has_given_asks_again_only_once_the_other_has_it() -> None:
    before = cluster(2, held={}, claims=(slot(2),))
    assert not may_ask(before, slot(2, ME), gave={OTHER})
    assert not may_ask(before, slot(2, ME)), "whatever is known: it would overtake"
    assert may_ask(cluster(2, held={OTHER: [{0: 2}]}), slot(2, ME))


def test_who_has_a_slot_does_not_take_another_while_somebody_has_none() -> None:
    """It takes what is free otherwise; and where nothing is, it does not wait for what nobody owes it."""
    assert not may_ask(cluster(4, held={ME: [{0: 1}], OTHER: [{0: 2}]}, claims=(slot(2, THIRD),)), slot(1, ME))
    assert may_ask(cluster(4, held={ME: [{0: 1}], OTHER: [{0: 2}]}), slot(1, ME))
    assert not may_ask(cluster(2, held={ME: [{0: 1}], OTHER: [{0: 1}]}), slot(1, ME))
    assert may_ask(cluster(4, held={ME: [{0: 1}], OTHER: [{0: 1}] * 3}), slot(1, ME))
    assert may_ask(cluster(2, held={ME: [{0: 1}], OTHER: [{0: 1}]}), slot(1, ME), can_autoscale=True)


# What follows


@dataclass
class Sweep:
    """One that has no end, and wants as many slots as it can get."""

    job: str
    ranks: int
    slots: int = 0
    claims: bool = False
    gave: dict[str, float] = field(default_factory=dict)


def look(sweeps: list[Sweep], cpus: int, me: Sweep) -> Picture:
    held = tuple(
        Held(f"{one.job}-{at}", one.job, {0: {"CPU": float(one.ranks)}}) for one in sweeps for at in range(one.slots)
    )
    claims = tuple(slot(one.ranks, one.job) for one in sweeps if one.claims)
    free = cpus - sum(one.ranks * one.slots for one in sweeps)
    jobs = frozenset(one.job for one in sweeps)
    picture = Picture(me.job, ({"CPU": float(cpus)},), ({"CPU": float(free)},), held, claims, jobs)
    waiting = {claim.job for claim in picture.others()}
    me.gave = {job: s for job, s in me.gave.items() if job in waiting and picture.share_of(job) <= s}
    return picture


def play(sweeps: list[Sweep], cpus: int, order: random.Random, rounds: int) -> list[list[str]]:
    """Ray places whoever fits, in any order; in a round every slot ends a trial. Returns whose they were, by round."""
    told: list[list[str]] = []

    def everybody_asks_and_ray_places() -> None:
        while True:
            for one in order.sample(sweeps, len(sweeps)):
                if not one.claims and may_ask(look(sweeps, cpus, one), slot(one.ranks, one.job), gave=one.gave):
                    one.claims = True
            free = cpus - sum(one.ranks * one.slots for one in sweeps)
            fitting = [one for one in sweeps if one.claims and one.ranks <= free]
            if not fitting:
                return
            chosen = order.choice(fitting)
            chosen.claims, chosen.slots = False, chosen.slots + 1

    for _ in range(rounds):
        everybody_asks_and_ray_places()
        told.append([])
        for one in order.sample(sweeps, len(sweeps)):
            for _ in range(one.slots):
                told[-1].append(one.job)
                picture = look(sweeps, cpus, one)
                claim = gives_to(picture)
                if claim is not None:
                    one.slots, one.claims = one.slots - 1, False
                    one.gave.setdefault(claim.job, picture.share_of(claim.job))
                    if order.random() < 0.5:
                        everybody_asks_and_ray_places()
    return told


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(4, 8), st.integers(0, 10**6))
@example([1, 2], 4, 0)
@example([4, 4, 4], 4, 0)
@example([1, 2, 4, 1], 6, 0)  # one that has given all it had must not wait for others who have something
def test_nobody_waits_for_ever_and_something_always_runs(ranks: list[int], cpus: int, seed: int) -> None:
    """Mutant checks: to give to nobody, or to ask always, starves one of two sweeps that need the whole cluster; to
    give to whoever waits gives without an end."""
    sweeps = [Sweep(f"{at:02}000000", count) for at, count in enumerate(ranks, 1)]
    told = play(sweeps, cpus, random.Random(seed), rounds=60)
    assert {job for row in told for job in row} == {one.job for one in sweeps}
    assert all(told), "in a round nothing ran at all"
    if sum(ranks) <= cpus:
        held = [one.slots for one in sweeps]
        play(sweeps, cpus, random.Random(seed + 1), rounds=5)
        assert [one.slots for one in sweeps] == held, "who has a share keeps it"


@given(st.integers(0, 10**6))
def test_two_sweeps_of_which_only_one_fits_take_turns(seed: int) -> None:
    sweeps = [Sweep(ME, 2), Sweep(OTHER, 2)]
    told = play(sweeps, 2, random.Random(seed), rounds=12)
    ran = [job for row in told for job in row]
    assert len(ran) >= 12
    assert all(before != after for before, after in itertools.pairwise(ran))


@given(st.integers(0, 10**6))
def test_two_sweeps_whose_slots_fit_side_by_side_get_the_same(seed: int) -> None:
    first, second = Sweep(ME, 1), Sweep(OTHER, 1)
    play([first], 4, random.Random(seed), rounds=3)
    assert first.slots == 4
    play([first, second], 4, random.Random(seed), rounds=6)
    assert (first.slots, second.slots) == (2, 2)


@given(st.lists(st.integers(1, 3), max_size=4), st.lists(st.floats(0, 6), min_size=1, max_size=3))
def test_what_is_placed_was_free(ranks: list[int], free: list[float]) -> None:
    nodes = [{"CPU": one} for one in free]
    claim = Claim("c", OTHER, tuple({"CPU": float(one)} for one in ranks))
    left = placed(claim, nodes)
    if left is not None:
        assert sum(free) - sum(one["CPU"] for one in left) == pytest.approx(sum(ranks))
        assert min(one["CPU"] for one in left) > -1e-6
    else:
        assert sum(ranks) > min(free)
