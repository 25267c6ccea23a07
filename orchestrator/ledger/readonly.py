"""Finished trials of a ledger, for whoever wants to learn from them. Nothing is written, waited for or brought forward.

A ledger in a file is opened so that not even SQLite's own side files appear beside it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from pydantic import JsonValue

from orchestrator.ledger import postgres, schema
from orchestrator.ledger.database import parsed
from orchestrator.ledger.records import LedgerError, LedgerMissing
from orchestrator.ledger.stored import JsonObject, TrialResult

PATIENCE_S = 2
"""How long a server may take to let us in, and to answer."""

NEWEST = 2000
"""Attempts that are looked at in one database, those of the latest trials."""

VERSION_FOUND = "SELECT version FROM orchestrator_schema"

RUNS = "SELECT uuid, name, created, environment, sweep FROM runs"

TRIALS = """
SELECT t.run, t.id, t.position, t.arm, t.job, t.result, t.started, t.ended, a.execution
FROM trials t JOIN attempts a ON a.run = t.run AND a.trial = t.id
WHERE t.state = 'done' AND t.outcome = 'ok' AND t.result IS NOT NULL AND t.started IS NOT NULL AND t.ended IS NOT NULL
AND t.stage IN ({stages})
ORDER BY t.ended DESC, t.run, t.id, a.number DESC
LIMIT {newest}
"""
"""A row for each attempt of each such trial, the latest first. Asks only for what every version of the ledger has, and
as text: to have SQLAlchemy make it anew for each of many files would take longer than to run it."""


@dataclass(frozen=True)
class Finished:
    """One trial that was trained to its end, neither diverged nor pruned, and where that was."""

    run: str
    """The run's uuid."""

    sweep: str
    """The sweep's name."""

    created: float
    """When the run was begun (unix seconds), as `started` and `ended` of the trial."""

    environment: JsonObject
    gpus_per_rank: float
    """As [resources] of the sweep has it."""

    metric: str
    """Name of the sweep's metric; empty where the sweep does not say."""

    contrasts: tuple[tuple[str, str], ...]
    """The arms that the run compares, each with its baseline."""

    position: int
    """Place of the trial in its run; the first one finds no rank warm."""

    arm: str
    job: JsonObject
    """As planned."""

    executions: tuple[JsonObject, ...]
    """What each of its attempts overrode of `job.execution`."""

    result: TrialResult
    started: float
    ended: float
    further: tuple[str, ...] = ()
    """Names of the further metrics that the run is judged by."""


def finished(url: str, *, confirmed: bool = False) -> list[Finished]:
    """List the trials of a database that ended well, of all its runs, in the order they ended: the newest ones.
    confirmed: those of the confirm stage alone.

    Raises LedgerError for a database that is not there, broken, busy, or newer than this program.
    """
    try:
        with contextlib.closing(_engine(url).connect()) as connection:
            version = connection.exec_driver_sql(VERSION_FOUND).scalar_one()
            if version > schema.VERSION:
                raise LedgerError(f"it has schema version {version}, and this program knows up to {schema.VERSION}")
            stages = "'confirm'" if confirmed else "'tune', 'confirm'"
            rows = connection.exec_driver_sql(TRIALS.format(stages=stages, newest=NEWEST)).all()
            runs = {run.uuid: run for run in connection.exec_driver_sql(RUNS)} if rows else {}
        return _trials(runs, rows)
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError, ValueError, TypeError, RecursionError) as error:
        raise LedgerError(f"it cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


Row = sa.Row[*tuple[object, ...]]


def _trials(runs: Mapping[str, Row], rows: Sequence[Row]) -> list[Finished]:
    of_runs = {
        uuid: (
            uuid, run.name, run.created, _object(run.environment), _gpus_per_rank(sweep), _metric(sweep),
            _contrasts(sweep),
        )
        for uuid, run in runs.items()
        for sweep in [_object(run.sweep)]
    }  # fmt: skip
    further = {uuid: _further_metrics(_object(run.sweep)) for uuid, run in runs.items()}
    attempts: dict[tuple[str, str], list[Row]] = {}
    for row in reversed(rows):
        attempts.setdefault((row.run, row.id), []).append(row)
    return [
        Finished(
            *of_runs[last.run],
            last.position,
            last.arm,
            _object(last.job),
            tuple(_object(row.execution) for row in of_trial),
            TrialResult.of(_object(last.result)),
            last.started,
            last.ended,
            further[last.run],
        )
        for of_trial in attempts.values()
        for last in of_trial[-1:]
    ]


def _object(text: str) -> JsonObject:
    stored: JsonValue = json.loads(text)
    if not isinstance(stored, dict):
        raise ValueError("a value is damaged: it is no JSON object")  # noqa: TRY004 - it is the content that is wrong
    return stored


def _gpus_per_rank(sweep: JsonObject) -> float:
    resources = sweep.get("resources")
    share = resources.get("gpus_per_rank") if isinstance(resources, dict) else None
    return share if isinstance(share, int | float) else 0


def _metric(sweep: JsonObject) -> str:
    metric = sweep.get("metric")
    return str(metric.get("name", "")) if isinstance(metric, dict) else ""


def _further_metrics(sweep: JsonObject) -> tuple[str, ...]:
    metric = sweep.get("metric")
    also = metric.get("also") if isinstance(metric, dict) else None
    return tuple(str(own.get("name", "")) for own in (also if isinstance(also, list) else ()) if isinstance(own, dict))


def _contrasts(sweep: JsonObject) -> tuple[tuple[str, str], ...]:
    plan = sweep.get("plan")
    pairs = plan.get("contrasts") if isinstance(plan, dict) else None
    listed = pairs if isinstance(pairs, list) else []
    return tuple((str(pair[0]), str(pair[1])) for pair in listed if isinstance(pair, list) and len(pair) == 2)


def _engine(url: str) -> sa.Engine:
    where = parsed(url)
    if where.get_backend_name() == "sqlite":
        return _file(Path(where.database or ""))
    limits = dict.fromkeys(("statement_timeout", "lock_timeout"), f"{PATIENCE_S}s")
    return postgres.engine(
        where.update_query_dict({"connect_timeout": str(PATIENCE_S)}),
        "it",
        settings={"default_transaction_read_only": "on"} | limits,
        answer_s=2.0 * PATIENCE_S,
        pooled=False,
    )


def _file(path: Path) -> sa.Engine:
    """Open a file, with what its write-ahead log holds. Where there is no log the file holds everything, and a reader
    that takes it as unchanging leaves no side files."""
    if not path.is_file():
        raise LedgerMissing(f"there is no file {path}")
    log, shared = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    mode = "mode=ro" if shared.exists() and log.exists() and log.stat().st_size else "immutable=1"
    address = f"file:{quote(str(path.absolute()))}?{mode}"
    return sa.create_engine(
        "sqlite://", poolclass=sa.NullPool, creator=lambda: sqlite3.connect(address, uri=True, timeout=0.1)
    )
