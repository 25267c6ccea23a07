"""Connections to PostgreSQL that end in bounded time when nothing answers.

A host that is gone sends nothing, not even that it is gone: the kernel would wait for a quarter of an hour for what it
sent, and for two hours where it only listens. A proxy, or a server that is paused, acknowledges everything and never
answers. So the kernel has to look after seconds, and a statement without any answer is given up here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

from orchestrator.ledger.records import LedgerError

if TYPE_CHECKING:
    import psycopg
    from psycopg.abc import PQGen
    from psycopg.rows import TupleRow

Asked = TypeVar("Asked")
Heard = TypeVar("Heard")
Result = TypeVar("Result")
"""What the steps of psycopg wait for, what comes of it, and what they end with."""

LOCK_TIMEOUT_S = 30
"""How long a transaction waits for another process's. The longest here takes well under a second."""

SILENCE_S = 30
"""After how many seconds without a sign of its host a connection counts as lost."""

ANSWER_S = LOCK_TIMEOUT_S + 15.0
"""How long the server may take for a statement, longer than it may wait for a lock."""

TCP = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": SILENCE_S // 3,
    "keepalives_interval": SILENCE_S // 6,
    "keepalives_count": 4,
    "tcp_user_timeout": SILENCE_S * 1000,
}
"""Options of libpq, unless the URL says otherwise; seconds, but the last one ms."""


def engine(
    url: sa.URL, address: str, *, settings: Mapping[str, object], answer_s: float | None = None, pooled: bool = True
) -> sa.Engine:
    """Create an engine with connections that give up what is not answered. Raises LedgerError where psycopg is not
    installed.

    settings: of the server, for every connection. address: the URL without its password. answer_s: instead of ANSWER_S,
    how long the server may take for a statement. pooled: connections are kept, and each is tried before it is used.
    """
    try:
        connection = _connection_class(ANSWER_S if answer_s is None else answer_s)
    except ImportError as error:
        raise LedgerError(f"{address} needs psycopg 3: pip install 'psycopg[binary]'") from error
    given = {name: value for name, value in TCP.items() if name not in url.query}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    connect = {"options": options, "application_name": "orchestrator"} | given
    if pooled:
        made = sa.create_engine(url, connect_args=connect, pool_pre_ping=True)
    else:
        made = sa.create_engine(url, connect_args=connect, poolclass=sa.NullPool)

    @sa.event.listens_for(made, "do_connect")
    def _(
        _dialect: sa.Dialect,
        _record: ConnectionPoolEntry,
        arguments: list[str],
        keywords: dict[str, Any],  # what libpq takes, of several types
    ) -> psycopg.Connection[TupleRow]:
        return connection.connect(*arguments, **keywords)

    return made


@runtime_checkable
class Answering(Protocol):
    """A connection that gives up what is not answered in time."""

    answer_s: float


@contextlib.contextmanager
def patient(connection: sa.Connection, answer_s: float) -> Iterator[None]:
    """Let the server take so long for each statement of a connection of SQLAlchemy's."""
    own = connection.connection.driver_connection
    assert isinstance(own, Answering), "every engine of a server is made here"
    before, own.answer_s = own.answer_s, answer_s
    try:
        yield
    finally:
        own.answer_s = before


def _connection_class(limit_s: float) -> type[psycopg.Connection[TupleRow]]:
    import psycopg
    from psycopg.rows import TupleRow

    class Connection(psycopg.Connection[TupleRow]):
        """One that gives up what is not answered, and is closed then: what became of it nobody knows."""

        answer_s = limit_s

        # How often psycopg looks, and for how long, is its own: its versions take other arguments.
        def wait(self, gen: PQGen[Result], *arguments: Any, **keywords: Any) -> Result:
            try:
                return super().wait(_answered(gen, self.answer_s), *arguments, **keywords)
            except TimeoutError as error:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the server has not answered for {self.answer_s:g} s") from error

    return Connection


def _answered(steps: Generator[Asked, Heard, Result], limit_s: float) -> Generator[Asked, Heard, Result]:
    """Yield the same steps as psycopg, which asks ten times a second; raise TimeoutError when nothing comes for
    `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if ready:
                deadline = time.monotonic() + limit_s
            elif time.monotonic() > deadline:
                raise TimeoutError
            wanted = steps.send(ready)
    except StopIteration as end:
        result: Result = end.value
        return result
