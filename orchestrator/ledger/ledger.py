"""The ledger of one run: what is read, and what is written under its lease.

A trial goes queued -> running -> done | pruned | failed. Only `failed`, and `running` when its driver is gone, goes
back to `queued`; the count of attempts never goes down.
"""

from __future__ import annotations

import time
import uuid as uuids
from collections.abc import Iterable, Mapping
from typing import Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.ledger import schema
from orchestrator.ledger.database import Database
from orchestrator.ledger.lease import LastHolder, busy
from orchestrator.ledger.records import LedgerError, LedgerMissing, Run, Trial
from orchestrator.ledger.rows import insert_trials, patient
from orchestrator.ledger.writing import Projecting, Writing


class Ledger(Writing, Projecting):
    """One run in one database. Several threads may share it. Made by `create` or `open`."""

    @classmethod
    def create(
        cls,
        url: str,
        *,
        name: str,
        sweep: Mapping[str, object],
        uuid: str | None = None,
        environment: Mapping[str, object] | None = None,
        trials: Iterable[Trial] = (),
        rules: int = 1,
        provenance: Mapping[str, object] | None = None,
    ) -> Self:
        """Create a run with its trials, in one transaction; other runs of the database are left alone.

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
                insert_trials(database, connection, uuid, list(trials))
        except BaseException:
            database.close()
            if made and database.path is not None:
                for suffix in ("", "-wal", "-shm"):
                    database.path.with_name(database.path.name + suffix).unlink(missing_ok=True)
            raise
        return cls(database, uuid)

    @classmethod
    def open(cls, url: str, uuid: str | None = None) -> Self:
        """Open the run `uuid`, or the only one there is; an older schema is brought forward first.

        Raises LedgerMissing when there is none, LedgerError when there are several, or a newer schema.
        """
        database = Database(url)
        try:
            runs = {run.uuid: run for run in _runs(database)}
            if uuid is not None and uuid not in runs:
                raise LedgerMissing(f"{database.address} has no run {uuid}; it has {', '.join(runs) or 'none'}")
            if not runs:
                raise LedgerMissing(f"{database.address} holds no run; `orchestrator launch` begins one")
            if uuid is None and len(runs) > 1:
                listed = "".join(f"\n  {run.uuid}  {run.name}  {run.state}" for run in runs.values())
                raise LedgerError(f"{database.address} holds {len(runs)} runs; say which by its uuid:{listed}")
            return cls(database, uuid or next(iter(runs)))
        except BaseException:
            database.close()
            raise

    @staticmethod
    def runs(url: str) -> list[Run]:
        """List every run in the database, oldest first. Raises LedgerMissing when there is no ledger."""
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

    # The lease.

    def acquire(self, holder: str, ttl_s: float) -> int:
        """Take the lease and return its fencing token, higher than any before. `holder`: see `this_process`.

        Raises LeaseHeld, which names the holder, while another one holds it and has not visibly ended.
        """
        return self._lease.acquire(holder, ttl_s)

    @patient
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

    @patient
    def asked_to_stop(self) -> bool:
        """Return whether somebody has asked this driver to stop."""
        return self._lease.asked_to_stop()

    def holder(self) -> tuple[str, float, float] | None:
        """Return who drives this run, since when and until when unless renewed (unix seconds); None when nobody
        does."""
        return self._lease.holder()

    def last_holder(self) -> LastHolder | None:
        """Return who drives this run, or may still do so though its lease has expired; None when it has stopped or
        ended."""
        return self._lease.last_holder()


def _runs(database: Database) -> list[Run]:
    with database.read() as connection:
        version = schema.stored_version(connection)
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
    version = schema.stored_version(connection)
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
