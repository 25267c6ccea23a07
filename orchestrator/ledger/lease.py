"""Who drives a run: a lease that expires, and a fencing token that goes up by one with every holder.

The lease keeps a second driver out; the token, checked inside the transaction of every write, keeps out one that was
stopped past its lease and wakes up later. An expired lease that nobody took is still its holder's.
"""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from . import schema
from .database import Database
from .values import LeaseHeld, LeaseLost

_HERE = re.compile(r"^(?P<host>\S+) pid (?P<pid>\d+) \[(?P<machine>\S+) (?P<start>\d+)\]$")


def this_process() -> str:
    """A holder's name that another process of this machine can check: host, pid, boot, pid namespace, start time."""
    return f"{socket.gethostname()} pid {os.getpid()} [{_machine()} {_start(os.getpid())}]"


def is_gone(holder: str) -> bool:
    """Whether a holder named by `this_process` was on this machine and has ended. False when that cannot be known."""
    match = _HERE.match(holder)
    if match is None or match["host"] != socket.gethostname() or match["machine"] != _machine():
        return False
    return match["start"] != "0" and _start(int(match["pid"])) != int(match["start"])


class Lease:
    """The lease on one run, as one process sees it."""

    def __init__(self, database: Database, run: str) -> None:
        self._database, self._run = database, run
        self._token: int | None = None
        self._ttl_s = 0.0

    @property
    def token(self) -> int | None:
        """The token this process holds, or None."""
        return self._token

    def acquire(self, holder: str, ttl_s: float) -> int:
        """Take the lease for `ttl_s` seconds. Raises LeaseHeld while another holds it, unless that one has ended."""
        with self._database.write() as connection:
            row = connection.execute(self._mine().with_for_update()).one()
            now = self._database.now(connection)
            if row.holder is not None and row.expires > now and not is_gone(row.holder):
                raise LeaseHeld(
                    f"{_short(row.holder)} has been driving this run since {_clock(row.since)}; its lease ends in "
                    f"{row.expires - now:.0f} s unless it is renewed. Wait for it, or end that process first",
                    holder=row.holder,
                    since=row.since,
                    expires=row.expires,
                    token=row.token,
                )
            token = int(row.token) + 1
            values = {"token": token, "holder": holder, "since": now, "expires": now + ttl_s}
            connection.execute(schema.leases.update().where(schema.leases.c.run == self._run).values(values))
        self._token, self._ttl_s = token, ttl_s
        return token

    def renew(self) -> None:
        """Hold it for another `ttl_s` seconds. Raises LeaseLost."""
        with self._database.write() as connection:
            self.check(connection)
            expires = self._database.now(connection) + self._ttl_s
            connection.execute(schema.leases.update().where(schema.leases.c.run == self._run).values(expires=expires))

    def release(self) -> None:
        """Give it back, so that another may take it at once. Does nothing when it is lost or was never held."""
        if self._token is None:
            return
        mine = (schema.leases.c.run == self._run) & (schema.leases.c.token == self._token)
        with self._database.write() as connection:
            connection.execute(schema.leases.update().where(mine).values(holder=None, expires=None))
        self._token = None

    def check(self, connection: Connection) -> int:
        """The token, if this process holds the lease. Raises LeaseLost.

        The row stays locked (shared) until the transaction ends, so nobody can take the lease between this check and
        the commit. SQLite has one writer at a time and needs no row lock.
        """
        row = connection.execute(self._mine().with_for_update(read=True)).one()
        if self._token is None:
            raise LeaseLost("this process does not hold the run; acquire the lease before writing")
        if row.token != self._token:
            now_held = f"{_short(row.holder)} took it over" if row.holder else "another driver took it over"
            raise LeaseLost(f"the lease on this run is lost: {now_held} (token {row.token}, ours was {self._token})")
        return self._token

    def holder(self) -> tuple[str, float, float] | None:
        """Who holds it, since when and until when (unix seconds), or None when it is free or has expired."""
        with self._database.read() as connection:
            row = connection.execute(self._mine()).one()
            if row.holder is None or row.expires <= self._database.now(connection) or is_gone(row.holder):
                return None
            return row.holder, row.since, row.expires

    def ask_to_stop(self) -> None:
        """Ask whoever holds it now to stop. Needs no lease; one who takes it later is not meant."""
        table = schema.leases
        with self._database.write() as connection:
            connection.execute(table.update().where(table.c.run == self._run).values(stop=table.c.token))

    def asked_to_stop(self) -> bool:
        """Whether somebody has asked this holder to stop."""
        with self._database.read() as connection:
            return bool(connection.execute(self._mine()).one().stop == self._token)

    def _mine(self) -> sa.Select[Any]:
        return sa.select(schema.leases).where(schema.leases.c.run == self._run)


def _machine() -> str:
    """This boot of this machine and this pid namespace: where a pid means the same process. `-` where unknown."""
    try:
        return (
            f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').stat().st_ino}"
        )
    except OSError:
        return "-"


def _start(pid: int) -> int:
    """Start time of a process in clock ticks since boot, or 0 when there is none or the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(fields[18])


def _short(holder: str) -> str:
    return holder.partition(" [")[0]


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
