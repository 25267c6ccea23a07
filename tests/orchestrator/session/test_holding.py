"""The lease from when it is taken until it is given back: what a database that fails over, another thread or a Ctrl-C
make of it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ledgers import Begin, Run, start
from servers import control, new_database, postgres_server

from orchestrator import driver
from orchestrator.ledger import LeaseHeld, LeaseLost, Ledger, LedgerAway, LedgerUnavailable, RunState
from orchestrator.preflight.requirements import Requirements
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session import ending, holding
from orchestrator.session.holding import held, renewed
from orchestrator.session.session import Session
from orchestrator.system.exit_codes import Exit

NEEDS = Requirements(max_world_size=1, concurrent=1, can_autoscale=False, tracking_uri=None, grace_s=25.0)
"""Of a session of one rank, without MLflow."""


@pytest.fixture
def run(begin: Begin) -> Run:
    """One whose lease is free."""
    begun = begin()
    begun.ledger.release()
    return begun


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def taken(ledger: Ledger) -> None:
    """By another driver."""
    with ledger._database.write() as connection:
        connection.exec_driver_sql("UPDATE leases SET token = token + 1, holder = 'another'")


def test_a_run_is_held_and_given_back_however_it_ends(run: Run) -> None:
    for error in (None, KeyError("x"), KeyboardInterrupt(), SystemExit(3)):
        ended = contextlib.nullcontext() if error is None else pytest.raises(type(error))
        with ended, held(run.ledger, say=print):
            assert run.ledger.holder() is not None
            assert run.ledger.outage is not None
            if error is not None:
                raise error
        assert run.ledger.holder() is None
        assert run.ledger.outage is None


@pytest.mark.parametrize(("before", "after"), [("planned", "planned"), ("running", "stopped"), ("done", "done")])
def test_no_run_that_nobody_drives_seems_to_run(run: Run, before: RunState, after: RunState) -> None:
    """Mutant check: `status --watch` of a run whose driver ended by an error waits for ever."""
    with held(run.ledger, say=print):
        run.ledger.set_run(state=before)
    assert run.ledger.run.state == after


def test_a_run_of_another_driver_s_is_left_alone(run: Run) -> None:
    with held(run.ledger, say=print):
        run.ledger.set_run(state="running")
        taken(run.ledger)
    assert run.ledger.run.state == "running"
    with pytest.raises(LeaseHeld, match="another"), held(run.ledger, say=print):
        pass
    assert run.ledger.run.state == "running"
    assert run.ledger.holder() is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_interrupts_the_giving_back(run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Mutant check: a Ctrl-C while the lease is given back leaves it held."""
    release = run.ledger.release

    def disturbed() -> None:
        for _ in range(3):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        release()

    monkeypatch.setattr(run.ledger, "release", disturbed)
    before = signal.getsignal(number)
    with held(run.ledger, say=print):
        pass
    assert run.ledger.holder() is None
    assert signal.getsignal(number) is before


# Renewal


class Scripted:
    """A ledger whose `renew` raises these errors in turn, and then none."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.calls, self.enough = list(errors), 0, threading.Event()

    def renew(self) -> None:
        self.calls += 1
        if self.calls > len(self.errors) + 2:
            self.enough.set()
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize(
    ("errors", "goes_on"),
    [
        ([LedgerAway("gone")] * 3, True),
        ([LedgerAway("gone"), LedgerUnavailable("disk full"), LedgerAway("gone")], True),
        ([LedgerAway("gone"), LeaseLost("another has it")], False),
    ],
)
def test_renewing_outlasts_every_error_but_the_loss(
    monkeypatch: pytest.MonkeyPatch, errors: list[BaseException], goes_on: bool
) -> None:
    """Mutant check: one error ends the renewing for good, and a living holder is displaced."""
    monkeypatch.setattr(holding, "RENEW_S", 0.01)
    ledger: Any = Scripted(*errors)
    with renewed(ledger, died=lambda error: pytest.fail(str(error))):
        assert ledger.enough.wait(2 if goes_on else 0.2) == goes_on
    if not goes_on:
        assert ledger.calls == 2


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(1)])
def test_what_else_ends_the_renewing_is_told(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr(holding, "RENEW_S", 0.01)
    heard: list[BaseException] = []
    told = threading.Event()
    ledger: Any = Scripted(error)

    def died(cause: BaseException) -> None:
        heard.append(cause)
        told.set()

    with renewed(ledger, died=died):
        assert told.wait(5)
    assert heard == [error]


# A whole session


def away(server: str, down: threading.Event) -> None:
    control(server, "stop", "-m", "immediate")
    down.set()
    time.sleep(2)
    control(server, "start")


Begun = tuple[Run, RunFolder]


@pytest.fixture
def begun(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begun]:
    """A run in PostgreSQL of which every trial is done."""
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", new_database(server))
    made = start(tmp_path / "demo", seeds=2, database=os.environ["ORCHESTRATOR_LEDGER"])
    for arm in ("plain", "flat"):
        for trial in made.confirm(arm):
            made.done(trial, 0.9 + trial.seed / 1000)
    made.ledger.release()
    yield made, RunFolder(tmp_path / "demo")
    made.ledger.close()


def drive(begun: Begun) -> int:
    run, folder = begun
    return driver._drive(run.context(folder.path), NEEDS, record=None)


AT: dict[str, Callable[[pytest.MonkeyPatch, Callable[[], None]], None]] = {
    "before it starts": lambda patch, blip: patch.setattr(Session, "start", _before(Session.start, blip)),
    "once it is closed": lambda patch, blip: patch.setattr(Session, "close", _after(Session.close, blip)),
    "before the report": lambda patch, blip: patch.setattr(ending, "of", _after(ending.of, blip)),
    "after the report": lambda patch, blip: patch.setattr(RunFolder, "check_in", _after(RunFolder.check_in, blip)),
}


def _before(call: Callable[..., Any], blip: Callable[[], None]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        blip()
        return call(*arguments)

    return both


def _after(call: Callable[..., Any], blip: Callable[[], None]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        answer = call(*arguments)
        blip()
        return answer

    return both


@pytest.mark.soak
@pytest.mark.parametrize("when", AT)
def test_a_failover_of_seconds_is_outlasted_at_every_moment_of_a_driver(
    server: str, begun: Begun, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before and after the session, which is all that was patient. Mutant check: patience of the session alone ends
    with LedgerAway, exit 4."""
    troubles: list[threading.Thread] = []

    def blip() -> None:
        if not troubles:
            down = threading.Event()
            troubles.append(threading.Thread(target=away, args=(server, down)))
            troubles[0].start()
            assert down.wait(20)

    AT[when](monkeypatch, blip)
    try:
        assert drive(begun) == Exit.DONE
    finally:
        for trouble in troubles:
            trouble.join()
    run, folder = begun
    assert troubles
    assert (run.ledger.run.state, run.ledger.holder()) == ("done", None)
    if when != "after the report":  # then there is only the lease to be given back, and nobody to tell
        assert "the ledger is back after" in folder.log.read_text()
