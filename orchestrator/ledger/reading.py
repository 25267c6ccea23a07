"""What is read of a run. Needs no lease."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from orchestrator.ledger import schema
from orchestrator.ledger.database import damage
from orchestrator.ledger.records import (
    TRIAL_STATES,
    Attempt,
    Event,
    Frozen,
    LedgerMissing,
    Point,
    Run,
    Stage,
    Suggestion,
    Trial,
    TrialState,
)
from orchestrator.ledger.rows import Rows, named, patient


class Reading(Rows):
    """The reading side of a ledger."""

    @property
    @patient
    def run(self) -> Run:
        """The run as it is now."""
        with self._database.read() as connection:
            return Run(**connection.execute(self._of(schema.runs)).mappings().one())

    @patient
    def trials(
        self, stage: Stage | None = None, arm: str | None = None, state: TrialState | None = None
    ) -> list[Trial]:
        """List trials in the order they were planned, all of them or those that match."""
        wanted = {"stage": stage, "arm": arm, "state": state}
        chosen = [schema.trials.c[key] == value for key, value in wanted.items() if value is not None]
        return self._trials(*chosen)

    @patient
    def trial(self, trial_id: str) -> Trial:
        """Return one trial. Raises LedgerMissing."""
        matching = self._trials(schema.trials.c.id == trial_id)
        if not matching:
            raise LedgerMissing(f"this run has no trial {trial_id}; `orchestrator status` lists them")
        return matching[0]

    @patient
    def arms(self, ids: Collection[str]) -> dict[str, str]:
        """Map id to arm for those of these trials that exist."""
        table = schema.trials
        query = self._of(table, table.c.id, table.c.arm).where(table.c.id.in_(ids))
        with self._database.read() as connection:
            return {row.id: row.arm for row in connection.execute(query)}

    @patient
    def attempts(self, trial_id: str | None = None) -> list[Attempt]:
        """List the attempts of one trial, or of all, in order."""
        table = schema.attempts
        query = self._of(table, *named(Attempt, table)).order_by(table.c.trial, table.c.number)
        if trial_id is not None:
            query = query.where(table.c.trial == trial_id)
        with self._database.read() as connection:
            return [Attempt(**row) for row in connection.execute(query).mappings()]

    @patient
    def points(self, trial_id: str | None = None, key: str | None = None) -> list[Point]:
        """List the points of one trial, or of all, by trial, key and step."""
        return self._points(trial_id, key=key)

    @patient
    def steps_up_to(self, key: str, value: float) -> dict[str, list[int]]:
        """List the steps at which a key is not above a value, by trial."""
        table = schema.points
        query = self._of(table, table.c.trial, table.c.step).where(table.c.key == key, table.c.value <= value)
        found: dict[str, list[int]] = {}
        with self._database.read() as connection:
            for row in connection.execute(query.order_by(table.c.trial, table.c.step)):
                found.setdefault(str(row.trial), []).append(int(row.step))
        return found

    @patient
    def trials_above(self, key: str, value: float) -> set[str]:
        """Find the trials that had a key above a value at any step."""
        table = schema.points
        query = self._of(table, table.c.trial).where(table.c.key == key, table.c.value > value).distinct()
        with self._database.read() as connection:
            return {str(row.trial) for row in connection.execute(query)}

    @patient
    def suggestions(self, arm: str | None = None) -> list[Suggestion]:
        """List what was suggested, by arm and number."""
        table = schema.suggestions
        query = self._of(table, *named(Suggestion, table)).order_by(table.c.arm, table.c.number)
        if arm is not None:
            query = query.where(table.c.arm == arm)
        with self._database.read() as connection:
            return [Suggestion(row.arm, row.number, row.params, tuple(row.trials)) for row in connection.execute(query)]

    @patient
    def frozen(self) -> dict[str, Frozen]:
        """Return the setting each arm was frozen at, by arm; an arm that is still being tuned is not there."""
        with self._database.read() as connection:
            rows = connection.execute(self._of(schema.frozen)).all()
        return {row.arm: Frozen(row.params, row.number, row.hash) for row in rows}

    @patient
    def events(self, kind: str | None = None) -> list[Event]:
        """List what happened, oldest first."""
        table = schema.events
        query = self._of(table, *named(Event, table)).order_by(table.c.id)
        if kind is not None:
            query = query.where(table.c.kind == kind)
        with self._database.read() as connection:
            return [Event(**row) for row in connection.execute(query).mappings()]

    @patient
    def counts(self, stage: Stage | None = None) -> dict[TrialState, int]:
        """Count the trials in each state, the empty ones included."""
        table = schema.trials
        query = sa.select(table.c.state, sa.func.count()).where(self._own(table)).group_by(table.c.state)
        if stage is not None:
            query = query.where(table.c.stage == stage)
        with self._database.read() as connection:
            by_state = {row[0]: row[1] for row in connection.execute(query)}
        return {state: by_state.get(state, 0) for state in TRIAL_STATES}

    @patient
    def fences(self) -> dict[str, tuple[int, int]]:
        """Return the fencing token and number of the last attempt of each trial that has any."""
        table = schema.attempts
        with self._database.read() as connection:
            rows = connection.execute(self._of(table, table.c.trial, table.c.token, table.c.number)).all()
        return {row.trial: (row.token, row.number) for row in sorted(rows, key=lambda row: row.number)}

    def damage(self) -> str | None:
        """Find what SQLite has against the file that holds this ledger; see `damage_at`."""
        return None if self._database.path is None else damage(self._database.path)
