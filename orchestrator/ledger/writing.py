"""Writes what is known of a run, and what MLflow has of it. Every method that writes is one transaction, and
raises LeaseLost unless this process holds the lease.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TypedDict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.ledger import schema
from orchestrator.ledger.outage import RETRIED
from orchestrator.ledger.reading import Reading
from orchestrator.ledger.records import (
    Attempt,
    AttemptState,
    LedgerError,
    Outcome,
    Point,
    RunState,
    Suggestion,
    Trial,
    TrialState,
)
from orchestrator.ledger.rows import insert_trials, named, patient
from orchestrator.ledger.stored import AttemptRecord, JsonObject, ProvenanceRecord, SweepTable
from orchestrator.system.masking import masked

PENDING: tuple[TrialState, ...] = ("queued", "running", "failed")
"""States from which a trial may be queued again. What is done or pruned stays."""

REQUEUED = "queued_again"
"""Kind of the event that notes whose request to queue a trial again was met."""


class Writing(Reading):
    """The writing side of a ledger."""

    @patient
    def set_run(
        self,
        *,
        state: RunState | None = None,
        sweep: SweepTable | None = None,
        environment: JsonObject | None = None,
        mlflow_experiment_id: str | None = None,
        mlflow_run_id: str | None = None,
        provenance: ProvenanceRecord | None = None,
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

    @patient
    def event(self, kind: str, text: str, trial: str | None = None) -> None:
        """Note that something happened."""
        with self._write() as (connection, _):
            table, text = schema.events, masked(text)
            row = {"run": self.uuid, "time": time.time(), "kind": kind, "text": text, "trial": trial}
            last = self._of(table, table.c.kind, table.c.text, table.c.trial).order_by(table.c.id.desc()).limit(1)
            if RETRIED.get() and connection.execute(last).first() == (kind, text, trial):
                return
            connection.execute(table.insert().values(**row))

    @patient
    def add_trials(self, trials: Iterable[Trial]) -> None:
        """Plan trials. A trial that is there already is left as it is."""
        with self._write() as (connection, _):
            insert_trials(self._database, connection, self.uuid, trials)

    @patient
    def add_suggestion(self, suggestion: Suggestion, trials: Iterable[Trial] = ()) -> None:
        """Record a suggestion with the trials it asks for, those that are new. The same again is fine.

        Raises LedgerError when the arm's suggestion of that number was another one.
        """
        with self._write() as (connection, _):
            insert_trials(self._database, connection, self.uuid, trials)
            self._first_stands(connection, schema.suggestions, ("arm", "number"), asdict(suggestion))

    @patient
    def freeze(self, arm: str, params: Mapping[str, object], number: int | None, hash: str) -> None:  # noqa: A002
        """Record the setting an arm is confirmed with. The same again is fine. Raises LedgerError for another one."""
        row = {"arm": arm, "params": params, "number": number, "hash": hash}
        with self._write() as (connection, _):
            self._first_stands(connection, schema.frozen, ("arm",), row)

    @patient
    def start_attempt(
        self, trial_id: str, execution: Mapping[str, object], host: str, *, provenance: AttemptRecord | None = None
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

    @patient
    def set_provenance(self, trial_id: str, number: int, provenance: AttemptRecord) -> None:
        """Record the digests of the code, the data and the weights that an attempt runs with."""
        with self._write() as (connection, _):
            self._set_attempt(connection, trial_id, number, provenance=provenance)

    @patient
    def finish_attempt(
        self,
        trial_id: str,
        number: int,
        *,
        state: AttemptState,
        outcome: Outcome | None = None,
        metric: float | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        result: Mapping[str, object] | None = None,
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

    @patient
    def record_points(self, trial_id: str, attempt: int, points: Sequence[Point]) -> None:
        """Add points of one trial, in one transaction. Where (key, step) is there already, the first value stands."""
        if points:
            with self._write() as (connection, _):
                self._add_points(connection, trial_id, attempt, points)

    @patient
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
                ending = _interrupted("queued again while it ran", time.time())
                self._set_attempt(connection, trial_id, trial.attempts, **ending)
            self._set_trial(connection, trial_id, state="queued", outcome=None, ended=None)

    @patient
    def give_up(self, trial_id: str) -> None:
        """Give up a failed trial: its setting counts as infeasible. Raises LedgerError for one in another state."""
        with self._write() as (connection, _):
            self._lock(connection, trial_id, ("failed",), "give up")
            self._set_trial(connection, trial_id, outcome="infeasible")

    @patient
    def reconcile(self) -> list[Attempt]:
        """Close as `interrupted` the attempts that an earlier holder of the lease left running, and queue their trials.

        Returns those attempts as they are afterwards, in one transaction; attempts of this holder are left alone. They
        ended when their driver last gave a sign of life: the time that the run stood still is nobody's.
        """
        table, closed = schema.attempts, []
        with self._write() as (connection, token):
            query = self._of(table, *named(Attempt, table)).where(table.c.state == "running", table.c.token < token)
            left = [Attempt(**row) for row in connection.execute(query.order_by(table.c.trial)).mappings()]
            for attempt in left:
                ending = _interrupted("the driver ended before the attempt did", self._last_sign(connection, attempt))
                self._set_attempt(connection, attempt.trial, attempt.number, **ending)
                closed.append(replace(attempt, **ending))
                shown = {"failure": ending["failure"], "message": ending["message"]}
                self._set_trial(connection, attempt.trial, state="queued", **shown)
        return closed

    def _last_sign(self, connection: Connection, attempt: Attempt) -> float:
        """Return when something was last heard of an attempt that was left running, or of its driver."""
        table = schema.points
        own = (table.c.trial == attempt.trial) & (table.c.attempt == attempt.number)
        newest = connection.execute(sa.select(sa.func.max(table.c.time)).where(self._own(table), own)).scalar()
        return max(moment for moment in (attempt.started, newest, self._lease.predecessor_seen) if moment is not None)


class Ending(TypedDict):
    """How an attempt ended."""

    state: AttemptState
    failure: str
    message: str
    ended: float


def _interrupted(why: str, ended: float) -> Ending:
    return {"state": "interrupted", "failure": "interrupted", "message": why, "ended": ended}


class Projecting(Reading):
    """The projection's side of a ledger: what MLflow has."""

    @patient
    def unprojected_trials(self) -> list[Trial]:
        """List started trials with a state that MLflow does not have, in the order they were planned."""
        table = schema.trials
        return self._trials(table.c.revision > table.c.projected, table.c.attempts > 0)

    @patient
    def mark_trial_projected(self, trial: Trial) -> None:
        """Note that MLflow has the trial's state as of `trial.revision`."""
        with self._write() as (connection, _):
            self._update(connection, trial.id, projected=trial.revision)

    @patient
    def set_mlflow_run(self, trial_id: str, run_id: str) -> None:
        """Record the MLflow run of a trial."""
        with self._write() as (connection, _):
            self._update(connection, trial_id, mlflow_run_id=run_id)

    @patient
    def unprojected_points(self, limit: int = 1000, trial_id: str | None = None) -> list[Point]:
        """List at most `limit` points that MLflow does not have, by trial and step."""
        return self._points(trial_id, limit=limit)

    @patient
    def waiting(self) -> dict[str, int]:
        """Count the points that MLflow does not have, by trial; trials without such points are not there."""
        table = schema.points
        waiting = self._own(table) & ~table.c.projected
        query = sa.select(table.c.trial, sa.func.count()).where(waiting).group_by(table.c.trial)
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    @patient
    def mark_projected(self, points: Sequence[Point]) -> None:
        """Note that MLflow has these points."""
        if not points:
            return
        table = schema.points
        same_point = [table.c[name] == sa.bindparam(f"a_{name}") for name in ("trial", "key", "step")]
        statement = table.update().where(table.c.run == self.uuid, *same_point).values(projected=True)
        rows = [{"a_trial": point.trial, "a_key": point.key, "a_step": point.step} for point in points]
        with self._write() as (connection, _):
            connection.execute(statement, rows)

    @patient
    def unproject(self, trial_id: str | None = None) -> None:
        """Forget that MLflow has one trial, or the whole run, because it is not there any more."""
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
