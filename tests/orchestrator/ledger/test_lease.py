"""Claims about a lease whose clock jumps, each on SQLite and on PostgreSQL.

A clock that is set ahead by an hour and a lease that is moved back by an hour look the same; the tests move the lease.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.ledger import LeaseHeld, Ledger, LedgerError, Point, Trial, lease, schema, this_process
from orchestrator.run_dir.folder import RunFolder, stop

HOUR_S = 3600.0
LONG_S = 600.0
"""A lease of which no part can be waited for in a test."""

Keep = Callable[[Ledger], Ledger]


def run_of(url: str) -> Ledger:
    trial = Trial(id="t0", stage="confirm", arm="a", seed=0, job={})
    return Ledger.create(url, name="x", sweep={}, trials=[trial])


def move(ledger: Ledger, seconds: float) -> None:
    """Have the lease end so much later, as if the clock had been set back since its last renewal."""
    end = schema.leases.c.expires
    with ledger._database.write() as connection:
        connection.execute(schema.leases.update().values(expires=end + seconds))


@contextlib.contextmanager
def renewing(ledger: Ledger, ttl_s: float) -> Iterator[None]:
    """A living holder, which renews after every quarter of its lease."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(ttl_s / 4):
            ledger.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.few(1)
@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
def test_a_clock_that_jumps_does_not_displace_a_living_holder(url: str, opened: Keep, jump_s: float) -> None:
    """Mutant check: judging an expired lease by the clock alone takes it from a holder that is about to renew it."""
    holder, contender = opened(run_of(url)), opened(Ledger.open(url))
    holder.acquire("elsewhere pid 1", 8)
    move(holder, jump_s)
    with renewing(holder, 8):
        with pytest.raises(LeaseHeld, match=r"elsewhere pid 1 has been driving .* ends in [5-8] s"):
            contender.acquire("another", 8)
        assert contender.holder() is not None
        holder.event("kind", "it goes on")


@pytest.mark.few(1)
@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
def test_a_clock_that_jumps_does_not_keep_a_run_from_everybody(url: str, opened: Keep, jump_s: float) -> None:
    """Mutant check: trusting an end that lies ahead refuses the run for an hour."""
    silent, contender = opened(run_of(url)), opened(Ledger.open(url))
    silent.acquire("elsewhere pid 1", 1)
    move(silent, jump_s)
    assert contender.acquire("another", 8) == 2


@pytest.mark.soak
def test_a_lease_that_was_moved_ahead_tells_whether_somebody_renews_it(url: str, opened: Keep) -> None:
    """`status` says neither that a dead driver holds the run for an hour, nor that a living one is gone."""
    holder, reader = opened(run_of(url)), opened(Ledger.open(url))
    holder.acquire("elsewhere pid 1", 1)
    move(holder, HOUR_S)
    assert reader.holder() is None
    holder.acquire("elsewhere pid 1", 8)
    move(holder, HOUR_S)
    with renewing(holder, 8):
        found = reader.holder()
    assert found is not None
    assert found[2] - time.time() < 20


@pytest.mark.parametrize("jump_s", [-HOUR_S, 0, HOUR_S])
def test_a_holder_that_has_visibly_ended_is_succeeded_at_once(url: str, opened: Keep, jump_s: float) -> None:
    first, second = opened(run_of(url)), opened(Ledger.open(url))
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    first.acquire(this_process().replace(f" pid {os.getpid()} ", f" pid {ended.pid} "), LONG_S)
    move(first, jump_s)
    assert second.acquire("another", LONG_S) == 2


def test_a_lease_that_was_given_back_is_taken_at_once(url: str, opened: Keep) -> None:
    first, second = opened(run_of(url)), opened(Ledger.open(url))
    first.acquire("elsewhere pid 1", LONG_S)
    first.release()
    move(first, HOUR_S)
    assert second.holder() is None
    assert second.acquire("another", LONG_S) == 2


def test_a_lease_of_an_older_program_does_not_say_how_long_it_holds(
    url: str, opened: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held for thirty seconds; here for one. Mutant check: taking no length for zero takes it from a living one."""
    monkeypatch.setattr(lease, "UNKNOWN_TTL_S", 1.0)
    old, contender = opened(run_of(url)), opened(Ledger.open(url))
    old.acquire("elsewhere pid 1", 1)
    with old._database.write() as connection:
        connection.execute(schema.leases.update().values(ttl=None, expires=schema.leases.c.expires - HOUR_S))
    began = time.monotonic()
    assert contender.acquire("another", 8) == 2
    assert time.monotonic() - began >= lease.WATCH


def test_of_two_who_watch_the_same_lease_one_takes_it(url: str, opened: Keep) -> None:
    """Mutant check: taking it without comparing it with what was watched gives it to both."""
    silent = opened(run_of(url))
    silent.acquire("elsewhere pid 1", 2)
    move(silent, -HOUR_S)
    contenders = [opened(Ledger.open(url)) for _ in range(3)]
    outcomes: list[str] = []

    def contend(ledger: Ledger) -> None:
        try:
            outcomes.append(str(ledger.acquire(f"driver {id(ledger)}", 60)))
        except LeaseHeld:
            outcomes.append("held")

    threads = [threading.Thread(target=contend, args=(ledger,)) for ledger in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["2", "held", "held"]


def test_a_clock_that_was_set_back_does_not_keep_a_newer_program_out(
    url: str, opened: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are brought forward unless somebody drives the run; a lease of before the jump is nobody's sign."""
    old = opened(run_of(url))
    old.acquire("elsewhere pid 1", 60)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    monkeypatch.setitem(schema.MIGRATIONS, schema.VERSION - 1, lambda _: None)
    with pytest.raises(LedgerError, match="elsewhere pid 1 is driving run"):
        Ledger.open(url)
    move(old, HOUR_S)
    opened(Ledger.open(url))


def test_an_attempt_of_a_dead_driver_ended_when_the_driver_last_gave_a_sign_of_life(url: str, opened: Keep) -> None:
    """A run that stood still for a night does not count the night. Mutant check: ending it now fails this."""
    night_s = 10 * HOUR_S
    dead, following = opened(run_of(url)), opened(Ledger.open(url))
    dead.acquire("elsewhere pid 1", 2)
    number = dead.start_attempt("t0", {}, "h")
    begun = time.time() - night_s
    dead.record_points("t0", number, [Point("t0", "loss", 1, 0.5, begun + 5)])
    with dead._database.write() as connection:
        connection.execute(schema.attempts.update().values(started=begun))
        connection.execute(schema.leases.update().values(expires=begun + 60 + 2))
    following.acquire("another", 60)
    (closed,) = following.reconcile()
    assert closed.ended == pytest.approx(begun + 60, abs=1e-3)
    assert following.attempts("t0") == [closed]


@pytest.mark.parametrize(("newest_s", "renewed_s", "ended_s"), [(500, 60, 500), (5, -100, 5), (-50, -100, 0)])
def test_the_last_sign_of_life_is_the_latest_of_start_point_and_renewal(
    url: str, opened: Keep, newest_s: float, renewed_s: float, ended_s: float
) -> None:
    dead, following = opened(run_of(url)), opened(Ledger.open(url))
    dead.acquire("elsewhere pid 1", 2)
    number = dead.start_attempt("t0", {}, "h")
    begun = time.time() - HOUR_S
    dead.record_points("t0", number, [Point("t0", "loss", 1, 0.5, begun + newest_s)])
    with dead._database.write() as connection:
        connection.execute(schema.attempts.update().values(started=begun))
        connection.execute(schema.leases.update().values(expires=begun + renewed_s + 2))
    following.acquire("another", 60)
    (closed,) = following.reconcile()
    assert closed.ended == pytest.approx(begun + ended_s, abs=1e-3)


@pytest.mark.few(1)
def test_a_driver_that_gave_its_lease_back_was_alive_until_then_and_never_after_now(url: str, opened: Keep) -> None:
    """It left an attempt running, as one does whose cluster died. And a clock that was set back makes no future."""
    first, second, third = opened(run_of(url)), opened(Ledger.open(url)), opened(Ledger.open(url))
    first.acquire("elsewhere pid 1", 2)
    first.start_attempt("t0", {}, "h")
    first.release()
    released = time.time()
    time.sleep(0.5)
    second.acquire(this_process(), 1)
    (closed,) = second.reconcile()
    assert closed.ended == pytest.approx(released, abs=0.3)
    second.start_attempt("t0", {}, "h")
    move(second, HOUR_S)
    third.acquire("another", 2)
    (closed,) = third.reconcile()
    assert closed.ended is not None
    assert closed.ended <= time.time() + 1


# To be asked to stop


@pytest.mark.parametrize("jump_s", [-HOUR_S, 0.0, HOUR_S])
def test_a_living_driver_is_asked_to_stop_whatever_the_clock_says_of_its_lease(
    url: str, opened: Keep, tmp_path: Path, jump_s: float
) -> None:
    """Mutant check: asking only a driver whose lease has not expired loses the request."""
    driver, person = opened(run_of(url)), opened(Ledger.open(url))
    driver.acquire("elsewhere pid 1", 4)
    move(driver, jump_s)

    def drive() -> None:
        while not driver.asked_to_stop():
            time.sleep(0.1)
        time.sleep(0.5)
        driver.release()

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    said, gone = stop(person, RunFolder(tmp_path), wait_s=20)
    assert (said.partition(";")[0], gone) == ("elsewhere pid 1 has stopped", True)
    thread.join(10)


@pytest.mark.soak
def test_a_lease_that_runs_out_while_it_is_waited_for_is_not_given_back(url: str, opened: Keep, tmp_path: Path) -> None:
    """The driver waits for its database, or for a disk. One that never comes back counts as gone, as for `resume`."""
    driver, person = opened(run_of(url)), opened(Ledger.open(url))
    driver.acquire("elsewhere pid 1", 2)
    asked = time.monotonic()
    said, gone = stop(person, RunFolder(tmp_path), wait_s=1)
    assert ("has not within 1 s" in said, gone) == (True, False)
    said, gone = stop(person, RunFolder(tmp_path), wait_s=20)
    assert time.monotonic() - asked > 2 + 0.4
    assert "was last heard of at" in said
    assert gone
    assert driver.asked_to_stop(), "which it reads, should it live"
    assert person.acquire("another", 30) == 2
    assert not person.asked_to_stop(), "the next one is not meant"


def test_nobody_is_asked_where_nobody_drives(url: str, opened: Keep, tmp_path: Path) -> None:
    ledger = opened(run_of(url))
    assert "nobody drives" in stop(ledger, RunFolder(tmp_path), wait_s=20)[0]
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    ledger.acquire(this_process().replace(f" pid {os.getpid()} ", f" pid {ended.pid} "), LONG_S)
    assert "nobody drives" in stop(ledger, RunFolder(tmp_path), wait_s=20)[0]
    assert not ledger.asked_to_stop()
