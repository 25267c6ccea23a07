"""Connections to the ledger's database: SQLite in a file, or PostgreSQL by URL.

SQLite runs in WAL mode, so that reading never waits for the writer, and with synchronous=FULL: with NORMAL a power
cut can take back commits that MLflow has already a copy of, and the points copied again after it would carry other
timestamps and appear twice. FULL costs one fsync per transaction, and the ledger writes in batches.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.pool import ConnectionPoolEntry

from orchestrator.ledger import postgres
from orchestrator.ledger.postgres import LOCK_TIMEOUT_S
from orchestrator.ledger.records import (
    LedgerAway,
    LedgerDamaged,
    LedgerError,
    LedgerMissing,
    LedgerUnavailable,
    Undecodable,
)
from orchestrator.system import scratch
from orchestrator.system.masking import MASK, masked

DAMAGED = ("malformed", "not a database", "corrupt", "decode to UTF-8", "disk I/O error")
"""Words of SQLite's for a file that is no database, or not any more."""

ENCODED = "special characters of a password percent-encoded: @ is %40, / is %2F, : is %3A, ? is %3F"

SAID = ("host", "hostaddr", "port", "user", "dbname", "sslmode", "connect_timeout", "application_name", "options")
"""Parameters of a URL whose values are shown. Any other may be a password, misspelt."""

UPGRADE_S = 3600.0
"""How long a server may take to bring a table forward, which holds as many rows as it holds."""

NETWORK = re.compile(
    r"^(9p|afs|beegfs|ceph|cifs|gfs2?|gpfs|lustre|nfs\d?|ocfs2|orangefs|panfs|smb\d?|smbfs|wekafs"
    r"|fuse\.(ceph|dfuse|gcsfuse|glusterfs|juicefs|rclone|s3fs|sshfs|goofys|mount-s3|weka).*)$"
)
"""File system types, as Linux names them, where several hosts may see one file. WAL shares memory between processes,
which does not reach across hosts, and the locks of these are not to be trusted."""

COMPLAINTS = 3
"""How many of SQLite's complaints about a file are listed."""

BUSY_S = 10
"""How long another process may keep the file meanwhile."""


def sqlite_url(path: Path) -> str:
    """Build the URL of a ledger in a file."""
    return f"sqlite:///{path.absolute()}"


def parsed(url: str) -> sa.URL:
    """Parse the URL, with the driver that we use. Raises LedgerError for what is none. The text itself is not shown: it
    may hold a password."""
    try:
        location = sa.make_url(re.sub(r"^postgres(ql)?(?=://)", "postgresql+psycopg", url))
    except (sa.exc.ArgumentError, ValueError) as error:  # ValueError: of a port
        raise LedgerError(
            "not a database URL; give sqlite:////folder/ledger.db or postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
            f"{ENCODED}"
        ) from error
    if "@" in (location.host or "") or ("@" in (location.database or "") and location.get_backend_name() != "sqlite"):
        raise LedgerError(f"the database URL cannot be read, for its password holds an @; write {ENCODED}")
    return location


class Database:
    """One database. Threads may share it: writers take turns, readers see the last commit."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Prepare the database. Raises LedgerMissing for an SQLite file that is not there (unless `create`),
        LedgerError for a bad URL."""
        self.url = parsed(url)
        shown = {name: value if name in SAID else MASK for name, value in self.url.query.items()}
        self.address = masked(self.url.set(query=shown).render_as_string(hide_password=True).replace("%2A", "*"))
        self.path: Path | None = None
        self.read_only = False
        """Whether the file, or the folder that SQLite needs for its side files, cannot be written."""
        self._turn = threading.Lock()
        dialect = self.url.get_backend_name()
        if dialect == "sqlite":
            self.path = self._usable(create)
            self.read_only = self.path.exists() and not _is_writable(self.path)
            self.engine = _reader(self.path) if self.read_only else _writer(self.url)
        elif dialect == "postgresql":
            # A driver stopped in the middle of a transaction must not hold its rows past the lease.
            waits = dict.fromkeys(("lock_timeout", "idle_in_transaction_session_timeout"), f"{LOCK_TIMEOUT_S}s")
            self.engine = postgres.engine(self.url, self.address, settings=waits)
        else:
            raise LedgerError(
                f"a ledger is kept in sqlite or postgresql, not {dialect}; set ORCHESTRATOR_LEDGER to one"
            )
        self._writer = self.engine.execution_options(writes=True)

    def _usable(self, create: bool) -> Path:
        if not self.url.database or self.url.database == ":memory:":
            raise LedgerError(
                f"{self.address}: a ledger outlives its process, so it needs a file: sqlite:////folder/ledger.db"
            )
        path = Path(self.url.database)
        if path.is_dir():
            raise LedgerError(f"{path} is a folder, and a ledger is a file; move it away, and put the ledger there")
        for side in (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal")):
            if side.is_dir():
                raise LedgerError(f"{side} is a folder, and SQLite keeps a file of the ledger there; move it away")
        if not create and not path.exists():
            raise LedgerMissing(f"there is no ledger at {path}; `orchestrator launch` makes one")
        if not create and path.stat().st_size == 0:
            log = path.with_name(f"{path.name}-wal")
            if log.exists() and log.stat().st_size:  # SQLite writes a first page before it has a log
                raise LedgerError(f"the ledger {path} is empty, and its log is not; put a copy of both there")
            raise LedgerMissing(f"the ledger {path} is empty; put a copy of it there")
        if not path.parent.is_dir():
            raise LedgerMissing(f"the folder {path.parent} does not exist; make it first")
        kind = file_system(path.parent)
        if kind is not None and NETWORK.match(kind):
            raise LedgerError(
                f"{path.parent} is on {kind}, a network file system, where SQLite loses data; put the run on a local "
                "disk, or set ORCHESTRATOR_LEDGER=postgresql://... and keep the run folder where it is"
            )
        return path

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Provide one consistent view while the context lasts. Raises LedgerUnavailable."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Provide one transaction: all of it is kept, or, when the block raises, nothing. Raises LedgerUnavailable."""
        if self.read_only:
            raise LedgerUnavailable(
                f"ledger {self.address} is read-only here, and this is to be written; make its folder writable, or "
                "copy the run to one that is"
            )
        with self._turn, self._translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def upgrade(self) -> Iterator[Connection]:
        """Provide a transaction that brings the tables forward; for a read-only ledger, those of a copy in memory."""
        if not self.read_only:
            with self.write() as connection, contextlib.ExitStack() as stack:
                if self.path is None:
                    stack.enter_context(postgres.patient(connection, UPGRADE_S))
                yield connection
            return
        with self._translated():
            assert self.path is not None
            stored = self.engine
            borrowed = stored.raw_connection()
            assert isinstance(borrowed.driver_connection, sqlite3.Connection)
            self.engine = _in_memory(borrowed.driver_connection)
            borrowed.detach()
            stored.dispose()
            with self.engine.execution_options(writes=True).begin() as connection:
                yield connection

    def now(self, connection: Connection) -> float:
        """Return unix seconds by the database's clock, so that drivers on hosts with other clocks agree on a lease."""
        sqlite = "SELECT (julianday('now') - 2440587.5) * 86400.0"
        clock = sqlite if self.path else "SELECT extract(epoch FROM clock_timestamp())"
        return float(connection.exec_driver_sql(clock).scalar_one())

    def insert(self, table: sa.Table) -> sa.Insert:
        """Build an insert into `table` that leaves a row alone if it is there already."""
        if self.path:
            from sqlalchemy.dialects.sqlite import insert as sqlite_insert

            return sqlite_insert(table).on_conflict_do_nothing()
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(table).on_conflict_do_nothing()

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            reason = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
            if self.path and any(word in reason for word in DAMAGED):
                remedy = f"the file is damaged, or no ledger: put a copy of it at {self.path}"
            elif "full" in reason or "No space" in reason:
                remedy = f"free some space in {self.path.parent}" if self.path else "free some space on its server"
            elif "locked" in reason or "lock timeout" in reason:
                remedy = "another process has held it for long; see whether a driver is stopped or stuck"
            else:
                remedy = "see that it can be reached and written, then run the same command again"
            text = f"ledger {self.address}: {reason}"
            if self._passes(error, reason):
                raise LedgerAway(text, remedy) from error
            raise LedgerUnavailable(f"{text}; {remedy}") from error
        except sa.exc.InvalidRequestError as error:
            if not isinstance(error, sa.exc.NoResultFound | sa.exc.MultipleResultsFound):
                raise
            raise LedgerDamaged(
                f"ledger {self.address} is damaged: {error}, where it should have one row; put a copy of it there"
            ) from error
        except Undecodable as error:
            raise LedgerDamaged(f"ledger {self.address} is damaged: {error}; put a copy of it there") from error

    def _passes(self, error: sa.exc.DBAPIError, reason: str) -> bool:
        """Return whether asking again later may help: after a restart, a failover, a lock that another process
        holds."""
        if "full" in reason or "No space" in reason:
            return False
        if self.path is not None:
            return "locked" in reason
        passing = sa.exc.OperationalError | sa.exc.InterfaceError
        return isinstance(error, passing) or error.connection_invalidated or "read-only transaction" in reason


class _Undo(Exception):
    """Ends a transaction of which nothing is to stay."""


def probe(url: str) -> float:
    """See that a ledger can be kept at `url`, and leave no trace; a file of SQLite is not made. Returns how many
    seconds the database's clock is ahead of this process's. Raises LedgerError."""
    if parsed(url).get_backend_name() == "sqlite":
        Database(url, create=True).close()  # says whether its folder will do
        return 0.0
    database = Database(url)
    try:
        with contextlib.suppress(_Undo), database.write() as connection:
            connection.exec_driver_sql("CREATE TABLE orchestrator_doctor (looked integer)")
            asked = time.time()
            ahead_s = database.now(connection) - (asked + time.time()) / 2
            raise _Undo
    finally:
        database.close()
    return ahead_s


def damage_at(url: str) -> str | None:
    """Find what SQLite has against the file of a ledger: a page that is damaged, an index that lacks a row, another
    format.

    None where there is nothing, or no file, or where that is for a server to say. Changes nothing, needs no lease, and
    makes no side files beside a file that nobody has open. Reads all of it.
    """
    where = parsed(url)
    path = Path(where.database or "")
    return damage(path) if where.get_backend_name() == "sqlite" and path.is_file() else None


def damage(path: Path) -> str | None:
    """Find what SQLite has against a ledger's file."""
    mode = "mode=ro" if path.with_name(path.name + "-shm").exists() else "immutable=1"
    address = f"file:{quote(str(path.absolute()))}?{mode}"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_S)) as database:
            complaints = [str(row[0]) for row in database.execute(f"PRAGMA integrity_check({COMPLAINTS})")]
    except sqlite3.OperationalError:  # busy, or not to be opened: nothing is known of what is in it
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if complaints == ["ok"] else "; ".join(" ".join(text.split()) for text in complaints)


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the type of the file system that holds `folder`, or None where the system does not say (not Linux)."""
    if not mounts.exists():
        return None
    target, best, kind = folder.resolve(), -1, None
    for line in mounts.read_text(errors="replace").splitlines():
        mount, _, tail = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), mount.split()[4]))
        # Of two mounts on one point the later one is on top.
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), tail.split()[0]
    return kind


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _writer(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _reader(path: Path) -> sa.Engine:
    """Open a file that cannot be written, with what its write-ahead log holds.

    SQLite reads the log only where its index is there too, so it is given a copy of a log without one.
    """
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if log.is_file() and log.stat().st_size and not index.exists():
        with scratch.folder("ledger") as copy:
            for file in (path, log):
                shutil.copyfile(file, copy / file.name)
            return _in_memory(sqlite3.connect(copy / path.name))
    address = f"file:{quote(str(path.absolute()))}?{'mode=ro' if index.exists() else 'immutable=1'}"
    engine = sa.create_engine(
        "sqlite://",
        poolclass=sa.NullPool,
        creator=lambda: sqlite3.connect(address, uri=True, timeout=LOCK_TIMEOUT_S, check_same_thread=False),
    )
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _in_memory(source: sqlite3.Connection) -> sa.Engine:
    """Copy a database into memory: only this process sees it, and it is gone with the engine. Closes `source`."""
    address = f"file:ledger-{uuid.uuid4()}?mode=memory&cache=shared"
    kept = sqlite3.connect(address, uri=True, check_same_thread=False)
    with contextlib.closing(source):
        source.backup(kept)
    engine = sa.create_engine(
        "sqlite://",
        poolclass=sa.NullPool,
        creator=lambda: sqlite3.connect(address, uri=True, timeout=LOCK_TIMEOUT_S, check_same_thread=False),
    )
    sa.event.listen(engine, "begin", _begin_sqlite)
    sa.event.listen(engine, "engine_disposed", lambda _: kept.close())
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={LOCK_TIMEOUT_S * 1000}"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # Said here, since Python's module would begin late and leave DDL outside. A writer takes the lock at once: a read
    # that becomes a write later fails, without waiting, if another one wrote meanwhile.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
