"""A database that goes away while a session runs: restarted, stopped for a while, paused, gone for good."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import control, new_database, postgres_server, processes
from test_session import SWEEP, done, play, points_of

from orchestrator.ledger import Ledger, LedgerAway, LedgerUnavailable, Outage
from orchestrator.plan import make
from orchestrator.runs import RunFolder
from orchestrator.session import Dispatch, Session
from orchestrator.sweep import Sweep, resolved


@pytest.fixture
def server() -> Iterator[str]:
    """A PostgreSQL of this test alone, as it is stopped and paused."""
    with postgres_server() as url:
        yield url


@contextlib.contextmanager
def opened(url: str, folder: Path) -> Iterator[tuple[Session, Ledger, list[str]]]:
    plan = make(Sweep.model_validate(SWEEP))
    ledger = Ledger.create(url, name="small", sweep=resolved(plan.sweep) | {"plan": plan.record()}, rules=plan.rules)
    ledger.acquire("this driver", 30)
    said: list[str] = []
    session = Session(plan, ledger, RunFolder(folder), concurrent=2, tell=lambda what, _: said.append(what))
    session.start()
    try:
        yield session, ledger, said
    finally:
        session.close()
        ledger.close()


def trained(dispatch: Dispatch) -> dict[str, Any]:
    """A trial that takes a moment, so that the fault meets some of them."""
    time.sleep(0.05)
    return done(dispatch)


def restart(server: str) -> None:
    control(server, "restart", "-m", "immediate")


def stop_for_a_while(server: str) -> None:
    control(server, "stop", "-m", "immediate")
    time.sleep(3)
    control(server, "start")


def pause(server: str) -> None:
    """Nothing is refused and nothing answers, as when a virtual machine is moved."""
    stopped = processes(server)
    for process in stopped:
        process.suspend()
    time.sleep(3)
    for process in stopped:
        process.resume()


@pytest.mark.parametrize("fault", [restart, stop_for_a_while, pause])
def test_the_session_waits_begins_nothing_and_writes_nothing_twice(
    server: str, tmp_path: Path, fault: Callable[[str], None]
) -> None:
    """The same points, metrics and attempts as with a database that stays. Mutant checks: giving up at the first error
    ends with trials in the queue; finishing an attempt again after its answer was lost raises."""
    calm: dict[str, Any] = {}
    for disturbed in (False, True):
        with opened(new_database(server), tmp_path) as (session, ledger, said):
            trouble = threading.Timer(0.4, fault, (server,))
            if disturbed:
                trouble.start()
            play(session, trained)
            if disturbed:
                trouble.join()
                assert any("training goes on and nothing is begun" in line for line in said) or fault is pause
            assert session.broken is None
            found = {
                "points": points_of(ledger),
                "metrics": {trial.id: (trial.state, trial.metric) for trial in ledger.trials()},
                "attempts": [(attempt.trial, attempt.number, attempt.state) for attempt in ledger.attempts()],
                "curves": {(p.trial, p.key, p.step): p.value for p in ledger.points()},
                "events": [event.text for event in ledger.events()],
            }
            assert {trial.state for trial in ledger.trials()} == {"done"}
        calm = calm or found
        assert found == calm


def test_tunes_loop_is_not_held_up_by_a_database_that_is_paused(server: str, tmp_path: Path) -> None:
    """Mutant check: waiting for the writer as long as it takes blocks `next` for the whole pause."""
    with opened(new_database(server), tmp_path) as (session, _ledger, _said):
        first = session.next()
        assert first is not None
        stopped = processes(server)
        for process in stopped:
            process.suspend()
        try:
            session.report(first, done(first))
            time.sleep(1.5)
            for _ in range(5):
                began = time.monotonic()
                session.next()
                session.finished()
                session.stopping()
                assert time.monotonic() - began < 1.0
        finally:
            for process in stopped:
                process.resume()
        play(session)
        assert session.broken is None


def test_a_holder_whose_lease_was_taken_meanwhile_ends(server: str, tmp_path: Path) -> None:
    url = new_database(server)
    with opened(url, tmp_path) as (session, ledger, _said):
        control(server, "restart", "-m", "immediate")
        with ledger._database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE leases SET token = token + 1, holder = 'another'")
        play(session)
        assert type(session.broken).__name__ == "LeaseLost"
        assert not [attempt for attempt in ledger.attempts() if attempt.state == "done"]


def test_a_database_that_stays_away_ends_the_session_in_time(server: str, tmp_path: Path) -> None:
    with opened(new_database(server), tmp_path) as (session, ledger, said):
        session._outage._longest_s = 1.5
        control(server, "stop", "-m", "immediate")
        began = time.monotonic()
        play(session)
        assert isinstance(session.broken, LedgerUnavailable)
        assert time.monotonic() - began < 30
        assert any("is asked again for" in line for line in said)
        ledger.outage = None


def test_what_is_not_an_outage_is_raised_at_once() -> None:
    outage, tries = Outage(lambda _: None, longest_s=5), []

    def full() -> None:
        tries.append(1)
        raise LedgerUnavailable("disk full")

    with pytest.raises(LedgerUnavailable, match="disk full"):
        outage.through(full)
    assert len(tries) == 1
    assert not outage.seems_away()


def test_an_outage_is_said_once_and_its_end_too() -> None:
    said: list[str] = []
    outage, tries = Outage(said.append, longest_s=5), iter([LedgerAway("gone"), LedgerAway("gone"), None])

    def flaky() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "answer"

    assert outage.through(flaky) == "answer"
    assert [line.partition(";")[0] for line in said] == ["gone", "the ledger is back after 1 s"]
