"""Who drives a run: a lease that expires, and a fencing token that goes up by one with every holder.

The lease keeps a second driver out; the token, checked inside the transaction of every write, keeps out one that was
stopped past its lease and wakes up later. An expired lease that nobody took is still its holder's. Clocks jump, so
where one says too much or too little of a lease it is watched for its holder's next renewal, by a steady clock.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from orchestrator.ledger import schema
from orchestrator.ledger.database import Database
from orchestrator.ledger.outage import RETRIED
from orchestrator.ledger.records import LeaseHeld, LeaseLost
from orchestrator.system.process import is_gone

UNKNOWN_TTL_S = 30.0
"""For how long a lease holds that does not say so: older programs took it for this long."""

WATCH = 0.4
"""Part of a lease's length within which a living holder has renewed it: it does so after every quarter."""

LOOK_S = 0.2
"""How often a lease is looked at while it is watched."""

Lock = Literal["shared", "alone"]
"""How a transaction locks the row of a lease: others may read it under a lock of their own, or none may."""


class LeaseRow(NamedTuple):
    """A lease as the database has it. Times are unix seconds by its clock."""

    token: int
    holder: str | None
    since: float
    expires: float
    """Minus infinity for one that was never taken."""
    ttl_s: float
    """For how long each renewal holds it."""
    stop: int | None
    """The token of the holder that somebody has asked to stop."""


class Driven(NamedTuple):
    """A run that somebody seems to drive."""

    run: str
    holder: str


@dataclass(frozen=True)
class LastHolder:
    """Who drives a run, or did when last heard of. Times are unix seconds by the database's clock."""

    holder: str
    token: int
    since: float
    heard: float
    """When it last renewed its lease."""

    expired: bool
    """Whether it has not renewed it in time."""

    watch_s: float
    """Within how many seconds a holder that lives, and reaches the database, renews it."""


class Lease:
    """The lease on one run, as one process sees it.

    Whether a holder lives is never judged by a wall clock alone, which may jump: see `_doubt_s`.
    """

    def __init__(self, database: Database, run: str) -> None:
        self._database, self._run = database, run
        self._token: int | None = None
        self._ttl_s = 0.0
        self.predecessor_seen: float | None = None
        """When the holder before this one last renewed or released the lease, by the database's clock."""

    @property
    def token(self) -> int | None:
        """The token this process holds, or None."""
        return self._token

    def acquire(self, holder: str, ttl_s: float) -> int:
        """Take the lease for `ttl_s` seconds. Raises LeaseHeld while another holds it, unless that holder has ended.

        Where the clock leaves it open whether the holder lives, its row is watched for a while first.
        """
        watched: LeaseRow | None = None
        while True:
            with self._database.write() as connection:
                row = self._look(connection, lock="alone")
                now = self._database.now(connection)
                doubt_s = _doubt_s(row, now)
                if doubt_s == 0.0 or (watched is not None and not _is_renewal(watched, row)):
                    return self._take(connection, row, now, holder, ttl_s)
                if doubt_s is None or watched is not None:
                    raise _held(row, now)
            watched = row
            self._is_renewed(watched, doubt_s)

    def _take(self, connection: Connection, row: LeaseRow, now: float, holder: str, ttl_s: float) -> int:
        token = row.token + 1
        values = {"token": token, "holder": holder, "since": now, "expires": now + ttl_s, "ttl": ttl_s}
        connection.execute(schema.leases.update().where(schema.leases.c.run == self._run).values(values))
        self._token, self._ttl_s = token, ttl_s
        self.predecessor_seen = _last_sign(row, now)
        return token

    def _is_renewed(self, watched: LeaseRow, limit_s: float) -> bool:
        """Return whether the row is renewed within `limit_s` seconds of this process's own, steady clock."""
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left_s))
            with self._database.read() as connection:
                if _is_renewal(watched, self._look(connection)):
                    return True
        return False

    def renew(self) -> None:
        """Hold it for another `ttl_s` seconds. Raises LeaseLost."""
        with self._database.write() as connection:
            self.check(connection)
            values = {"expires": self._database.now(connection) + self._ttl_s, "ttl": self._ttl_s}
            connection.execute(schema.leases.update().where(schema.leases.c.run == self._run).values(values))

    def release(self) -> None:
        """Give it back, so that another may take it at once. Does nothing when it is lost or was never held."""
        if self._token is None:
            return
        mine = (schema.leases.c.run == self._run) & (schema.leases.c.token == self._token)
        with self._database.write() as connection:
            # Its end is kept: attempts that were left running ended then at the latest.
            released = self._database.now(connection)
            connection.execute(schema.leases.update().where(mine).values(holder=None, expires=released))
        self._token = None

    def check(self, connection: Connection) -> int:
        """Return the token, if this process holds the lease. Raises LeaseLost.

        The row stays locked (shared) until the transaction ends, so nobody can take the lease between this check and
        the commit. SQLite has one writer at a time and needs no row lock. A transaction that is tried again locks it
        alone: the server may still be at the try before, as nobody waited for its answer; then this one waits for it.
        """
        row = self._look(connection, lock="alone" if RETRIED.get() else "shared")
        if self._token is None:
            raise LeaseLost("this process does not hold the run; acquire the lease before writing")
        if row.token != self._token:
            now_held = f"{_short(row.holder)} took it over" if row.holder else "another driver took it over"
            raise LeaseLost(f"the lease on this run is lost: {now_held} (token {row.token}, ours was {self._token})")
        return self._token

    def holder(self) -> tuple[str, float, float] | None:
        """Return who holds it, since when and until when (unix seconds), or None when it is free or has expired.

        A lease that ends later than any renewal could make it (the clock was set back) is watched for a renewal.
        """
        row, now = self._row()
        if row.holder is None or row.expires <= now or is_gone(row.holder):
            return None
        if row.expires - now > row.ttl_s and not self._is_renewed(row, WATCH * row.ttl_s):
            return None
        return row.holder, row.since, min(row.expires, now + row.ttl_s)

    def last_holder(self) -> LastHolder | None:
        """Return who took it last and has neither given it back nor visibly ended; None when there is no such holder.

        Its lease may have expired: in an outage, or by a clock that was set ahead. Then only its own next look tells.
        """
        row, now = self._row()
        if row.holder is None or is_gone(row.holder):
            return None
        heard = row.expires - row.ttl_s
        return LastHolder(row.holder, row.token, row.since, heard, row.expires <= now, WATCH * row.ttl_s)

    def ask_to_stop(self) -> None:
        """Ask whoever holds it now to stop. Needs no lease; whoever takes it later is not meant."""
        table = schema.leases
        with self._database.write() as connection:
            connection.execute(table.update().where(table.c.run == self._run).values(stop=table.c.token))

    def asked_to_stop(self) -> bool:
        """Return whether somebody has asked this holder to stop."""
        with self._database.read() as connection:
            return self._look(connection).stop == self._token

    def _row(self) -> tuple[LeaseRow, float]:
        with self._database.read() as connection:
            return self._look(connection), self._database.now(connection)

    def _look(self, connection: Connection, *, lock: Lock | None = None) -> LeaseRow:
        """Read the lease as it is; its row stays locked until the transaction ends, if that is asked for."""
        query = sa.select(schema.leases).where(schema.leases.c.run == self._run)
        if lock is not None:
            query = query.with_for_update(read=lock == "shared")
        row = connection.execute(query).one()
        return LeaseRow(
            token=int(row.token),
            holder=row.holder,
            since=0.0 if row.since is None else row.since,
            expires=-math.inf if row.expires is None else row.expires,
            ttl_s=_ttl_s(row.ttl),
            stop=row.stop,
        )


def busy(connection: Connection, now: float, *, has_ttl: bool) -> Driven | None:
    """Find a run that somebody seems to drive, in tables of any version; else return None.

    has_ttl: whether the tables tell how long a lease holds. A lease that ends later than that dates from before the
    clock was set back, and its holder, if it lives, renews it in a moment.
    """
    table = schema.leases
    columns = [table.c.run, table.c.holder, table.c.expires, table.c.ttl if has_ttl else sa.null().label("ttl")]
    for row in connection.execute(sa.select(*columns).where(table.c.expires > now)):
        if row.holder is not None and row.expires - now <= _ttl_s(row.ttl) and not is_gone(row.holder):
            return Driven(row.run, row.holder)
    return None


def _doubt_s(row: LeaseRow, now: float) -> float | None:
    """Return for how many seconds to watch a lease before it is taken: 0 for a free lease, None for a held one.

    A wall clock may have jumped since the lease was renewed. Back: it ends later than any renewal could make it, and
    would shut everybody out. Ahead: it has expired, and its holder may be alive and about to renew it.
    """
    if row.holder is None or is_gone(row.holder):
        return 0.0
    left_s = row.expires - now
    if left_s > row.ttl_s:
        return row.ttl_s
    return None if left_s > 0 else max(0.0, WATCH * row.ttl_s)


def _is_renewal(before: LeaseRow, after: LeaseRow) -> bool:
    """Return whether a lease was renewed, or has changed hands; that somebody asks its holder to stop is neither."""
    return before._replace(ttl_s=after.ttl_s, stop=after.stop) != after


def _ttl_s(recorded: float | None) -> float:
    return UNKNOWN_TTL_S if recorded is None else float(recorded)


def _last_sign(row: LeaseRow, now: float) -> float | None:
    """Return when whoever the row names last wrote it; None where that is not known."""
    if row.expires == -math.inf:
        return None
    return min(now, row.expires if row.holder is None else row.expires - row.ttl_s)


def _held(row: LeaseRow, now: float) -> LeaseHeld:
    assert row.holder is not None
    left_s = min(row.expires - now, row.ttl_s)
    return LeaseHeld(
        f"{_short(row.holder)} has been driving this run since {_clock(row.since)}; its lease ends in "
        f"{left_s:.0f} s unless it is renewed. Wait for it, or end that process first",
        holder=row.holder,
        since=row.since,
        expires=row.expires,
        token=row.token,
    )


def _short(holder: str) -> str:
    return holder.partition(" [")[0]


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
