"""Claims about the ledger, each on SQLite and on PostgreSQL unless it is about one of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import new_database

from orchestrator.driver import apply_retry
from orchestrator.ledger import (
    AttemptState,
    LeaseHeld,
    LeaseLost,
    Ledger,
    LedgerError,
    LedgerMissing,
    LedgerUnavailable,
    Point,
    Suggestion,
    Trial,
    schema,
    sqlite_url,
    this_process,
)
from orchestrator.ledger import database as database_module
from orchestrator.ledger.database import NETWORK, file_system
from orchestrator.ledger.stored import JsonObject
from orchestrator.run_dir.context import RetryFailed
from orchestrator.run_dir.folder import ASKED

ROOT = Path(__file__).parents[3]
NUMBERS = count()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A run of four trials, its lease held."""
    made = Ledger.create(url, name="a sweep", sweep={"name": "a sweep"}, trials=planned(4))
    made.acquire("the test", 60)
    yield made
    made.close()


def planned(n: int) -> list[Trial]:
    return [
        Trial(id=f"t{i}", stage="tune" if i % 2 else "confirm", arm=f"arm {i // 2}", seed=i, job={"seed": i})
        for i in range(n)
    ]


def point(trial: str = "t0", key: str = "loss", step: int = 1, value: float = 0.5, at: float = 1.0) -> Point:
    return Point(trial, key, step, value, at)


def everything(ledger: Ledger) -> dict[str, list[Any]]:
    """Every row of the database, so that `nothing was written` can be claimed."""
    with ledger._database.read() as connection:
        tables = schema.metadata.sorted_tables
        return {table.name: [repr(row) for row in connection.execute(table.select())] for table in tables}


def same(left: Any, right: Any) -> bool:
    """Equality that holds for NaN too. SQLite has no -0.0, which equals 0.0."""
    return repr(left).replace("-0.0", "0.0") == repr(right).replace("-0.0", "0.0")


# A run


def test_a_run_is_read_back_as_it_was_planned(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    sweep = {"name": "temperature", "confirm": {"seeds": [1, 2]}}
    made = opened(
        Ledger.create(url, name="temperature", sweep=sweep, environment={"torch": "2.13"}, trials=planned(12))
    )
    again = opened(Ledger.open(url))
    assert again.run == made.run
    assert again.run.sweep == sweep
    assert again.run.environment == {"torch": "2.13"}
    assert again.run.state == "planned"
    read = again.trials()
    assert [replace(trial, created=None) for trial in read] == planned(12), "in the order they were planned"
    assert again.trial("t7") == read[7]
    assert [trial.id for trial in again.trials(stage="tune", arm="arm 1")] == ["t3"]
    assert again.counts() == {"queued": 12, "running": 0, "done": 0, "pruned": 0, "failed": 0}


def test_a_run_that_cannot_be_created_leaves_nothing(url: str) -> None:
    """Mutant check: committing the run before its trials fails this."""
    no_json: Any = {"json"}
    impossible = [*planned(2), Trial(id="t9", stage="tune", arm="x", seed=1, job={"not": no_json})]
    with pytest.raises(sa.exc.StatementError):
        Ledger.create(url, name="x", sweep={}, trials=impossible)
    with pytest.raises(LedgerMissing, match="there is no ledger"):
        Ledger.open(url)
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        assert list(path.parent.iterdir()) == []
    good = Ledger.create(url, name="good", sweep={})
    with pytest.raises(sa.exc.StatementError):
        Ledger.create(url, name="x", sweep={}, trials=impossible)
    assert [run.name for run in Ledger.runs(url)] == ["good"]
    good.close()


def test_runs_of_one_database_never_touch_each_other(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    """Mutant check: leaving the run out of the condition of an update fails this."""
    one = opened(Ledger.create(url, name="x", sweep={}, trials=planned(2)))
    two = opened(Ledger.create(url, name="x", sweep={}, trials=planned(2)))
    one.acquire("a", 60)
    two.acquire("b", 60)
    before = two.trials(), two.run, two.holder()
    fill(one)
    assert (two.trials(), two.run, two.holder()) == before
    for found in (two.points(), two.suggestions(), two.events(), two.attempts(), two.unprojected_points()):
        assert not found
    assert (two.frozen(), two.waiting()) == ({}, {})
    with pytest.raises(LedgerError, match=f"(?s)holds 2 runs.*{one.uuid}"):
        Ledger.open(url)
    assert opened(Ledger.open(url, two.uuid)).uuid == two.uuid
    assert [run.uuid for run in Ledger.runs(url)] == [one.uuid, two.uuid]
    with pytest.raises(LedgerMissing, match="has no run 123"):
        Ledger.open(url, "123")


def test_a_database_whose_only_run_was_discarded_has_no_ledger(url: str) -> None:
    """Seen: StopIteration."""
    Ledger.create(url, name="x", sweep={}, trials=planned(1)).discard()
    with pytest.raises(LedgerMissing, match="holds no run; `orchestrator launch` begins one"):
        Ledger.open(url)


def fill(ledger: Ledger) -> None:
    """One of every write."""
    for write in WRITES.values():
        write(ledger)


def test_an_absent_ledger_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(LedgerMissing, match="there is no ledger at"):
        Ledger.open(sqlite_url(tmp_path / "ledger.db"))
    assert list(tmp_path.iterdir()) == []


# Values


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.floats())
def test_every_float_survives(ledger: Ledger, value: float) -> None:
    """NaN, the infinities and subnormals too. Mutant check: sa.Double in place of Real fails this on SQLite."""
    trial = Trial(id=f"f{next(NUMBERS)}", stage="tune", arm="x", seed=1, job={})
    ledger.add_trials([trial])
    number = ledger.start_attempt(trial.id, {}, "h")
    ledger.record_points(trial.id, number, [point(trial.id, value=value)])
    ledger.finish_attempt(trial.id, number, state="done", metric=value, metrics={"m": value}, result={"r": [value]})
    read = ledger.trial(trial.id)
    result: Any = read.result
    for found in (ledger.points(trial.id)[0].value, read.metric, read.metrics["m"], result["r"][0]):
        assert same(found, value)


BATCHES = st.lists(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.floats(), st.floats(0, 1e9)), max_size=6),
    max_size=5,
)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("row 3 is \x00", r"row 3 is \x00"),
        ("/data/\udcff.parquet", r"/data/\udcff.parquet"),
        ("\x1b[31m\u202e\U000e0041 \\x00", "\x1b[31m\u202e\U000e0041 \\x00"),
    ],
)
def test_whatever_a_failure_says_is_kept(ledger: Ledger, said: str, kept: str) -> None:
    """Names of files and rows of data come into it, with what no database takes. Mutant check: sa.Text in place of
    Said."""
    number = ledger.start_attempt("t0", {}, said)
    ledger.finish_attempt("t0", number, state="failed", failure="user_error", message=said)
    ledger.event("note", said, "t0")
    attempt = ledger.attempts("t0")[-1]
    assert (ledger.trial("t0").message, attempt.message, attempt.host) == (kept, kept, kept)
    assert ledger.events()[-1].text == kept


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES)
def test_the_first_value_of_a_point_stands(ledger: Ledger, batches: list[list[tuple[str, int, float, float]]]) -> None:
    """Within a batch and between batches. Mutant check: on_conflict_do_update fails this."""
    trial = f"p{next(NUMBERS)}"
    ledger.add_trials([Trial(id=trial, stage="tune", arm="x", seed=1, job={})])
    first: dict[tuple[str, int], Point] = {}
    for batch in batches:
        points = [Point(trial, *values) for values in batch]
        for one in points:
            first.setdefault((one.key, one.step), one)
        ledger.record_points(trial, 1, points)
    assert same(ledger.points(trial), [first[key] for key in sorted(first)])
    assert same(ledger.points(trial, key="a"), [first[key] for key in sorted(first) if key[0] == "a"])
    assert ledger.trial(trial).step == max((step for _, step in first), default=None)


def test_the_arms_of_trials_are_told_by_id_and_of_no_others(ledger: Ledger) -> None:
    assert ledger.arms(["t3", "t0", "another"]) == {"t0": "arm 0", "t3": "arm 1"}
    assert ledger.arms([]) == {}


def test_points_of_another_trial_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="points of trial t0 expected, points of t1 found"):
        ledger.record_points("t0", 1, [point("t0"), point("t1")])
    with pytest.raises(LedgerUnavailable):
        ledger.record_points("nobody", 1, [point("nobody")])
    assert ledger.points() == []


# States

FINISH: dict[str, str] = {
    "done": "done",
    "pruned": "pruned",
    "failed": "failed",
    "interrupted": "queued",
    "again": "queued",
}
STEPS = ["start", "requeue", "takeover", "reconcile", *FINISH]
EVERY_STEP_IN_EVERY_STATE = [
    [*way, step, "start", "done"]
    for way in ([], ["start"], *(["start", end] for end in ("done", "pruned", "failed")))
    for step in STEPS
]


def test_every_step_in_every_state_is_taken_or_refused(ledger: Ledger) -> None:
    """Mutant check: letting `done` be queued again, or `reconcile` close this holder's own attempts, fails this."""
    for steps in EVERY_STEP_IN_EVERY_STATE:
        follow(ledger, steps)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([*STEPS, "start", "requeue"]), max_size=12))
def test_attempts_are_never_reset(ledger: Ledger, steps: list[str]) -> None:
    """Mutant check: starting again at attempt 1 fails this."""
    follow(ledger, steps)


def follow(ledger: Ledger, steps: list[str]) -> None:
    """Take the steps with one trial, beside a model of what they mean."""
    trial = f"s{next(NUMBERS)}"
    ledger.add_trials([Trial(id=trial, stage="tune", arm="x", seed=1, job={})])
    state, attempts, closed = "queued", 0, []
    for step in steps:
        rule = {"start": ("queued",), "requeue": ("queued", "running", "failed")}
        allowed = step in ("takeover", "reconcile") or state in rule.get(step, ("running",))
        before = None if allowed else (ledger.trials(), ledger.attempts())
        with contextlib.nullcontext() if allowed else pytest.raises(LedgerError, match=f"{trial}: it is {state}"):
            if step == "start":
                assert ledger.start_attempt(trial, {"micro": attempts}, "h") == attempts + 1
            elif step == "requeue":
                ledger.requeue(trial)
            elif step == "takeover":
                ledger.release()
                ledger.acquire("the test", 60)
                assert [one.trial for one in ledger.reconcile()] == [trial] * (state == "running")
            elif step == "reconcile":
                assert ledger.reconcile() == []
            elif step == "again":
                ledger.finish_attempt(trial, attempts, state="failed", failure="worker_lost", again=True)
            else:
                ledger.finish_attempt(trial, attempts, state=cast(AttemptState, step))
        if not allowed:
            assert (ledger.trials(), ledger.attempts()) == before
        elif step == "start":
            state, attempts = "running", attempts + 1
        elif state == "running" and step != "reconcile":
            closed.append({"again": "failed", "requeue": "interrupted", "takeover": "interrupted"}.get(step, step))
            state = FINISH.get(step, "queued")
        elif step == "requeue":
            state = "queued"
        read = ledger.trial(trial)
        assert (read.state, read.attempts) == (state, attempts)
        assert [one.state for one in ledger.attempts(trial)] == closed + ["running"] * (state == "running")
        assert (read.ended is None) == (state in ("queued", "running"))
    if state == "running":
        ledger.requeue(trial)


def test_an_attempt_keeps_what_was_different_about_it(ledger: Ledger) -> None:
    first = ledger.start_attempt("t0", {}, "host-a")
    ledger.finish_attempt("t0", first, state="failed", failure="out_of_memory", message="CUDA out of memory", step=7)
    failed = ledger.trial("t0")
    assert (failed.state, failed.failure, failed.message, failed.step) == (
        "failed",
        "out_of_memory",
        "CUDA out of memory",
        7,
    )
    ledger.requeue("t0")
    second = ledger.start_attempt("t0", {"execution.micro": 32}, "host-b")
    ledger.finish_attempt("t0", second, state="done", outcome="ok", metric=0.25, metrics={"knn": 0.25}, result={"a": 1})
    one, two = ledger.attempts("t0")
    assert (one.state, one.failure, one.host, one.execution) == ("failed", "out_of_memory", "host-a", {})
    assert (two.state, two.failure, two.host, two.execution) == ("done", None, "host-b", {"execution.micro": 32})
    assert one.started is not None
    assert one.ended is not None
    assert two.started is not None
    assert one.started <= one.ended <= two.started
    done = ledger.trial("t0")
    assert (done.failure, done.message, done.outcome, done.metric, done.result) == (None, None, "ok", 0.25, {"a": 1})
    assert done.started == one.started


def test_a_suggestion_stands_and_brings_its_trials_in_one_transaction(ledger: Ledger) -> None:
    """Mutant check: inserting the trials in a transaction of their own fails the last part."""
    suggestion = Suggestion("arm 0", 3, {"optimizer.lr": 0.1}, ("n1", "n2"))
    trials = [Trial(id=one, stage="tune", arm="arm 0", seed=i, job={}, number=3) for i, one in enumerate(("n1", "n2"))]
    for _ in range(2):
        ledger.add_suggestion(suggestion, trials)
    assert ledger.suggestions() == [suggestion] == ledger.suggestions("arm 0")
    assert ledger.suggestions("arm 1") == []
    assert [trial.number for trial in ledger.trials()] == [None] * 4 + [3, 3]
    late = Trial(id="late", stage="tune", arm="arm 0", seed=9, job={})
    with pytest.raises(LedgerError, match=r"already has arm 0 3.*'optimizer.lr': 0.1.*recorded stands"):
        ledger.add_suggestion(replace(suggestion, params={"optimizer.lr": 0.2}), [late])
    assert ledger.suggestions() == [suggestion]
    assert len(ledger.trials()) == 6


def test_an_arm_is_frozen_once(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.freeze("arm 0", {"optimizer.lr": 0.1}, 3, "abc")
    with pytest.raises(LedgerError, match=r"frozen already has arm 0.*'abc' recorded, 'def' asked"):
        ledger.freeze("arm 0", {"optimizer.lr": 0.1}, 3, "def")
    assert ledger.frozen()["arm 0"].hash == "abc"
    assert list(ledger.frozen()) == ["arm 0"]


def test_events_are_told_in_order(ledger: Ledger) -> None:
    ledger.event("checkpoint_set_aside", "step_000500: sha256 differs", "t0")
    ledger.event("takeover", "from a")
    assert [(one.kind, one.trial) for one in ledger.events()] == [("checkpoint_set_aside", "t0"), ("takeover", None)]
    assert [one.text for one in ledger.events("takeover")] == ["from a"]


# The lease

WRITES: dict[str, Callable[[Ledger], Any]] = {
    "set_run": lambda ledger: ledger.set_run(state="running", mlflow_experiment_id="1"),
    "event": lambda ledger: ledger.event("kind", "text"),
    "add_trials": lambda ledger: ledger.add_trials([Trial(id="new", stage="tune", arm="x", seed=1, job={})]),
    "add_suggestion": lambda ledger: ledger.add_suggestion(Suggestion("x", 0, {}, ("new",))),
    "freeze": lambda ledger: ledger.freeze("x", {}, 0, "abc"),
    "start_attempt": lambda ledger: ledger.start_attempt("t1", {}, "h"),
    "record_points": lambda ledger: ledger.record_points("t1", 1, [point("t1"), point("t1", step=2)]),
    "set_provenance": lambda ledger: ledger.set_provenance("t0", 1, {"code": "c"}),
    "finish_attempt": lambda ledger: ledger.finish_attempt("t1", 1, state="failed"),
    "give_up": lambda ledger: ledger.give_up("t1"),
    "requeue": lambda ledger: ledger.requeue("t1"),
    "reconcile": lambda ledger: ledger.reconcile(),
    "mark_trial_projected": lambda ledger: ledger.mark_trial_projected(ledger.trial("t1")),
    "set_mlflow_run": lambda ledger: ledger.set_mlflow_run("t1", "m"),
    "mark_projected": lambda ledger: ledger.mark_projected([point("t1")]),
    "unproject": lambda ledger: ledger.unproject(),
    "renew": lambda ledger: ledger.renew(),
    "check": lambda ledger: ledger.check(),
}
READS = {
    "attempts",
    "close",
    "counts",
    "create",
    "events",
    "frozen",
    "holder",
    "last_holder",
    "open",
    "points",
    "run",
    "runs",
}
READS |= {"arms", "damage", "fences", "last_holder", "token", "ask_to_stop", "asked_to_stop", "discard"}
READS |= {
    "arms",
    "steps_up_to",
    "trials_above",
    "suggestions",
    "trial",
    "trials",
    "unprojected_points",
    "unprojected_trials",
    "waiting",
    "acquire",
    "release",
}


def test_every_write_of_a_stale_holder_is_refused(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    """Mutant check: leaving the check out of `_write`, or comparing nothing but the holder's name, fails this."""
    public = {name for name in dir(Ledger) if not name.startswith("_")}
    assert public == READS | set(WRITES), "a new method must be listed here as one that reads or writes"
    stale = opened(Ledger.create(url, name="x", sweep={}, trials=planned(2)))
    for write in WRITES.values():
        with pytest.raises(LeaseLost, match="acquire the lease before writing"):
            write(stale)
    stale.acquire("the same name", -1)
    fill(stale)
    assert stale.trial("t1").attempts == 1, "a lease that ran out but was not taken is still good"
    stale.event("kind", "an expired lease again")
    fresh = opened(Ledger.open(url))
    stale.acquire("the same name", -1)
    assert fresh.acquire("the same name", 60) == 3
    before = everything(fresh)
    for write in WRITES.values():
        with pytest.raises(LeaseLost, match=r"the same name took it over \(token 3, ours was 2\)"):
            write(stale)
    stale.release()
    assert everything(fresh) == before
    fresh.renew()


def test_a_second_driver_is_refused_and_told_who_holds_the_run(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    first, second = opened(Ledger.create(url, name="x", sweep={})), opened(Ledger.open(url))
    started = time.time()
    assert second.holder() is None
    assert first.acquire(this_process(), 60) == 1
    with pytest.raises(LeaseHeld, match=rf" pid {os.getpid()} has been driving .* ends in (59|60) s") as refusal:
        second.acquire("another", 60)
    assert refusal.value.holder == this_process()
    assert abs(refusal.value.since - started) < 5
    assert abs(refusal.value.expires - refusal.value.since - 60) < 0.1
    held = second.holder()
    assert held is not None
    assert held[0] == this_process()
    first.release()
    assert second.holder() is None
    assert second.acquire("another", 60) == 2, "the token never goes down, also when the lease was given back"


def test_renewing_moves_the_end(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    first, second = opened(Ledger.create(url, name="x", sweep={})), opened(Ledger.open(url))
    first.acquire("first", 60)
    before = second.holder()
    first.renew()
    after = second.holder()
    assert before is not None
    assert after is not None
    assert after[1] == before[1]
    assert after[2] > before[2]


def test_only_one_of_many_drivers_starting_at_once_gets_the_run(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    opened(Ledger.create(url, name="x", sweep={}))
    ledgers = [opened(Ledger.open(url)) for _ in range(4)]
    start, won = threading.Barrier(len(ledgers)), []

    def race(one: Ledger) -> None:
        start.wait()
        with contextlib.suppress(LeaseHeld):
            won.append(one.acquire(f"driver {id(one)}", 60))

    run_threads([partial(race, one) for one in ledgers])
    assert won == [1]


def run_threads(jobs: list[Callable[[], None]]) -> None:
    """Runs all at once and raises what any of them raised."""
    raised: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - told to the test below
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []


DRIVER = """
import sys
from orchestrator.ledger import Ledger, LeaseLost, this_process
ledger = Ledger.open(sys.argv[1])
ledger.acquire(this_process(), float(sys.argv[2]))
ledger.start_attempt("t0", {}, "h")
print("held", flush=True)
sys.stdin.readline()
try:
    ledger.event("kind", "written")
    print("written", flush=True)
except LeaseLost as error:
    print(f"refused: {error}", flush=True)
"""


@contextlib.contextmanager
def driver(url: str, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that takes the lease and starts a trial, and writes when it is given a line."""
    command = [sys.executable, "-c", DRIVER, url, str(ttl_s)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_driver_that_was_killed_is_succeeded_at_once(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    """Without waiting for its lease of an hour. Mutant check: `is_gone` always False fails this."""
    next_one = opened(Ledger.create(url, name="x", sweep={}, trials=planned(2)))
    with driver(url, 3600) as process:
        with pytest.raises(LeaseHeld, match=f"pid {process.pid} has been"):
            next_one.acquire(this_process(), 60)
        process.kill()
        process.wait()
    assert next_one.holder() is None
    assert next_one.acquire(this_process(), 60) == 2
    (closed,) = next_one.reconcile()
    assert (closed.trial, closed.number, closed.state) == ("t0", 1, "interrupted")
    assert next_one.trial("t0").state == "queued"


def test_a_driver_stopped_past_its_lease_is_refused_when_it_wakes(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    """FAULTS.md row 15, with a real process that is stopped and continued."""
    second = opened(Ledger.create(url, name="x", sweep={}, trials=planned(2)))
    with driver(url, 0.5) as process:
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while second.holder() is not None:
            assert time.monotonic() < deadline
        assert second.acquire(this_process(), 60) == 2
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate("\n")
    assert output.startswith(
        f"refused: the lease on this run is lost: {this_process().partition(' [')[0]} took it over"
    )
    assert second.events() == []


# Concurrency and crashes


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    """Two write, one projects, one reads, as in a driver; nothing is lost, locked or seen half. And another driver has
    another run in the same database. Mutant check: BEGIN in place of BEGIN IMMEDIATE fails this on SQLite.
    """
    rounds, size = 20, 10
    neighbour = Ledger.create(str(ledger._database.url.render_as_string(False)), name="neighbour", sweep={})
    neighbour.acquire("neighbour", 60)

    def another() -> None:
        for _ in range(4 * rounds):
            neighbour.renew()

    def writes(trial: str) -> None:
        number = ledger.start_attempt(trial, {}, "h")
        for step in range(rounds):
            ledger.record_points(trial, number, [point(trial, f"k{k}", step) for k in range(size)])
        ledger.finish_attempt(trial, number, state="done")

    def projects() -> None:
        told = 0
        while told < 2 * rounds * size:
            points = ledger.unprojected_points(7)
            ledger.mark_projected(points)
            told += len(points)

    def reads() -> None:
        while ledger.counts()["done"] < 2:
            assert all(n % size == 0 for n in batches())

    def batches() -> list[int]:
        return [len(ledger.points(trial)) for trial in ("t0", "t1")]

    run_threads([lambda: writes("t0"), lambda: writes("t1"), projects, reads, another])
    neighbour.close()
    assert batches() == [rounds * size] * 2
    assert ledger.waiting() == {}


WRITER = """
import sys
from orchestrator.ledger import Ledger, Point, this_process
ledger = Ledger.open(sys.argv[1])
ledger.acquire(this_process(), 60)
number = ledger.start_attempt("t0", {}, "h")
for step in range(10**6):
    ledger.record_points("t0", number, [Point("t0", f"k{k}", step, 1.0, 1.0) for k in range(40)])
    print(step, flush=True)
"""


@pytest.mark.parametrize("batches", [1, 7])
def test_a_kill_leaves_whole_transactions_and_every_one_that_was_acknowledged(
    url: str, opened: Callable[[Ledger], Ledger], batches: int
) -> None:
    ledger = opened(Ledger.create(url, name="x", sweep={}, trials=planned(1)))
    command = [sys.executable, "-c", WRITER, url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(batches)]
        process.kill()
        seen += process.stdout.readlines()
    ledger.acquire(this_process(), 60)
    steps = [one.step for one in ledger.points("t0", "k39")]
    assert len(ledger.points("t0")) == 40 * len(steps)
    assert len(seen) <= len(steps) <= len(seen) + 1
    assert ledger.trial("t0").step == steps[-1]


def test_a_full_disk_stops_a_write_cleanly(tmp_path: Path) -> None:
    """FAULTS.md row 12: SQLite is given no more pages, which is how it meets a full disk. No half rows."""
    ledger = Ledger.create(sqlite_url(tmp_path / "ledger.db"), name="x", sweep={}, trials=planned(2))
    ledger.acquire("me", 60)

    def full(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    number = ledger.start_attempt("t0", {}, "h")
    ledger.record_points("t0", number, [point()])
    ledger.close()
    sa.event.listen(ledger._database.engine, "connect", full)
    with pytest.raises(LedgerUnavailable, match=f"ledger.db: database or disk is full; free some space in {tmp_path}"):
        ledger.record_points("t0", number, [point(step=step) for step in range(2, 5000)])
    ledger.close()
    sa.event.remove(ledger._database.engine, "connect", full)
    assert ledger.points() == [point()]
    assert ledger.trial("t0").step == 1
    ledger.record_points("t0", number, [point(step=2)])
    ledger.close()


def test_a_dropped_connection_is_made_again(postgres: str) -> None:
    """Mutant check: pool_pre_ping=False fails this."""
    ledger = Ledger.create(new_database(postgres), name="x", sweep={})
    ledger.acquire("me", 60)
    with ledger._database.read() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    engine = sa.create_engine(postgres.format("postgres").replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
    engine.dispose()
    ledger.event("kind", "text")
    assert len(ledger.events()) == 1
    ledger.close()


# The projection's side


def test_a_point_waits_until_mlflow_has_been_told(ledger: Ledger) -> None:
    for trial in ("t0", "t1"):
        ledger.record_points(trial, 1, [point(trial, step=step) for step in range(3)])
    assert ledger.waiting() == {"t0": 3, "t1": 3}
    first = ledger.unprojected_points(2)
    assert [(one.trial, one.step) for one in first] == [("t0", 0), ("t0", 1)]
    ledger.mark_projected(first)
    ledger.record_points("t0", 2, [point("t0", step=0, at=9.0)])
    assert ledger.waiting() == {"t0": 1, "t1": 3}, "a point told again stays told"
    assert [one.step for one in ledger.unprojected_points(10, "t1")] == [0, 1, 2]
    ledger.mark_projected(ledger.unprojected_points())
    assert ledger.waiting() == {}
    assert len(ledger.points()) == 6


def test_a_state_that_changes_while_it_is_told_is_told_again(ledger: Ledger) -> None:
    """Mutant check: marking the newest revision in place of the one that was read fails this."""
    assert ledger.unprojected_trials() == [], "a trial that never started has nothing to tell"
    number = ledger.start_attempt("t0", {}, "h")
    (seen,) = ledger.unprojected_trials()
    ledger.set_mlflow_run("t0", "m")
    ledger.finish_attempt("t0", number, state="done")
    ledger.mark_trial_projected(seen)
    (again,) = ledger.unprojected_trials()
    assert (again.state, again.mlflow_run_id) == ("done", "m")
    ledger.mark_trial_projected(again)
    assert ledger.unprojected_trials() == []


def test_what_mlflow_lost_is_told_again(ledger: Ledger) -> None:
    """All of one trial, or all of the run. Mutant check: leaving out the condition on the trial fails this."""

    def told() -> tuple[list[str], dict[str, int], str | None]:
        return [trial.id for trial in ledger.unprojected_trials()], ledger.waiting(), ledger.run.mlflow_run_id

    for trial in ("t0", "t1"):
        ledger.record_points(trial, ledger.start_attempt(trial, {}, "h"), [point(trial)])
        ledger.set_mlflow_run(trial, f"m {trial}")
        ledger.mark_trial_projected(ledger.trial(trial))
    ledger.mark_projected(ledger.unprojected_points())
    ledger.set_run(mlflow_run_id="parent", mlflow_experiment_id="1")
    assert told() == ([], {}, "parent")
    ledger.unproject("t0")
    assert told() == (["t0"], {"t0": 1}, "parent")
    assert [trial.mlflow_run_id for trial in ledger.trials()] == [None, "m t1", None, None]
    ledger.unproject()
    assert told() == (["t0", "t1"], {"t0": 1, "t1": 1}, None)


def test_whoever_holds_the_run_is_asked_to_stop_and_nobody_after(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    """Mutant check: a flag in place of the token would stop the next driver too."""
    first = opened(Ledger.create(url, name="x", sweep={}))
    first.acquire("first", 60)
    asking = opened(Ledger.open(url))
    assert not first.asked_to_stop()
    asking.ask_to_stop()
    assert first.asked_to_stop()
    first.release()
    asking.acquire("second", 60)
    assert not asking.asked_to_stop()


def test_only_a_run_that_nobody_has_held_is_discarded(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    """Mutant check: without the look at the token a run that somebody drives is gone."""
    kept = opened(Ledger.create(url, name="kept", sweep={}, trials=planned(2)))
    kept.acquire("driver", 60)
    with pytest.raises(LedgerError, match="was begun already, so it is not discarded"):
        Ledger.open(url).discard()
    assert len(kept.trials()) == 2
    Ledger.create(url, name="made in vain", sweep={}, trials=planned(2)).discard()
    assert [run.name for run in Ledger.runs(url)] == ["kept"]


def test_a_request_for_another_attempt_is_met_once_for_each_trial(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resume --failed` in a job that is lost and submitted again, between whose sessions trials fail again.

    Mutant check: `requeue` that does not look for the event gives them attempt after attempt.
    """
    for trial in ("t0", "t1"):
        ledger.finish_attempt(trial, ledger.start_attempt(trial, {}, "h"), state="failed")
    monkeypatch.setenv(ASKED, "once")
    for attempts in (2, 2, 2):
        apply_retry(ledger, RetryFailed())
        for one in ledger.trials(state="queued"):
            if one.attempts:
                ledger.finish_attempt(one.id, ledger.start_attempt(one.id, {}, "h"), state="failed")
        assert [trial.attempts for trial in ledger.trials(state="failed")] == [attempts, attempts]
    for name in ("again", None):
        monkeypatch.setenv(ASKED, name) if name else monkeypatch.delenv(ASKED)
        apply_retry(ledger, RetryFailed())
        assert ledger.counts()["failed"] == 0
        for trial in ("t0", "t1"):
            ledger.finish_attempt(trial, ledger.start_attempt(trial, {}, "h"), state="failed")


def test_only_a_failed_trial_is_given_up_and_another_attempt_takes_that_back(ledger: Ledger) -> None:
    number = ledger.start_attempt("t0", {}, "h")
    with pytest.raises(LedgerError, match="cannot give up trial t0: it is running"):
        ledger.give_up("t0")
    ledger.finish_attempt("t0", number, state="failed", failure="out_of_memory", message="big")
    ledger.give_up("t0")
    assert ledger.trial("t0").outcome == "infeasible"
    ledger.requeue("t0")
    assert ledger.trial("t0").outcome is None


# Versions


NOW = schema.VERSION


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose tables have one more column."""

    def forward(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN mood TEXT")
        connection.exec_driver_sql("UPDATE runs SET name = name || ', brought forward'")

    monkeypatch.setattr(schema, "VERSION", NOW + 1)
    monkeypatch.setitem(schema.MIGRATIONS, NOW, forward)


def test_an_older_ledger_is_brought_forward_once(
    url: str, request: pytest.FixtureRequest, opened: Callable[[Ledger], Ledger]
) -> None:
    old = opened(Ledger.create(url, name="x", sweep={}, trials=planned(2)))
    old.acquire("the old program", 60)
    request.getfixturevalue("next_version")
    with pytest.raises(LedgerError, match=f"version {NOW} and must be brought to {NOW + 1}, but the old program is"):
        Ledger.open(url)
    old.release()
    for _ in range(2):
        new = opened(Ledger.open(url))
        assert new.run.name == "x, brought forward"
        assert len(new.trials()) == 2


def test_a_ledger_of_version_1_is_brought_forward_with_its_run_and_can_be_stopped(
    url: str, opened: Callable[[Ledger], Ledger]
) -> None:
    """Mutant check: a check for busy leases that selects every column fails on the old tables."""
    old = opened(Ledger.create(url, name="x", sweep={}, trials=planned(2)))
    with old._database.write() as connection:
        for table, column in (
            ("leases", "stop"), ("leases", "ttl"), ("runs", "rules"), ("runs", "provenance"), ("attempts", "provenance")
        ):  # fmt: skip
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.exec_driver_sql("UPDATE orchestrator_schema SET version = 1")
    new = opened(Ledger.open(url))
    assert len(new.trials()) == 2
    new.acquire("h", 60)
    new.ask_to_stop()
    assert new.asked_to_stop()
    assert (new.run.rules, new.run.provenance) == (1, None)


def test_a_migration_that_fails_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDL too. Mutant check: without our own BEGIN, Python's sqlite3 keeps the new column."""
    Ledger.create(url, name="x", sweep={}).close()

    def broken(connection: sa.Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN mood TEXT")
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "VERSION", NOW + 1)
        patch.setitem(schema.MIGRATIONS, NOW, broken)
        with pytest.raises(RuntimeError, match="no"):
            Ledger.open(url)
    again = Ledger.open(url)
    with again._database.read() as connection:
        assert "mood" not in {column["name"] for column in sa.inspect(connection).get_columns("runs")}
    again.close()


def test_a_newer_ledger_is_refused(url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "VERSION", 7)
        Ledger.create(url, name="x", sweep={}).close()
    with pytest.raises(LedgerError, match=f"schema version 7 and this program knows up to {NOW}"):
        Ledger.open(url)
    with pytest.raises(LedgerError, match=f"schema version 7 and this program knows up to {NOW}"):
        Ledger.create(url, name="y", sweep={})


# Where it may live


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "file_system", lambda _: "nfs4")
    with pytest.raises(LedgerError, match=r"on nfs4, a network file system.*ORCHESTRATOR_LEDGER=postgresql://"):
        Ledger.create(sqlite_url(tmp_path / "ledger.db"), name="x", sweep={})
    assert list(tmp_path.iterdir()) == []


def test_the_file_system_of_a_folder_is_that_of_its_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    home, deep = tmp_path / "ho me", tmp_path / "ho me" / "deep"
    deep.mkdir(parents=True)
    escaped = str(home).replace(" ", "\\040")
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/vda rw\n"
        f"2 1 0:5 / {escaped} rw,relatime shared:1 - autofs x rw\n"
        f"3 1 0:6 / {escaped} rw,relatime shared:1 - nfs4 server:/home rw\n"
        f"4 1 0:7 / {escaped}2 rw - tmpfs x rw\n"
    )
    assert file_system(deep, mounts) == "nfs4"
    assert file_system(tmp_path, mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "nowhere") is None


def test_network_file_systems_are_told_from_local_ones() -> None:
    network = ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "9p", "ceph", "beegfs", "fuse.sshfs", "fuse.s3fs"]
    local = ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "fuseblk", "f2fs"]
    assert [kind for kind in network + local if NETWORK.match(kind)] == network


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("sqlite://", "needs a file"),
        ("mysql://me:a-secret@host/x", "not mysql"),
        ("a-secret", "not a database URL"),
        ("postgresql://me:a-secret@host:port/x", "not a database URL.*@ is %40"),
        ("postgresql://me@[::1/a-secret", "not a database URL"),
        ("postgresql://me:a@a-secret@host:1/x", "password holds an @.*%40"),
        ("postgresql://me:a?b=/@a-secret@host/x", "password holds an @|not a database URL"),
        ("sqlite:////nowhere/at/all/ledger.db", "folder /nowhere/at/all does not exist"),
    ],
)
def test_a_url_that_cannot_hold_a_ledger_is_refused(bad: str, said: str) -> None:
    with pytest.raises(LedgerError, match=said) as refusal:
        Ledger.create(bad, name="x", sweep={})
    assert "a-secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "given", ["me:a-secret@/x?", "me:a/a-secret@/x?", "me@/x?pasword=a-secret&", "me@/x?passwrd=a-secret&user=a&"]
)
def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path, given: str) -> None:
    """Nor with what may be one, misspelt."""
    pytest.importorskip("psycopg")
    with pytest.raises(LedgerUnavailable, match="see that it can be reached") as refusal:
        Ledger.open(f"postgresql://{given}host={tmp_path}")
    assert "a-secret" not in str(refusal.value)
    assert str(tmp_path) in unquote(str(refusal.value))


# How fast it is, and what it brings along


def test_a_thousand_trials_are_read_at_once(url: str, opened: Callable[[Ledger], Ledger]) -> None:
    """Reopening and reading 1,000 trials of 100 points takes 0.1 s; the bound is ten times that, of this process's CPU
    time, so that a busy machine is no fault."""
    job: JsonObject = {"section": {f"key {i}": i for i in range(60)}}
    trials = [Trial(id=f"{i:012x}", stage="tune", arm=f"arm {i % 4}", seed=i, job=job) for i in range(1000)]
    ledger = opened(Ledger.create(url, name="x", sweep={}, trials=trials))
    ledger.acquire("me", 60)
    rows = [
        {"run": ledger.uuid, "trial": trial.id, "key": f"k{k}", "step": step, "value": 1.0, "time": 1.0}
        for trial in trials
        for k in range(5)
        for step in range(4 if ledger._database.path is None else 20)
    ]
    with ledger._database.write() as connection:
        connection.execute(schema.points.insert().values(attempt=1, projected=True), rows)
    start = time.process_time()
    again = opened(Ledger.open(url))
    assert len(again.trials()) == 1000
    assert len(again.points(trials[500].id)) == len(rows) / 1000
    assert again.waiting() == {}
    assert again.unprojected_points() == []
    assert sum(again.counts().values()) == 1000
    assert time.process_time() - start < 1.0


def test_the_ledger_imports_nothing_heavy() -> None:
    heavy = "torch ray mlflow optuna transformers pandas numpy"
    probe = f"import json, sys, {{}}; print(json.dumps([m for m in {heavy.split()} if m in sys.modules]))"

    def leaked(module: str) -> Any:
        command = [sys.executable, "-c", probe.format(module)]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    assert leaked("orchestrator.ledger") == []
    assert leaked("numpy") == ["numpy"], "the probe can fail"


def test_not_a_number_is_not_nothing(ledger: Ledger) -> None:
    """A trial without a metric and one whose metric is NaN are told apart."""
    ledger.start_attempt("t0", {}, "h")
    ledger.finish_attempt("t0", 1, state="done", metric=math.nan)
    metric = ledger.trial("t0").metric
    assert metric is not None
    assert math.isnan(metric)
    assert ledger.trial("t1").metric is None
