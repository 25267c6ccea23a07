"""The tables of the ledger, their version, and how an older database is brought forward.

Every row carries the uuid of its run, so one database may hold many runs. JSON is kept as text: it is never searched
by the database, and text keeps NaN and the infinities, which JSON columns of PostgreSQL refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.types import TypeDecorator, UserDefinedType

from orchestrator.ledger.records import LedgerError, Undecodable

VERSION = 3
"""Version of the tables below."""

LEASE_LENGTH = 3
"""From this version on a lease says for how long each renewal holds."""


def _ask_to_stop(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE leases ADD COLUMN stop BIGINT")


def _rules_and_provenance(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN rules INTEGER NOT NULL DEFAULT 1")
    connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN provenance TEXT")
    connection.exec_driver_sql("ALTER TABLE attempts ADD COLUMN provenance TEXT")
    connection.exec_driver_sql("ALTER TABLE leases ADD COLUMN ttl DOUBLE PRECISION")


MIGRATIONS: dict[int, Callable[[Connection], None]] = {1: _ask_to_stop, 2: _rules_and_provenance}
"""MIGRATIONS[n] turns the tables of version n into those of version n + 1, inside the caller's transaction."""


class Real(UserDefinedType[float]):
    """A float, NaN and the infinities included. SQLite would turn NaN into NULL, so there NaN is kept as text.

    (SQLite also turns -0.0 into 0.0, which is left so: they are equal.)
    """

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the name of the type, understood by both databases."""
        return "DOUBLE PRECISION"

    def bind_processor(self, dialect: Dialect) -> Callable[[float | None], float | str | None]:
        """Return the function that converts a value for the database."""
        nan = "nan" if dialect.name == "sqlite" else math.nan
        return lambda value: None if value is None else nan if math.isnan(value) else float(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[object], float | None]:  # noqa: ARG002
        """Return the function that converts a value from the database."""
        return lambda value: None if value is None else _number(value)


class Json(TypeDecorator[object]):
    """A JSON object, or a value of another `kind`, as text; None is NULL."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: type = dict) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Convert a value for the database."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:  # noqa: ARG002
        """Convert a value from the database."""
        if value is None:
            return None
        try:
            decoded: object = json.loads(value)
        except (ValueError, TypeError, RecursionError) as error:
            raise Undecodable(f"{_shown(value)} is no JSON ({error})") from error
        if not isinstance(decoded, self.kind):
            raise Undecodable(f"{_shown(value)} is no JSON {'array' if self.kind is list else 'object'}")
        return decoded


class Said(TypeDecorator[str]):
    """What a program or a system has said. Of characters that no database keeps, NUL and halves of surrogates, as names
    of files have them, the escapes."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Convert a text for the database."""
        return None if value is None else value.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()


def _number(value: object) -> float:
    if isinstance(value, float):  # as good as always, and a ledger holds many
        return value
    try:
        return float(str(value))
    except ValueError as error:
        raise Undecodable(f"{_shown(value)} is no number") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


metadata = sa.MetaData()

version = sa.Table("orchestrator_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("uuid", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("sweep", Json, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created", Real, nullable=False),
    sa.Column("environment", Json, nullable=False),
    sa.Column("mlflow_experiment_id", sa.Text),
    sa.Column("mlflow_run_id", sa.Text),
    # How ids, sampler seeds and looks follow from the sweep: as they did when the run was begun.
    sa.Column("rules", sa.Integer, nullable=False, server_default="1"),
    # Digests of code, data and weights that the run was begun with, and of code that was accepted later.
    sa.Column("provenance", Json),
)


def _run() -> sa.Column[str]:
    return sa.Column("run", sa.Text, sa.ForeignKey("runs.uuid"), primary_key=True)


leases = sa.Table(
    "leases",
    metadata,
    _run(),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("holder", Said),
    sa.Column("since", Real),
    sa.Column("expires", Real),
    # The token of the holder that somebody has asked to stop.
    sa.Column("stop", sa.BigInteger),
    # Seconds for which each renewal holds, which tells how often a living holder renews.
    sa.Column("ttl", Real),
)

trials = sa.Table(
    "trials",
    metadata,
    _run(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("job", Json, nullable=False),
    sa.Column("number", sa.Integer),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("metric", Real),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("step", sa.BigInteger),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failure", sa.Text),
    sa.Column("message", Said),
    sa.Column("result", Json),
    sa.Column("mlflow_run_id", sa.Text),
    sa.Column("created", Real, nullable=False),
    sa.Column("started", Real),
    sa.Column("ended", Real),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("projected", sa.BigInteger, nullable=False),
)

attempts = sa.Table(
    "attempts",
    metadata,
    _run(),
    sa.Column("trial", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("execution", Json, nullable=False),
    sa.Column("host", Said, nullable=False),
    sa.Column("failure", sa.Text),
    sa.Column("message", Said),
    sa.Column("started", Real, nullable=False),
    sa.Column("ended", Real),
    # Digests of the code, the data and the weights that it ran with.
    sa.Column("provenance", Json),
    sa.ForeignKeyConstraint(["run", "trial"], ["trials.run", "trials.id"]),
)

points = sa.Table(
    "points",
    metadata,
    _run(),
    sa.Column("trial", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("value", Real, nullable=False),
    sa.Column("time", Real, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("projected", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(["run", "trial"], ["trials.run", "trials.id"]),
    sqlite_with_rowid=False,
)

points_waiting = sa.Index(
    "points_waiting",
    points.c.run,
    points.c.trial,
    points.c.step,
    sqlite_where=~points.c.projected,
    postgresql_where=~points.c.projected,
)
"""Points that MLflow does not have yet. Empty most of the time, so that asking costs nothing."""

suggestions = sa.Table(
    "suggestions",
    metadata,
    _run(),
    sa.Column("arm", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("params", Json, nullable=False),
    sa.Column("trials", Json(list), nullable=False),
)

frozen = sa.Table(
    "frozen",
    metadata,
    _run(),
    sa.Column("arm", sa.Text, primary_key=True),
    sa.Column("params", Json, nullable=False),
    sa.Column("number", sa.Integer),
    sa.Column("hash", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.Text, sa.ForeignKey("runs.uuid"), nullable=False),
    sa.Column("time", Real, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("text", Said, nullable=False),
    sa.Column("trial", sa.Text),
)


def stored_version(connection: Connection) -> int | None:
    """Read the version of the ledger in this database, or return None where there is no ledger."""
    if not sa.inspect(connection).has_table(version.name):
        return None
    number: int | None = connection.execute(sa.select(version.c.version)).scalar_one_or_none()
    return number


def create(connection: Connection) -> None:
    """Make the tables of this version."""
    metadata.create_all(connection)
    connection.execute(version.insert().values(version=VERSION))


def migrate(connection: Connection, start: int) -> None:
    """Bring tables of version `start` forward, one version at a time. Raises LedgerError for a newer ledger."""
    if start > VERSION:
        raise LedgerError(
            f"the ledger has schema version {start} and this program knows up to {VERSION}; "
            "use the version of the program that wrote it, or a newer one"
        )
    for number in range(start, VERSION):
        MIGRATIONS[number](connection)
    if start < VERSION:
        connection.execute(version.update().values(version=VERSION))
