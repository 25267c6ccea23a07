"""What a session does and says on a cluster that it shares, with pictures of clusters in the place of a cluster."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.session.cluster import room as rooms
from orchestrator.session.cluster.room import Room, amount
from orchestrator.session.cluster.sharing import PLAIN, Claim, Held, Picture

ME, OTHER = "01000000", "02000000"
TWO: Any = ({"CPU": 1.0}, {"CPU": 1.0})
MINE, THEIRS = Claim("mine", ME, TWO), Claim("theirs", OTHER, TWO)


class Pictures:
    """A cluster of two CPUs that a test paints."""

    def __init__(self) -> None:
        self.holder: str | None = OTHER
        self.free = 0.0
        self.claims: tuple[Claim, ...] = ()
        self.away = False
        self.told: dict[str, tuple[float, float]] = {}

    def left_out(self) -> dict[str, tuple[float, float]]:
        return self.told

    def leave_out(self, claims: Mapping[str, tuple[float, float]]) -> None:
        self.told = dict(claims)

    def picture(self) -> Picture:
        if self.away:
            raise ConnectionError("no head")
        held = () if self.holder is None else (Held("group", self.holder, {0: {"CPU": 2.0}}),)
        return Picture(ME, ({"CPU": 2.0},), ({"CPU": self.free},), held, self.claims, frozenset({ME, OTHER}))

    def owner(self, job: str) -> str:
        return f"sweep of {job}"

    def of_plain(self) -> Iterable[str]:
        return ["somebody's actors"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Pictures:
    for name in ("SAY_S", "CHANGED_S"):
        monkeypatch.setattr(rooms, name, 0.0)
    return Pictures()


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def room(cluster: Pictures, told: list[Any]) -> Room:
    return Room(cluster, MINE, can_autoscale=False, say=told.append, waits=lambda why: told.append((why is not None,)))


def go_on(room: Room, *, wants: int, has: int) -> None:
    room.note(wants=wants, has=has)
    room.look()
    room.speak()


def test_it_is_said_once_what_is_waited_for_and_again_when_somebody_else_has_it(
    room: Room, cluster: Pictures, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        go_on(room, wants=1, has=0)
    waits = (
        "waits for 2 CPUs for a slot of 2 ranks: of the cluster's 2 CPUs 0 are free; held by sweep of 02000000: 2 CPUs"
    )
    assert told == [(True,), waits]
    cluster.holder = "03000000"
    go_on(room, wants=1, has=0)
    assert told[2:] == [waits.replace(OTHER, "03000000")]
    monkeypatch.setattr(rooms, "AGAIN_S", 0.0)
    go_on(room, wants=1, has=0)
    assert len(told) == 4, "and now and then, if nothing changes"


def test_it_is_said_when_there_is_a_slot_again(room: Room, cluster: Pictures, told: list[Any]) -> None:
    go_on(room, wants=1, has=0)
    cluster.holder = ME
    go_on(room, wants=0, has=1)
    assert told[0] == (True,)
    assert told[2:] == [(False,), "has a slot after 0 s, and goes on"]


def test_sweeps_that_take_turns_say_it_once(room: Room, cluster: Pictures, told: list[Any]) -> None:
    for _ in range(5):
        cluster.holder = OTHER
        go_on(room, wants=1, has=0)
        cluster.holder = ME
        go_on(room, wants=0, has=1)
    assert [one for one in told if isinstance(one, tuple)] == [(True,), (False,)] * 5
    assert [one.partition(" ")[0] for one in told if isinstance(one, str)] == ["waits", "has"]


def test_no_word_is_said_about_a_short_wait_or_where_nothing_is_due(
    room: Room, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(room, wants=0, has=0)
    monkeypatch.setattr(rooms, "SAY_S", 60.0)
    go_on(room, wants=1, has=0)
    assert told == []


def test_what_is_outside_of_placement_groups_is_named_too(room: Room, cluster: Pictures, told: list[Any]) -> None:
    cluster.holder = None
    go_on(room, wants=1, has=0)
    assert told[1].endswith("held by somebody's actors, outside of placement groups: 2 CPUs")


def test_more_slots_are_waited_for_without_being_queued(
    room: Room, cluster: Pictures, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(room, wants=1, has=1)
    go_on(room, wants=1, has=1)
    (said,) = told
    assert said.startswith("waits for 2 CPUs for slot 2: ")


def test_after_giving_nothing_is_asked_for_until_the_other_has_it(room: Room, cluster: Pictures) -> None:
    """Mutant check: to go by the claim alone, whoever is first gets what was given."""
    cluster.holder, cluster.claims = ME, (THEIRS,)
    room.look()
    assert room.gives()
    cluster.holder, cluster.free = None, 2.0
    room.look()
    assert not room.may_ask()
    cluster.holder, cluster.free, cluster.claims = OTHER, 0.0, ()
    room.look()
    assert room.may_ask()


def test_nor_is_it_waited_for_when_the_other_is_gone(room: Room, cluster: Pictures) -> None:
    cluster.holder, cluster.claims = ME, (THEIRS,)
    room.look()
    assert room.gives()
    cluster.holder, cluster.free, cluster.claims = None, 2.0, ()
    room.look()
    assert room.may_ask()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the sessions read."""
    now = [1000.0]
    for name in ("monotonic", "time"):
        monkeypatch.setattr(time, name, lambda: now[0])
    return now


def test_room_that_somebody_could_take_and_does_not_is_not_kept_for_ever(
    room: Room, cluster: Pictures, clock: list[float]
) -> None:
    """What it waits for is something else then: the room is taken back, and not given for it again at once."""
    cluster.holder, cluster.free, cluster.claims = None, 2.0, (THEIRS,)
    room.look()
    assert not room.may_ask()
    clock[0] += rooms.STUCK_S + 1
    room.look()
    assert room.may_ask()
    cluster.holder, cluster.free = ME, 0.0
    room.look()
    assert not room.gives(), "it does not fit now, and is the same claim"
    cluster.claims = (Claim("another", OTHER, TWO),)
    room.look()
    assert room.gives(), "what is known of one claim is not of the next"


def test_sessions_go_by_what_one_of_them_has_seen(cluster: Pictures, clock: list[float]) -> None:
    """Mutant check: each by what it sees itself; whoever gave the room that another one takes waits for ten minutes."""
    rooms_of = [Room(cluster, MINE, can_autoscale=False, say=lambda _: None, waits=lambda _: None) for _ in range(2)]
    cluster.holder, cluster.free, cluster.claims = None, 2.0, (THEIRS,)
    rooms_of[0].look()
    clock[0] += rooms.STUCK_S + 1
    rooms_of[0].look()
    cluster.holder, cluster.free = ME, 0.0
    rooms_of[1].look()
    assert not rooms_of[1].gives()
    cluster.told = {THEIRS.id: (clock[0] + 2 * rooms.LEFT_OUT_S, rooms.LEFT_OUT_S)}
    rooms_of[1].look()
    clock[0] += 1
    assert not rooms_of[1].gives(), "it lasts"
    clock[0] += 2 * rooms.STUCK_S
    rooms_of[1].look()
    assert rooms_of[1].gives(), "a clock that is ahead of the others decides nothing"


@pytest.mark.parametrize("stuck", [(THEIRS,), (THEIRS, Claim("more", "03000000", TWO)), (Claim("plain", PLAIN, TWO),)])
def test_a_claim_that_is_never_placed_costs_less_and_less(
    room: Room, cluster: Pictures, clock: list[float], stuck: tuple[Claim, ...]
) -> None:
    """Mutant checks: to forget it while this session has the room, by which every trial cost 15 s; and to look for room
    for the second behind the first, which is left out already."""
    gave, asked = list[float](), list[float]()
    cluster.holder, cluster.claims = ME, stuck
    for _ in range(3600):
        room.look()
        if cluster.holder == ME and room.gives():
            gave.append(clock[0])
            cluster.holder, cluster.free = None, 2.0
        elif cluster.holder is None and room.may_ask():
            asked.append(clock[0])
            cluster.holder, cluster.free = ME, 0.0
        clock[0] += 1
    assert len(gave) <= 12 * len(stuck)
    assert sum(back - at for at, back in zip(gave, asked, strict=False)) < 3600 * 0.06 * len(stuck)
    assert all(until < clock[0] + rooms.LEFT_OUT_S for until in gave)
    assert gave[-1] > 1000 + 2400, "what it waited for may have come"


def test_what_is_long_past_decides_nothing(room: Room, cluster: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    assert room.may_ask()
    assert not room.gives()
    cluster.holder, cluster.claims = ME, (THEIRS,)
    room.look()
    assert room.gives()
    assert not room.may_ask()
    cluster.away = True
    room.look()
    monkeypatch.setattr(rooms, "OLD_S", -1.0)
    assert not room.gives()
    assert room.may_ask()


def test_the_thread_looks_and_ends_with_the_context(room: Room, cluster: Pictures, told: list[Any]) -> None:
    died: list[BaseException] = []
    with room:
        room.note(wants=1, has=0)
        room.watch(died.append)
        deadline = time.monotonic() + 20
        while len(told) < 2:
            assert time.monotonic() < deadline
            room.await_news(0.1)
    assert died == []


@given(st.dictionaries(st.sampled_from(["CPU", "GPU", "accelerator_type:H100", "mine"]), st.floats(0.001, 99)))
def test_amounts_are_words(of: dict[str, float]) -> None:
    said = amount(of)
    assert said
    assert "accelerator_type" not in said
    assert all(first != second for first, second in itertools.pairwise(said.split(" and ")))
