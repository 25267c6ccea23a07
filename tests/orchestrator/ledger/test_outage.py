"""A database that goes away while a session runs: restarted, stopped for a while, paused, gone for good."""

from __future__ import annotations

import contextlib
import inspect
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from servers import control, new_database, postgres_server, processes
from test_ledger import WRITES, planned, point
from test_session import SWEEP, done, play, points_of

from orchestrator.ledger import (
    LeaseLost,
    Ledger,
    LedgerAway,
    LedgerError,
    LedgerUnavailable,
    Outage,
    Suggestion,
    Trial,
    outage,
    readonly,
    schema,
    sqlite_url,
)
from orchestrator.ledger import postgres as postgres_module
from orchestrator.run_dir.context import RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.session import Session
from orchestrator.session.writer import Dispatch
from orchestrator.sweep import Sweep, resolved
from orchestrator.sweep.plan import make


@pytest.fixture
def server() -> Iterator[str]:
    """A PostgreSQL of this test alone, as it is stopped and paused."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="module")
def database(postgres: str) -> str:
    """One for many runs: to make it takes longer than a run."""
    return new_database(postgres)


@contextlib.contextmanager
def opened(url: str, folder: Path) -> Iterator[tuple[Session, Ledger, list[str]]]:
    plan = make(Sweep.model_validate(SWEEP))
    ledger = Ledger.create(url, name="small", sweep=resolved(plan.sweep) | {"plan": plan.record()}, rules=plan.rules)
    ledger.acquire("this driver", 30)
    said: list[str] = []
    session = Session(RunContext(plan, RunFolder(folder), ledger), concurrent=2, tell=lambda what, _: said.append(what))
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


@pytest.mark.few(1)
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


@pytest.mark.soak
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


@contextlib.contextmanager
def readable_only(ledger: Ledger) -> Iterator[None]:
    """A database that is read and not written, as after a failover to a standby, or while a stranger writes a file."""
    database = ledger._database
    if database.path is not None:
        with contextlib.closing(sqlite3.connect(database.path, isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            yield
        return
    engine = sa.create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
        for value in ("on", "off"):
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
            others = "pid <> pg_backend_pid() AND datname = current_database()"
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")
            if value == "on":
                yield
    engine.dispose()


@contextlib.contextmanager
def read_all_the_time(ledger: Ledger) -> Iterator[list[int]]:
    """What the projection does meanwhile; how many times it was answered."""
    over, answers = threading.Event(), [0]

    def read() -> None:
        while not over.wait(0.02):
            ledger.unprojected_trials()
            answers[0] += 1

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.ledger.database.LOCK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(outage, "PAUSES_S", (0.05,))


@pytest.mark.few(1)
@pytest.mark.usefixtures("impatient")
def test_a_ledger_that_is_read_and_not_written_is_away_until_it_is_written(url: str) -> None:
    """Mutant check: an answer to anybody ends the outage of everybody."""
    with contextlib.closing(begun(url)) as ledger:
        said: list[str] = []
        ledger.outage = Outage(said.append)
        writer = threading.Thread(target=ledger.event, args=("kind", "text"))
        with read_all_the_time(ledger) as answers:
            with readable_only(ledger):
                writer.start()
                time.sleep(1.5)
                assert answers[0] > 5
                assert ledger.outage.lasted_s() > 1.4
                assert ledger.outage.seems_away()
                assert len(said) == 1, said
            writer.join(10)
        assert [event.text for event in ledger.events()] == ["text"]
        assert len(said) == 2, said
        assert re.fullmatch(r"the ledger is back after [12] s", said[1])
        assert not ledger.outage.seems_away()


@pytest.mark.few(1)
@pytest.mark.usefixtures("impatient")
def test_answers_to_readers_do_not_prolong_the_wait_of_a_writer(url: str) -> None:
    with contextlib.closing(begun(url)) as ledger:
        said: list[str] = []
        ledger.outage = Outage(said.append, longest_s=1.5)
        with read_all_the_time(ledger), readable_only(ledger):
            asked = time.monotonic()
            with pytest.raises(LedgerAway, match=r"run the same command again|stopped or stuck"):
                ledger.event("kind", "text")
            assert 1.4 < time.monotonic() - asked < 6
            time.sleep(0.2)
            assert len(said) == 1, said


@pytest.mark.usefixtures("impatient")
def test_what_is_said_of_an_outage_asks_nobody_to_do_what_is_being_done(url: str) -> None:
    """The remedies of the error are for a command that ends."""
    with contextlib.closing(begun(url)) as ledger:
        said: list[str] = []
        ledger.outage = Outage(said.append, longest_s=0.5)
        with readable_only(ledger), pytest.raises(LedgerAway):
            ledger.event("kind", "text")
        assert "; training goes on and nothing is begun; it is asked again for" in said[0]
        assert "same command" not in said[0]
        assert said[0].startswith(f"ledger {ledger._database.address}: ")


# A server of which nothing is heard


@contextlib.contextmanager
def suspended(server: str) -> Iterator[None]:
    """Its kernel acknowledges everything and nothing answers: a virtual machine that is moved, a proxy whose server is
    gone."""
    stopped = processes(server)
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            process.resume()


@pytest.mark.soak
def test_a_server_that_acknowledges_and_never_answers_is_given_up_in_bounded_time(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a transaction, and where a connection is only looked at (pool_pre_ping).

    Mutant check: keepalives alone do not end this, as the kernel of the server still answers them.
    """
    monkeypatch.setattr(postgres_module, "ANSWER_S", 1.0)
    monkeypatch.setitem(postgres_module.TCP, "connect_timeout", 2)
    with contextlib.closing(begun(new_database(server))) as ledger:
        ledger.outage = None
        asked = time.monotonic()
        with (
            pytest.raises(LedgerAway, match="the server has not answered for 1 s"),
            ledger._database.read() as connection,
            suspended(server),
        ):
            connection.exec_driver_sql("SELECT 1")
        assert 0.9 < time.monotonic() - asked < 10
        with ledger._database.read() as connection, postgres_module.patient(connection, 60):
            connection.exec_driver_sql("SELECT pg_sleep(1.5)")  # as long as it is told to wait
        ledger.event("kind", "text")
        url = ledger._database.url.render_as_string(hide_password=False).replace("+psycopg", "")
        with suspended(server):
            for ask in (
                ledger.events,
                lambda: ledger.event("kind", "text"),
                lambda: readonly.finished(url),
            ):
                asked = time.monotonic()
                with pytest.raises(LedgerError):
                    ask()
                assert time.monotonic() - asked < 20
        assert len(ledger.events()) == 1


@pytest.mark.soak
def test_many_rows_that_come_slowly_are_no_silence(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on silence, not on the answer."""
    monkeypatch.setattr(postgres_module, "ANSWER_S", 1.0)
    with contextlib.closing(begun(new_database(postgres))) as ledger, ledger._database.read() as connection:
        slow = "SELECT repeat('x', 100000), pg_sleep(0.2) FROM generate_series(1, 10)"
        assert len(connection.exec_driver_sql(slow).all()) == 10


@pytest.mark.parametrize("url", ["postgresql://h/d", "postgresql://h/d?keepalives_idle=77&connect_timeout=3"])
def test_the_kernel_is_told_to_look_for_a_host_that_is_gone(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What is asked for in the URL stands. That Linux keeps to it is not tried: that takes a network of its own."""
    given: dict[str, Any] = {}

    def connect(*_: Any, **keywords: Any) -> Any:
        given.update(keywords)
        raise psycopg.OperationalError("not now")

    monkeypatch.setattr(psycopg.Connection, "connect", connect)
    with pytest.raises(LedgerAway):
        Ledger.runs(url)
    seconds = int(given["keepalives_idle"]) + given["keepalives_interval"] * given["keepalives_count"]
    assert seconds <= (30 if "77" not in url else 97)
    assert given["tcp_user_timeout"] == 30_000
    assert str(given["connect_timeout"]) == ("10" if "77" not in url else "3")


def test_a_write_that_is_tried_again_waits_for_the_try_before_it(postgres: str) -> None:
    """The server is still at a transaction whose answer was not waited for.

    Mutant check: a lock that both may hold lets the second one look too early, and the event is there twice.
    """
    with contextlib.closing(begun(new_database(postgres))) as ledger:
        ledger.outage = None
        engine, tries = ledger._database.engine, iter([LedgerAway("lost"), None])

        def again() -> None:
            if (error := next(tries)) is not None:
                raise error
            ledger.event("kind", "text")

        with engine.connect() as first:
            first.execute(sa.select(schema.leases).with_for_update(read=True))
            row = {"run": ledger.uuid, "time": 1.0, "kind": "kind", "text": "text", "trial": None}
            first.execute(schema.events.insert().values(**row))
            thread = threading.Thread(target=Outage(lambda _: None).through, args=(again,))
            thread.start()
            time.sleep(1)
            assert thread.is_alive()
            first.commit()
            thread.join(20)
        assert len(ledger.events()) == 1


@pytest.mark.soak
def test_a_row_that_a_stranger_locks_is_waited_for(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person's own session may; the holder goes on afterwards, with its own token."""
    monkeypatch.setattr("orchestrator.ledger.database.LOCK_TIMEOUT_S", 1)
    monkeypatch.setattr(outage, "PAUSES_S", (0.1,))
    with contextlib.closing(begun(database)) as ledger:
        said: list[str] = []
        ledger.outage, token = Outage(said.append), ledger.token
        stranger = sa.create_engine(ledger._database.url)
        with stranger.connect() as connection:
            for table, key in ((schema.leases, "run"), (schema.runs, "uuid"), (schema.trials, "run")):
                connection.execute(sa.select(table).where(table.c[key] == ledger.uuid).with_for_update())
            writes = [
                threading.Thread(target=call)
                for call in (ledger.renew, lambda: ledger.set_run(state="running"), lambda: ledger.requeue("t0"))
            ]
            for thread in writes:
                thread.start()
            time.sleep(3)
            assert all(thread.is_alive() for thread in writes)
            connection.rollback()
        for thread in writes:
            thread.join(20)
        stranger.dispose()
        assert (ledger.run.state, ledger.trial("t0").state, ledger.token) == ("running", "queued", token)
        assert "lock timeout; training goes on" in said[0]
        assert "the ledger is back" in said[-1]


def test_a_lease_that_ran_out_during_an_outage_is_its_holder_s_unless_another_took_it(url: str) -> None:
    with contextlib.closing(begun(url)) as ledger, contextlib.closing(Ledger.open(url)) as other:
        ledger.release()
        ledger.acquire("me", 0.1)
        time.sleep(0.3)
        tries = iter([LedgerAway("gone"), None, None])

        def renew() -> None:
            if (error := next(tries)) is not None:
                raise error
            ledger._lease.renew()

        Outage(lambda _: None).through(renew)
        assert ledger.holder() is not None
        time.sleep(0.3)
        assert other.acquire("you", 60) == (ledger.token or 0) + 1
        with pytest.raises(LeaseLost, match="you took it over"):
            ledger.renew()


# What is tried again

PATIENT = {
    name: inspect.unwrap(found)
    for name in dir(Ledger)
    if inspect.isfunction(found := inspect.getattr_static(Ledger, name)) and hasattr(found, "__wrapped__")
}
"""The methods that are called again while the database is away."""

ONE_SHOT: dict[str, Callable[[Ledger], Any]] = {
    "add_trials of an iterator": lambda ledger: ledger.add_trials(trial for trial in new_trials()),
    "add_trials by name": lambda ledger: ledger.add_trials(trials=iter(new_trials())),
    "add_suggestion of an iterator": lambda ledger: ledger.add_suggestion(
        Suggestion("x", 0, {}, ("new", "new too")), (trial for trial in new_trials())
    ),
    "record_points of an iterator": lambda ledger: ledger.record_points("t1", 1, points("t1")),
    "finish_attempt with an iterator": lambda ledger: ledger.finish_attempt(
        "t1", 1, state="pruned", points=points("t1")
    ),
    "mark_projected of an iterator": lambda ledger: ledger.mark_projected(points("t0")),
}
"""Calls whose arguments can be gone through once, as the schedule makes them."""

ONE_SHOT_READS: dict[str, Callable[[Ledger], Any]] = {
    "arms of an iterator": lambda ledger: ledger.arms(trial for trial in ("t1", "t0")),  # type: ignore[arg-type]
    "arms by name": lambda ledger: ledger.arms(ids=iter(("t1", "t0"))),  # type: ignore[arg-type]
}
"""Those that write nothing."""


def new_trials() -> list[Trial]:
    return [Trial(id=name, stage="tune", arm="x", seed=1, job={}) for name in ("new", "new too")]


def points(trial: str) -> Any:
    """A generator where a sequence is asked for."""
    return (point(trial, step=step) for step in (1, 2))


def begun(url: str) -> Ledger:
    """A run of which t0 is failed, with points, and t1 runs, with its driver's patience."""
    ledger = Ledger.create(url, name="x", sweep={}, trials=planned(2))
    ledger.acquire("me", 60)
    for trial in ("t0", "t1"):
        ledger.start_attempt(trial, {}, "h")
    ledger.record_points("t0", 1, [point(step=1), point(step=2)])
    ledger.finish_attempt("t0", 1, state="failed")
    ledger.outage = Outage(lambda _: None)
    return ledger


PASSING = {"run", "uuid", "created", "started", "ended", "time", "since", "expires", "revision"}
"""Columns that differ between two runs, or count tries. So does an event's id."""


def rows(ledger: Ledger) -> dict[str, list[str]]:
    """Every row of the run, in order, without what passes."""
    found = {}
    with ledger._database.read() as connection:
        for table in schema.metadata.sorted_tables:
            columns = [one for one in table.c if one.name not in PASSING and one is not schema.events.c.id]
            own = table.c.get("run", table.c.get("uuid"))
            query = sa.select(*columns).where(sa.true() if own is None else own == ledger.uuid)
            query = query.order_by(*table.primary_key.columns)
            found[table.name] = [repr(row) for row in connection.execute(query)]
    return found


@contextlib.contextmanager
def commit_fails(ledger: Ledger, *, kept: bool) -> Iterator[list[int]]:
    """The next COMMIT is answered by nobody: the server ends the connection before it, or, if `kept`, after it."""
    engine, failed = ledger._database.engine, list[int]()
    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        if failed:
            return commit(connection)
        failed.append(connection.dbapi_connection.info.backend_pid)
        if kept:
            commit(connection)
        other = sa.create_engine(engine.url)
        with other.connect() as second:
            second.exec_driver_sql(f"SELECT pg_terminate_backend({failed[0]}, 5000)")
        other.dispose()
        if kept:
            connection.dbapi_connection.execute("SELECT 1")
        return commit(connection)

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]
    try:
        yield failed
    finally:
        engine.dialect.do_commit = commit  # type: ignore[method-assign]


@pytest.mark.parametrize("method", [*sorted(set(WRITES) & set(PATIENT)), *ONE_SHOT])
def test_a_write_whose_answer_is_lost_is_done_once_and_whole(
    database: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Whether it was committed or not, there is in the end what a database that stays would hold.

    Mutant checks: calling the method again with an iterator that the first try has used up loses its trials; a retry
    that does not look whether it was done writes the event twice.
    """
    monkeypatch.setattr(outage, "PAUSES_S", (0.01,))
    call, found = (WRITES | ONE_SHOT)[method], []
    for disturbed, kept in ((False, False), (True, False), (True, True)):
        with contextlib.closing(begun(database)) as ledger:
            if method == "start_attempt":
                ledger.requeue("t1")
            elif method == "give_up":
                ledger.finish_attempt("t1", 1, state="failed")
            if disturbed:
                with commit_fails(ledger, kept=kept) as failed:
                    call(ledger)
                assert len(failed) == 1, "the method commits"
            else:
                call(ledger)
            found.append(rows(ledger))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", ONE_SHOT_READS)
def test_a_read_that_loses_its_connection_asks_for_all_of_it_again(
    database: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Mutant check: calling the method again with an iterator that the first try has used up finds nothing."""
    monkeypatch.setattr(outage, "PAUSES_S", (0.01,))
    with contextlib.closing(begun(database)) as ledger:
        undisturbed = ONE_SHOT_READS[method](ledger)
        lost: list[int] = []

        def lose(connection: Any, *_: Any) -> None:
            if not lost:
                lost.append(connection.connection.dbapi_connection.info.backend_pid)
                with contextlib.closing(psycopg.connect(database.replace("+psycopg", ""), autocommit=True)) as other:
                    other.execute(f"SELECT pg_terminate_backend({lost[0]}, 5000)")

        sa.event.listen(ledger._database.engine, "before_cursor_execute", lose)
        assert ONE_SHOT_READS[method](ledger) == undisturbed
    assert len(lost) == 1
    assert undisturbed


def test_every_patient_method_that_takes_many_values_is_tried_with_an_iterator() -> None:
    """Mutant check: a new method of the kind that ONE_SHOT and ONE_SHOT_READS lack."""
    many = {
        name
        for name, method in PATIENT.items()
        for parameter in inspect.signature(method).parameters.values()
        if re.match(r"(Iterable|Sequence|Collection|Iterator|list|set|tuple)\b", str(parameter.annotation))
    }
    assert many == {name.partition(" ")[0] for name in ONE_SHOT | ONE_SHOT_READS}
    assert set(WRITES) - set(PATIENT) == {"check"}, "a new write is patient"


def test_a_driver_that_ends_takes_its_patience_away_from_under_a_call(tmp_path: Path) -> None:
    """Mutant check: reading `outage` twice meets None."""
    asked = iter([Outage(lambda _: None), None])

    class Ending(Ledger):
        outage = property(lambda _: next(asked), lambda *_: None)

    with contextlib.closing(Ending.create(sqlite_url(tmp_path / "ledger.db"), name="x", sweep={})) as ledger:
        assert ledger.events() == []
