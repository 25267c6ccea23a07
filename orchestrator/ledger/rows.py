"""The rows of one run: how they are read and written, for the methods of the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.ledger import schema
from orchestrator.ledger.database import Database
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.outage import Outage
from orchestrator.ledger.records import Attempt, Event, LedgerError, LedgerMissing, Point, Suggestion, Trial, TrialState

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Rows")

Column = sa.ColumnElement[object]
Row = sa.Row[*tuple[object, ...]]
Query = sa.Select[*tuple[object, ...]]


def patient(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Have a method tried again while the database is away, if a driver has said how it waits.

    Every try has the same arguments: what can be gone through only once is gone through before the first.
    """

    @wraps(method)
    def call(self: S, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        given: list[Any] = [_kept(value) for value in arguments]
        named: dict[str, Any] = {name: _kept(value) for name, value in keywords.items()}
        outage = self.outage  # read once: another thread may take it away
        if outage is None:
            return method(self, *given, **named)
        return outage.through(lambda: method(self, *given, **named))

    return call


def _kept(value: object) -> object:
    return list(value) if isinstance(value, Iterator) else value


class Rows:
    """One run's rows in one database, under one lease."""

    def __init__(self, database: Database, uuid: str) -> None:
        self._database, self.uuid = database, uuid
        self._lease = Lease(database, uuid)
        self.outage: Outage | None = None
        """How a driver waits for a database that is away. None: whatever ails it is raised at once."""

    def close(self) -> None:
        """Close the connections. A lease stays held: `release` it first."""
        self._database.close()

    @contextmanager
    def _write(self) -> Iterator[tuple[Connection, int]]:
        with self._database.write() as connection:
            yield connection, self._lease.check(connection)

    def _of(self, table: sa.Table, *columns: Column) -> Query:
        return sa.select(*(columns or (table,))).where(self._own(table))

    def _own(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Return the condition for rows of this run."""
        key = table.c.uuid if table is schema.runs else table.c.run
        return key == self.uuid

    def _trials(self, *chosen: sa.ColumnElement[bool]) -> list[Trial]:
        table = schema.trials
        query = self._of(table, *named(Trial, table)).where(*chosen).order_by(table.c.position)
        with self._database.read() as connection:
            return [Trial(**row) for row in connection.execute(query).mappings()]

    def _points(self, trial_id: str | None, *, key: str | None = None, limit: int | None = None) -> list[Point]:
        table = schema.points
        columns = (table.c.trial, table.c.key, table.c.step, table.c.value, table.c.time)
        query = sa.select(*columns).where(self._own(table))
        if limit is None:
            query = query.order_by(table.c.trial, table.c.key, table.c.step)
        else:
            query = query.where(~table.c.projected).order_by(table.c.trial, table.c.step, table.c.key).limit(limit)
        for column, value in ((table.c.trial, trial_id), (table.c.key, key)):
            if value is not None:
                query = query.where(column == value)
        with self._database.read() as connection:
            return [Point(*row) for row in connection.execute(query)]

    def _lock(self, connection: Connection, trial_id: str, allowed: Sequence[TrialState], verb: str) -> Row:
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

    def _latest_attempt(self, connection: Connection, trial_id: str) -> Row | None:
        table = schema.attempts
        query = self._of(table, table.c.number, table.c.state, table.c.token).where(table.c.trial == trial_id)
        return connection.execute(query.order_by(table.c.number.desc()).limit(1)).first()

    def _set_trial(self, connection: Connection, trial_id: str, **values: object) -> None:
        self._update(connection, trial_id, revision=schema.trials.c.revision + 1, **values)

    def _update(self, connection: Connection, trial_id: str, **values: object) -> None:
        table = schema.trials
        statement = table.update().where(table.c.run == self.uuid, table.c.id == trial_id).values(**values)
        if connection.execute(statement).rowcount != 1:
            raise LedgerMissing(f"this run has no trial {trial_id}")

    def _set_attempt(self, connection: Connection, trial_id: str, number: int, **values: object) -> None:
        table = schema.attempts
        this_attempt = (table.c.run == self.uuid) & (table.c.trial == trial_id) & (table.c.number == number)
        connection.execute(table.update().where(this_attempt).values(**values))

    def _first_stands(
        self, connection: Connection, table: sa.Table, keys: tuple[str, ...], row: Mapping[str, object]
    ) -> None:
        connection.execute(self._database.insert(table), {"run": self.uuid, **row})
        query = self._of(table).where(*(table.c[key] == row[key] for key in keys))
        there = connection.execute(query).mappings().one()
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}
        if differs := {key: (there[key], value) for key, value in plain.items() if there[key] != value}:
            what = ", ".join(f"{key}: {was!r} recorded, {now!r} asked" for key, (was, now) in differs.items())
            name = " ".join(str(row[key]) for key in keys)
            raise LedgerError(f"{table.name} already has {name}, and it differs ({what}); what is recorded stands")


def named(kind: type[Trial | Attempt | Point | Suggestion | Event], table: sa.Table) -> list[Column]:
    """List the columns that a value of the ledger is made of, in its order."""
    return [table.c[field.name] for field in fields(kind)]


def _values(value: Trial | Point) -> dict[str, object]:
    """Return the fields of a flat dataclass, without the deep copy of `asdict`."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def insert_trials(database: Database, connection: Connection, run: str, trials: Iterable[Trial]) -> None:
    """Add trials of a run after the existing ones; a trial that is there already is left as it is."""
    table, now = schema.trials, time.time()
    last = connection.execute(sa.select(sa.func.max(table.c.position)).where(table.c.run == run)).scalar()
    start = 0 if last is None else last + 1
    rows = [
        {**_values(trial), "run": run, "position": position, "created": trial.created or now, "projected": 0}
        for position, trial in enumerate(trials, start)
    ]
    if rows:
        connection.execute(database.insert(table), rows)
