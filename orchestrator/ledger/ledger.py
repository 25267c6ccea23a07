"""The ledger of one run: what is read, and what is written under its lease.

A trial goes queued -> running -> done | pruned | failed. Only `failed`, and `running` when its driver is gone, goes
back to `queued`; the count of attempts never goes down.
"""

from __future__ import annotations

import time
import uuid as uuids
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.ledger import schema
from orchestrator.ledger.damage import damage
from orchestrator.ledger.database import Database
from orchestrator.ledger.lease import LastHolder, Lease, busy
from orchestrator.ledger.outage import RETRIED, Outage
from orchestrator.ledger.records import (
    TRIAL_STATES,
    Attempt,
    AttemptState,
    Event,
    Frozen,
    LedgerError,
    LedgerMissing,
    Outcome,
    Point,
    Run,
    RunState,
    Stage,
    Suggestion,
    Trial,
    TrialState,
)
from orchestrator.system.masking import masked

PENDING: tuple[TrialState, ...] = ("queued", "running", "failed")
"""States from which a trial may be queued again. What is done or pruned stays."""

REQUEUED = "queued_again"
"""Kind of the event that notes whose request to queue a trial again was met."""


P = ParamSpec("P")
T = TypeVar("T")


def _patient(method: Callable[Concatenate[Ledger, P], T]) -> Callable[Concatenate[Ledger, P], T]:
    """A method that is tried again while the database is away, if a driver has said how it waits.

    Every try has the same arguments: what can be gone through only once is gone through before the first.
    """

    @wraps(method)
    def call(self: Ledger, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        given: list[Any] = [_kept(value) for value in arguments]
        named: dict[str, Any] = {name: _kept(value) for name, value in keywords.items()}
        outage = self.outage  # read once: another thread may take it away
        if outage is None:
            return method(self, *given, **named)
        return outage.through(lambda: method(self, *given, **named))

    return call


def _kept(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value


class Ledger:
    """One run in one database. Several threads may share it. Made by `create` or `open`."""

    def __init__(self, database: Database, uuid: str) -> None:
        self._database, self.uuid = database, uuid
        self._lease = Lease(database, uuid)
        self.outage: Outage | None = None
        """How a driver waits for a database that is away. None: whatever ails it is raised at once."""

    @classmethod
    def create(
        cls,
        url: str,
        *,
        name: str,
        sweep: dict[str, Any],
        uuid: str | None = None,
        environment: dict[str, Any] | None = None,
        trials: Iterable[Trial] = (),
        rules: int = 1,
        provenance: dict[str, Any] | None = None,
    ) -> Self:
        """A new run with its trials, in one transaction; other runs of the database are left alone.

        url: `sqlite:////folder/ledger.db` or `postgresql://...`. uuid: its own, if it was chosen before. Raises
        LedgerError, and then nothing was made.
        """
        database, uuid = Database(url, create=True), uuid or str(uuids.uuid4())
        made = database.path is not None and not database.path.exists()
        try:
            with database.write() as connection:
                _bring_forward(database, connection, create=True)
                row = {"uuid": uuid, "name": name, "sweep": sweep, "state": "planned", "created": time.time()}
                row |= {"environment": environment or {}, "rules": rules, "provenance": provenance}
                connection.execute(schema.runs.insert().values(**row))
                connection.execute(schema.leases.insert().values(run=uuid, token=0))
                _insert_trials(database, connection, uuid, trials)
        except BaseException:
            database.close()
            if made and database.path is not None:
                for suffix in ("", "-wal", "-shm"):
                    database.path.with_name(database.path.name + suffix).unlink(missing_ok=True)
            raise
        return cls(database, uuid)

    @classmethod
    def open(cls, url: str, uuid: str | None = None) -> Self:
        """The run `uuid`, or the only one there is; an older schema is brought forward first.

        Raises LedgerMissing when there is none, LedgerError when there are several, or a newer schema.
        """
        database = Database(url)
        try:
            found = {run.uuid: run for run in _runs(database)}
            if uuid is not None and uuid not in found:
                raise LedgerMissing(f"{database.address} has no run {uuid}; it has {', '.join(found) or 'none'}")
            if uuid is None and len(found) > 1:
                listed = "".join(f"\n  {run.uuid}  {run.name}  {run.state}" for run in found.values())
                raise LedgerError(f"{database.address} holds {len(found)} runs; say which by its uuid:{listed}")
            return cls(database, uuid or next(iter(found)))
        except BaseException:
            database.close()
            raise

    @staticmethod
    def runs(url: str) -> list[Run]:
        """Every run in the database, oldest first. Raises LedgerMissing when there is no ledger."""
        database = Database(url)
        try:
            return _runs(database)
        finally:
            database.close()

    def discard(self) -> None:
        """Delete a run that was made a moment ago and cannot be begun, and close the connections. Needs no lease.

        Raises LedgerError for a run that anybody has ever held, and then deletes nothing.
        """
        try:
            with self._database.write() as connection:
                held = schema.leases.c.run == self.uuid, schema.leases.c.token > 0
                if connection.execute(sa.select(schema.leases.c.run).where(*held)).first():
                    raise LedgerError(f"run {self.uuid} was begun already, so it is not discarded")
                for table, column in ((schema.trials, "run"), (schema.leases, "run"), (schema.runs, "uuid")):
                    connection.execute(table.delete().where(table.c[column] == self.uuid))
        finally:
            self.close()

    def close(self) -> None:
        """Close the connections. A lease stays held: `release` it first."""
        self._database.close()

    # Reading. Needs no lease.

    @property
    @_patient
    def run(self) -> Run:
        """The run as it is now."""
        with self._database.read() as connection:
            return Run(**connection.execute(self._of(schema.runs)).mappings().one())

    @_patient
    def trials(
        self, stage: Stage | None = None, arm: str | None = None, state: TrialState | None = None
    ) -> list[Trial]:
        """Trials in the order they were planned, all of them or those that match."""
        wanted = {"stage": stage, "arm": arm, "state": state}
        chosen = [schema.trials.c[key] == value for key, value in wanted.items() if value is not None]
        return self._trials(*chosen)

    @_patient
    def trial(self, trial_id: str) -> Trial:
        """One trial. Raises LedgerMissing."""
        found = self._trials(schema.trials.c.id == trial_id)
        if not found:
            raise LedgerMissing(f"this run has no trial {trial_id}; `orchestrator status` lists them")
        return found[0]

    @_patient
    def arms(self, ids: Collection[str]) -> dict[str, str]:
        """Id -> arm of those of these trials that there are."""
        table = schema.trials
        query = self._of(table, table.c.id, table.c.arm).where(table.c.id.in_(ids))
        with self._database.read() as connection:
            return {row.id: row.arm for row in connection.execute(query)}

    @_patient
    def attempts(self, trial_id: str | None = None) -> list[Attempt]:
        """Attempts of one trial, or of all, in order."""
        table = schema.attempts
        query = self._of(table, *_named(Attempt, table)).order_by(table.c.trial, table.c.number)
        if trial_id is not None:
            query = query.where(table.c.trial == trial_id)
        with self._database.read() as connection:
            return [Attempt(**row) for row in connection.execute(query).mappings()]

    @_patient
    def points(self, trial_id: str | None = None, key: str | None = None) -> list[Point]:
        """Points of one trial, or of all, by trial, key and step."""
        return self._points(trial_id, key=key)

    @_patient
    def suggestions(self, arm: str | None = None) -> list[Suggestion]:
        """What was suggested, by arm and number."""
        table = schema.suggestions
        query = self._of(table, *_named(Suggestion, table)).order_by(table.c.arm, table.c.number)
        if arm is not None:
            query = query.where(table.c.arm == arm)
        with self._database.read() as connection:
            return [Suggestion(row.arm, row.number, row.params, tuple(row.trials)) for row in connection.execute(query)]

    @_patient
    def frozen(self) -> dict[str, Frozen]:
        """The setting each arm was frozen at, by arm; an arm that is still being tuned is not there."""
        with self._database.read() as connection:
            rows = connection.execute(self._of(schema.frozen)).all()
        return {row.arm: Frozen(row.params, row.number, row.hash) for row in rows}

    @_patient
    def events(self, kind: str | None = None) -> list[Event]:
        """What happened, oldest first."""
        table = schema.events
        query = self._of(table, *_named(Event, table)).order_by(table.c.id)
        if kind is not None:
            query = query.where(table.c.kind == kind)
        with self._database.read() as connection:
            return [Event(**row) for row in connection.execute(query).mappings()]

    @_patient
    def counts(self, stage: Stage | None = None) -> dict[TrialState, int]:
        """How many trials are in each state, the empty ones included."""
        table = schema.trials
        query = self._of(table, table.c.state, sa.func.count()).group_by(table.c.state)
        if stage is not None:
            query = query.where(table.c.stage == stage)
        with self._database.read() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in TRIAL_STATES}

    @_patient
    def fences(self) -> dict[str, tuple[int, int]]:
        """Fencing token and number of the last attempt of each trial that has one."""
        table = schema.attempts
        with self._database.read() as connection:
            rows = connection.execute(self._of(table, table.c.trial, table.c.token, table.c.number)).all()
        return {row.trial: (row.token, row.number) for row in sorted(rows, key=lambda row: row.number)}

    def damage(self) -> str | None:
        """What SQLite has against the file that holds this ledger; see `damage_at`."""
        return None if self._database.path is None else damage(self._database.path)

    # The lease.

    def acquire(self, holder: str, ttl_s: float) -> int:
        """Take the lease and return its fencing token, higher than any before. `holder`: see `this_process`.

        Raises LeaseHeld, which names the holder, while another one holds it and has not visibly ended.
        """
        return self._lease.acquire(holder, ttl_s)

    @_patient
    def renew(self) -> None:
        """Hold the lease for another `ttl_s`. Raises LeaseLost."""
        self._lease.renew()

    def check(self) -> None:
        """Raise LeaseLost unless this process holds the lease."""
        with self._write():
            pass

    def release(self) -> None:
        """Give the lease back; harmless when it is not held."""
        self._lease.release()

    @property
    def token(self) -> int | None:
        """The fencing token of the lease this process holds, or None."""
        return self._lease.token

    def ask_to_stop(self) -> None:
        """Ask whoever drives the run now to checkpoint and stop. Needs no lease."""
        self._lease.ask_to_stop()

    @_patient
    def asked_to_stop(self) -> bool:
        """Whether somebody has asked this driver to stop."""
        return self._lease.asked_to_stop()

    def holder(self) -> tuple[str, float, float] | None:
        """Who drives this run, since when and until when unless renewed (unix seconds); None when nobody does."""
        return self._lease.holder()

    def last_holder(self) -> LastHolder | None:
        """Who drives this run, or may still do so though its lease has expired; None when it has stopped or ended."""
        return self._lease.last_holder()

    # Writing. Every method is one transaction and raises LeaseLost unless this process holds the lease.

    @_patient
    def set_run(
        self,
        *,
        state: RunState | None = None,
        sweep: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
        mlflow_experiment_id: str | None = None,
        mlflow_run_id: str | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Change what is given of the run."""
        given = {
            "provenance": provenance,
            "state": state,
            "sweep": sweep,
            "environment": environment,
            "mlflow_experiment_id": mlflow_experiment_id,
            "mlflow_run_id": mlflow_run_id,
        }
        values = {key: value for key, value in given.items() if value is not None}
        with self._write() as (connection, _):
            connection.execute(schema.runs.update().where(schema.runs.c.uuid == self.uuid).values(**values))

    @_patient
    def event(self, kind: str, text: str, trial: str | None = None) -> None:
        """Note that something happened."""
        with self._write() as (connection, _):
            table, text = schema.events, masked(text)
            row = {"run": self.uuid, "time": time.time(), "kind": kind, "text": text, "trial": trial}
            last = self._of(table, table.c.kind, table.c.text, table.c.trial).order_by(table.c.id.desc()).limit(1)
            if RETRIED.get() and connection.execute(last).first() == (kind, text, trial):
                return
            connection.execute(table.insert().values(**row))

    @_patient
    def add_trials(self, trials: Iterable[Trial]) -> None:
        """Plan trials. One that is there already is left as it is."""
        with self._write() as (connection, _):
            _insert_trials(self._database, connection, self.uuid, trials)

    @_patient
    def add_suggestion(self, suggestion: Suggestion, trials: Iterable[Trial] = ()) -> None:
        """Record a suggestion with the trials it asks for, those that are new. The same again is fine.

        Raises LedgerError when the arm's suggestion of that number was another one.
        """
        with self._write() as (connection, _):
            _insert_trials(self._database, connection, self.uuid, trials)
            self._first_stands(connection, schema.suggestions, ("arm", "number"), asdict(suggestion))

    @_patient
    def freeze(self, arm: str, params: dict[str, Any], number: int | None, hash: str) -> None:  # noqa: A002
        """Record the setting an arm is confirmed with. The same again is fine. Raises LedgerError for another one."""
        row = {"arm": arm, "params": params, "number": number, "hash": hash}
        with self._write() as (connection, _):
            self._first_stands(connection, schema.frozen, ("arm",), row)

    @_patient
    def start_attempt(
        self, trial_id: str, execution: dict[str, Any], host: str, *, provenance: dict[str, Any] | None = None
    ) -> int:
        """Begin an attempt of a queued trial and return its number, from 1. Raises LedgerError in another state.

        provenance: digests of what it is to run with, until `set_provenance` says what it does run with.
        """
        now = time.time()
        with self._write() as (connection, token):
            mine = self._latest_attempt(connection, trial_id) if RETRIED.get() else None
            if mine is not None and (mine.state, mine.token) == ("running", token):
                return int(mine.number)
            trial = self._lock(connection, trial_id, ("queued",), "start")
            number: int = trial.attempts + 1
            self._set_trial(connection, trial_id, state="running", attempts=number, started=trial.started or now)
            row = {"run": self.uuid, "trial": trial_id, "number": number, "token": token, "state": "running"}
            row |= {"execution": execution, "host": host, "started": now, "provenance": provenance}
            connection.execute(schema.attempts.insert().values(**row))
        return number

    @_patient
    def set_provenance(self, trial_id: str, number: int, provenance: dict[str, Any]) -> None:
        """Record the digests of the code, the data and the weights that an attempt runs with."""
        with self._write() as (connection, _):
            self._set_attempt(connection, trial_id, number, provenance=provenance)

    @_patient
    def finish_attempt(
        self,
        trial_id: str,
        number: int,
        *,
        state: AttemptState,
        outcome: Outcome | None = None,
        metric: float | None = None,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
        result: dict[str, Any] | None = None,
        failure: str | None = None,
        message: str | None = None,
        again: bool = False,
        points: Sequence[Point] = (),
    ) -> None:
        """End a running attempt, and its trial with it. points: the last of it, which are kept or lost with its end.

        `done`, `pruned` and `failed` are the trial's state too; `interrupted`, and `failed` with `again`, put it back
        in the queue. Raises LedgerError when the attempt is not the trial's running one.
        """
        now, ends = time.time(), state in ("done", "pruned")
        queued = state == "interrupted" or (state == "failed" and again)
        if state == "running":
            raise LedgerError("an attempt ends as done, pruned, failed or interrupted, not as running")
        with self._write() as (connection, _):
            latest = self._latest_attempt(connection, trial_id) if RETRIED.get() else None
            if latest is not None and (latest.number, latest.state) == (number, state):
                return
            trial = self._lock(connection, trial_id, ("running",), "finish")
            if trial.attempts != number:
                raise LedgerError(f"trial {trial_id} runs attempt {trial.attempts}; attempt {number} has ended already")
            self._add_points(connection, trial_id, number, points)
            failure = None if ends else failure or state
            ending = {"failure": failure, "message": message, "ended": now}
            self._set_attempt(connection, trial_id, number, state=state, **ending)
            kept = {"outcome": outcome, "metric": metric, "metrics": metrics, "step": step, "result": result}
            self._set_trial(
                connection,
                trial_id,
                state="queued" if queued else state,
                failure=failure,
                message=None if ends else message,
                ended=None if queued else now,
                **{key: value for key, value in kept.items() if value is not None},
            )

    @_patient
    def record_points(self, trial_id: str, attempt: int, points: Sequence[Point]) -> None:
        """Add points of one trial, in one transaction. Where (key, step) is there already, the first value stands."""
        if points:
            with self._write() as (connection, _):
                self._add_points(connection, trial_id, attempt, points)

    @_patient
    def requeue(self, trial_id: str, *, asked: str | None = None) -> None:
        """Give a failed trial another attempt. Raises LedgerError for one that is done or pruned.

        asked: names the request, which is met once for each trial, by however many drivers it is given to.
        """
        with self._write() as (connection, _):
            if asked is not None:
                row = {"kind": REQUEUED, "text": asked, "trial": trial_id}
                table = schema.events
                if connection.execute(self._of(table).where(*(table.c[key] == row[key] for key in row))).first():
                    return
                connection.execute(table.insert().values(run=self.uuid, time=time.time(), **row))
            trial = self._lock(connection, trial_id, PENDING, "queue")
            if trial.state == "running":
                ending = _interrupted("queued again while it ran")
                self._set_attempt(connection, trial_id, trial.attempts, **ending)
            self._set_trial(connection, trial_id, state="queued", outcome=None, ended=None)

    @_patient
    def give_up(self, trial_id: str) -> None:
        """A failed trial is not tried again: its setting counts as infeasible. Raises LedgerError for another state."""
        with self._write() as (connection, _):
            self._lock(connection, trial_id, ("failed",), "give up")
            self._set_trial(connection, trial_id, outcome="infeasible")

    @_patient
    def reconcile(self) -> list[Attempt]:
        """Close as `interrupted` the attempts that an earlier holder of the lease left running, and queue their trials.

        Returns those attempts as they are afterwards, in one transaction; attempts of this holder are left alone. They
        ended when their driver last gave a sign of life: the time that the run stood still is nobody's.
        """
        table, ending = schema.attempts, _interrupted("the driver ended before the attempt did")
        closed = []
        with self._write() as (connection, token):
            left = self._of(table, *_named(Attempt, table)).where(table.c.state == "running", table.c.token < token)
            found = [Attempt(**row) for row in connection.execute(left.order_by(table.c.trial)).mappings()]
            for one in found:
                ending["ended"] = self._last_sign(connection, one)
                self._set_attempt(connection, one.trial, one.number, **ending)
                closed.append(replace(one, **ending))
                shown = {"failure": ending["failure"], "message": ending["message"]}
                self._set_trial(connection, one.trial, state="queued", **shown)
        return closed

    def _last_sign(self, connection: Connection, attempt: Attempt) -> float:
        """When something was last heard of an attempt that was left running, or of its driver."""
        table = schema.points
        own = (table.c.trial == attempt.trial) & (table.c.attempt == attempt.number)
        newest = connection.execute(self._of(table, sa.func.max(table.c.time)).where(own)).scalar()
        return max(moment for moment in (attempt.started, newest, self._lease.predecessor_seen) if moment is not None)

    # The projection's side: what MLflow has been told.

    @_patient
    def unprojected_trials(self) -> list[Trial]:
        """Trials that were started and whose state MLflow has not been told, in the order they were planned."""
        table = schema.trials
        return self._trials(table.c.revision > table.c.projected, table.c.attempts > 0)

    @_patient
    def mark_trial_projected(self, trial: Trial) -> None:
        """MLflow has been told the trial's state as of `trial.revision`."""
        with self._write() as (connection, _):
            self._update(connection, trial.id, projected=trial.revision)

    @_patient
    def set_mlflow_run(self, trial_id: str, run_id: str) -> None:
        """Record the MLflow run of a trial."""
        with self._write() as (connection, _):
            self._update(connection, trial_id, mlflow_run_id=run_id)

    @_patient
    def unprojected_points(self, limit: int = 1000, trial_id: str | None = None) -> list[Point]:
        """At most `limit` points that MLflow has not been told, by trial and step."""
        return self._points(trial_id, limit=limit)

    @_patient
    def waiting(self) -> dict[str, int]:
        """How many points MLflow has not been told, by trial; trials without one are not there."""
        table = schema.points
        query = self._of(table, table.c.trial, sa.func.count()).where(~table.c.projected).group_by(table.c.trial)
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    @_patient
    def mark_projected(self, points: Sequence[Point]) -> None:
        """MLflow has been told these points."""
        if not points:
            return
        table = schema.points
        one = [table.c[name] == sa.bindparam(f"a_{name}") for name in ("trial", "key", "step")]
        statement = table.update().where(table.c.run == self.uuid, *one).values(projected=True)
        rows = [{"a_trial": point.trial, "a_key": point.key, "a_step": point.step} for point in points]
        with self._write() as (connection, _):
            connection.execute(statement, rows)

    @_patient
    def unproject(self, trial_id: str | None = None) -> None:
        """Forget what MLflow has been told of one trial, or of the whole run, because it is not there any more."""
        trials, points, runs = schema.trials, schema.points, schema.runs
        of_trials, of_points = [trials.c.run == self.uuid], [points.c.run == self.uuid]
        if trial_id is not None:
            of_trials.append(trials.c.id == trial_id)
            of_points.append(points.c.trial == trial_id)
        with self._write() as (connection, _):
            connection.execute(trials.update().where(*of_trials).values(mlflow_run_id=None, projected=0))
            connection.execute(points.update().where(*of_points).values(projected=False))
            if trial_id is None:
                gone = {"mlflow_experiment_id": None, "mlflow_run_id": None}
                connection.execute(runs.update().where(runs.c.uuid == self.uuid).values(**gone))

    # Below: what the methods above share.

    @contextmanager
    def _write(self) -> Iterator[tuple[Connection, int]]:
        with self._database.write() as connection:
            yield connection, self._lease.check(connection)

    def _of(self, table: sa.Table, *columns: Any) -> sa.Select[Any]:
        key = table.c.uuid if table is schema.runs else table.c.run
        return sa.select(*(columns or (table,))).where(key == self.uuid)

    def _trials(self, *chosen: sa.ColumnElement[bool]) -> list[Trial]:
        table = schema.trials
        query = self._of(table, *_named(Trial, table)).where(*chosen).order_by(table.c.position)
        with self._database.read() as connection:
            return [Trial(**row) for row in connection.execute(query).mappings()]

    def _points(self, trial_id: str | None, *, key: str | None = None, limit: int | None = None) -> list[Point]:
        table = schema.points
        query = self._of(table, *_named(Point, table))
        if limit is None:
            query = query.order_by(table.c.trial, table.c.key, table.c.step)
        else:
            query = query.where(~table.c.projected).order_by(table.c.trial, table.c.step, table.c.key).limit(limit)
        for column, value in ((table.c.trial, trial_id), (table.c.key, key)):
            if value is not None:
                query = query.where(column == value)
        with self._database.read() as connection:
            return [Point(*row) for row in connection.execute(query)]

    def _lock(self, connection: Connection, trial_id: str, allowed: Sequence[TrialState], verb: str) -> sa.Row[Any]:
        table = schema.trials
        query = self._of(table, table.c.state, table.c.attempts, table.c.started).where(table.c.id == trial_id)
        row = connection.execute(query).one_or_none()
        if row is None:
            raise LedgerMissing(f"this run has no trial {trial_id}; `orchestrator status` lists them")
        if row.state not in allowed:
            raise LedgerError(f"cannot {verb} trial {trial_id}: it is {row.state}, and must be {' or '.join(allowed)}")
        return row

    def _add_points(self, connection: Connection, trial_id: str, attempt: int, points: Sequence[Point]) -> None:
        if not points:
            return
        if strangers := {point.trial for point in points} - {trial_id}:
            raise ValueError(f"points of trial {trial_id} expected, points of {', '.join(sorted(strangers))} found")
        rows = [{"run": self.uuid, **_values(point), "attempt": attempt, "projected": False} for point in points]
        furthest, table = max(point.step for point in points), schema.trials
        mine = (table.c.run == self.uuid) & (table.c.id == trial_id)
        behind = mine & (sa.func.coalesce(table.c.step, -1) < furthest)
        connection.execute(table.update().where(behind).values(step=furthest))
        connection.execute(self._database.insert(schema.points), rows)

    def _latest_attempt(self, connection: Connection, trial_id: str) -> sa.Row[Any] | None:
        table = schema.attempts
        query = self._of(table, table.c.number, table.c.state, table.c.token).where(table.c.trial == trial_id)
        return connection.execute(query.order_by(table.c.number.desc()).limit(1)).first()

    def _set_trial(self, connection: Connection, trial_id: str, **values: Any) -> None:
        self._update(connection, trial_id, revision=schema.trials.c.revision + 1, **values)

    def _update(self, connection: Connection, trial_id: str, **values: Any) -> None:
        table = schema.trials
        statement = table.update().where(table.c.run == self.uuid, table.c.id == trial_id).values(**values)
        if connection.execute(statement).rowcount != 1:
            raise LedgerMissing(f"this run has no trial {trial_id}")

    def _set_attempt(self, connection: Connection, trial_id: str, number: int, **values: Any) -> None:
        table = schema.attempts
        one = (table.c.run == self.uuid) & (table.c.trial == trial_id) & (table.c.number == number)
        connection.execute(table.update().where(one).values(**values))

    def _first_stands(
        self, connection: Connection, table: sa.Table, keys: tuple[str, ...], row: dict[str, Any]
    ) -> None:
        connection.execute(self._database.insert(table), {"run": self.uuid, **row})
        query = self._of(table).where(*(table.c[key] == row[key] for key in keys))
        there = connection.execute(query).mappings().one()
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}
        if differs := {key: (there[key], value) for key, value in plain.items() if there[key] != value}:
            what = ", ".join(f"{key}: {was!r} recorded, {now!r} asked" for key, (was, now) in differs.items())
            name = " ".join(str(row[key]) for key in keys)
            raise LedgerError(f"{table.name} already has {name}, and it differs ({what}); what is recorded stands")


def _named(kind: type, table: sa.Table) -> list[sa.Column[Any]]:
    """The columns that a value of the ledger is made of, in its order."""
    return [table.c[field.name] for field in fields(kind)]


def _interrupted(why: str) -> dict[str, Any]:
    return {"state": "interrupted", "failure": "interrupted", "message": why, "ended": time.time()}


def _values(value: Any) -> dict[str, Any]:
    """The fields of a flat dataclass, without the deep copy of `asdict`."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _insert_trials(database: Database, connection: Connection, run: str, trials: Iterable[Trial]) -> None:
    table, now = schema.trials, time.time()
    last = connection.execute(sa.select(sa.func.max(table.c.position)).where(table.c.run == run)).scalar()
    start = 0 if last is None else last + 1
    rows = [
        {**_values(trial), "run": run, "position": position, "created": trial.created or now, "projected": 0}
        for position, trial in enumerate(trials, start)
    ]
    if rows:
        connection.execute(database.insert(table), rows)


def _runs(database: Database) -> list[Run]:
    with database.read() as connection:
        version = schema.found(connection)
    if version is None:
        raise LedgerMissing(f"there is no ledger at {database.address}; `orchestrator launch` makes one")
    if version != schema.VERSION:
        with database.upgrade() as connection:
            _bring_forward(database, connection)
    query = schema.runs.select().order_by(schema.runs.c.created)
    with database.read() as connection:
        return [Run(**row) for row in connection.execute(query).mappings()]


def _bring_forward(database: Database, connection: Connection, *, create: bool = False) -> None:
    """Make the tables, or migrate them unless a driver is at work on them."""
    if not database.path:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x0CE57)))  # one process at a time makes tables
    version = schema.found(connection)
    if version is None and create:
        schema.create(connection)
    elif version is not None and version != schema.VERSION:
        now = database.now(connection)
        if version < schema.VERSION and (row := busy(connection, now, has_ttl=version >= schema.LEASE_LENGTH)):
            raise LedgerError(
                f"the ledger has schema version {version} and must be brought to {schema.VERSION}, but "
                f"{row.holder} is driving run {row.run}; stop that driver first"
            )
        schema.migrate(connection, version)
