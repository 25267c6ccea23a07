"""Connections to PostgreSQL that end in bounded time when nothing answers.

A host that is gone sends nothing, not even that it is gone: the kernel would wait for a quarter of an hour for what it
sent, and for two hours where it only listens. A proxy, or a server that is paused, acknowledges everything and never
answers. So the kernel is told to look after seconds, and a statement without any answer is given up here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any

import sqlalchemy as sa

from orchestrator.ledger.records import LedgerError

LOCK_TIMEOUT_S = 30
"""How long a transaction waits for another process's. The longest of ours takes well under a second."""

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
"""What libpq is told, unless the URL says otherwise; s, but the last one ms."""


def engine(
    url: sa.URL, address: str, *, settings: dict[str, Any], answer_s: float | None = None, **options: Any
) -> sa.Engine:
    """An engine whose connections give up what is not answered. Raises LedgerError where psycopg is not installed.

    settings: of the server, for every connection. address: the URL without its password. answer_s: instead of ANSWER_S.
    """
    try:
        connection = _connection_class(ANSWER_S if answer_s is None else answer_s)
    except ImportError as error:
        raise LedgerError(f"{address} needs psycopg 3: pip install 'psycopg[binary]'") from error
    given = {name: value for name, value in TCP.items() if name not in url.query}
    said = " ".join(f"-c {name}={value}" for name, value in settings.items())
    connect = {"options": said, "application_name": "orchestrator"} | given
    made = sa.create_engine(url, connect_args=connect, **options)

    @sa.event.listens_for(made, "do_connect")
    def _(_dialect: Any, _record: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        return connection.connect(*arguments, **keywords)

    return made


@contextlib.contextmanager
def patient(connection: Any, answer_s: float) -> Iterator[None]:
    """Let the server take so long for each statement of a connection of SQLAlchemy's."""
    own = connection.connection.driver_connection
    before, own.answer_s = own.answer_s, answer_s
    try:
        yield
    finally:
        own.answer_s = before


def _connection_class(limit_s: float) -> Any:
    import psycopg

    class Connection(psycopg.Connection[Any]):
        """One that gives up what is not answered, and is closed then: what became of it nobody knows."""

        answer_s = limit_s

        def wait(self, gen: Any, *arguments: Any, **keywords: Any) -> Any:
            try:
                return super().wait(_answered(gen, self.answer_s), *arguments, **keywords)
            except TimeoutError as error:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the server has not answered for {self.answer_s:g} s") from error

    return Connection


def _answered(steps: Generator[Any, Any, Any], limit_s: float) -> Generator[Any, Any, Any]:
    """The same steps of psycopg's, unless nothing comes for `limit_s` seconds. It asks ten times a second."""
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
        return end.value
