"""Ledgers and the MLflow that they are told to, for tests: trials that a test trains by hand, and what must agree."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

from orchestrator.ledger import Ledger, Point, Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.tracking import MlflowRun, Projection, embedded_uri, runs_of
from orchestrator.tracking.arms import RECORDED
from orchestrator.tracking.metadata import PAIRS
from orchestrator.tracking.store import connect

JOB: JsonObject = {
    "task": "image",
    "loss": {"name": "infonce", "temperature": 0.1},
    "model": {"name": None},
    "long": "x" * 7000,
}


CROSSED = """[compare]
"loss.temperature" = [0.05, 0.1]
"batch.size" = [16, 64]
"""


def fresh(folder: Path, tables: Path) -> str:
    folder.mkdir(exist_ok=True)
    shutil.copy(tables, folder)
    return embedded_uri(folder)


def planned(n: int) -> list[Trial]:
    return [Trial(id=f"trial{i}", stage="confirm", arm=f"arm {i % 2}", seed=i // 2, job=JOB) for i in range(n)]


def train(ledger: Ledger, trial: str, steps: int = 3, *, end: bool = True, offset: int = 0) -> None:
    """An attempt that tells a few points, and ends."""
    number = ledger.start_attempt(trial, {}, "h")
    ledger.record_points(trial, number, curve(trial, steps, offset))
    if end:
        finish(ledger, trial, number)


def curve(trial: str, steps: int, offset: int = 0) -> list[Point]:
    start = 1_700_000_000.0
    return [
        Point(trial, key, step, step + 0.25, start + step + 0.123)
        for key in ("train/loss", "knn_accuracy")
        for step in range(offset, offset + steps)
    ]


def finish(ledger: Ledger, trial: str, number: int = 1) -> None:
    metrics = {"knn_accuracy": 2.25, "peak_memory_mb": 100}
    ledger.finish_attempt(trial, number, state="done", outcome="ok", metric=2.25, metrics=metrics, step=2)


def agree(ledger: Ledger, uri: str) -> list[MlflowRun]:
    """MLflow has one run for each started trial, and every point of the ledger once. Returns the nested runs."""
    runs = runs_of(uri, ledger.uuid)
    parents = [run for run in runs if run["kind"] == "sweep"]
    nested = [run for run in runs if run["kind"] == "trial"]
    assert {run["experiment_id"] for run in runs} == {ledger.run.mlflow_experiment_id}
    assert [run["run_id"] for run in parents] == [ledger.run.mlflow_run_id]
    started = {trial.id: trial for trial in ledger.trials() if trial.attempts}
    assert sorted(str(run["trial"]) for run in nested) == sorted(started)
    for run in nested:
        trial = started[str(run["trial"])]
        assert run["run_id"] == trial.mlflow_run_id
        assert run["parent"] == parents[0]["run_id"]
        extra = {"peak_memory_mb"} if trial.state == "done" else set()
        told: dict[str, list[tuple[int, int, float]]] = {}
        for point in ledger.points(trial.id):
            told.setdefault(point.key, []).append((point.step, int(point.time * 1000), point.value))
        assert repr({key: value for key, value in run["metrics"].items() if key not in extra}) == repr(
            {key: told[key] for key in run["metrics"] if key not in extra}
        )
        assert set(run["metrics"]) == set(told) | extra
    return nested


def flushed(ledger: Ledger, uri: str) -> Projection:
    projection = Projection(ledger, uri)
    assert projection.flush(), projection.last_error
    return projection


def as_before(ledger: Ledger, uri: str) -> None:
    """Take from an embedded store, and from a ledger's events, what versions without runs of arms did not write."""
    store = connect(uri)._tracking_client.store
    for run in runs_of(uri, ledger.uuid):
        if run["kind"] == "arm":
            store._hard_delete_run(run["run_id"])
    for table in ("metrics", "latest_metrics"):
        _sql(Path(uri.removeprefix("sqlite:///")), f"DELETE FROM {table} WHERE key = ?", PAIRS)
    _sql(Path(uri.removeprefix("sqlite:///")), "DELETE FROM params WHERE run_uuid = ?", str(ledger.run.mlflow_run_id))
    assert ledger._database.path is not None
    _sql(ledger._database.path, "DELETE FROM events WHERE kind = ?", RECORDED)


def _sql(path: Path, statement: str, value: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, (value,))
