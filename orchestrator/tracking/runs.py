"""What MLflow has of a run of the ledger: its parent run, the nested ones, and every point of their curves."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from orchestrator.system import scratch
from orchestrator.system.display import first_line
from orchestrator.tracking.store import (
    TrackingUnavailable,
    connect,
    database_of,
    embedded_uri,
    is_writable,
    journal_of,
    reader,
    refuse_damaged,
    remedy_for,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as TrackedRun

EXPERIMENTS = 500
"""How many experiments one request looks for runs in."""

BULK_RUNS, BULK_POINTS = 100, 25_000
"""What one request for the points of many runs may ask for. A server cuts its answer off at BULK_POINTS in silence."""

Curve = list[tuple[int, int, float]]
"""Every point of a key as (step, unix ms, value)."""


class MlflowRun(TypedDict):
    """What MLflow has of one of its runs, as plain values."""

    run_id: str
    experiment_id: str
    kind: str | None
    """`sweep`, `trial` or `arm`."""
    trial: str | None
    """Id in the ledger."""
    parent: str | None
    """Its parent's run id."""
    name: str
    status: str
    deleted: bool
    start: int
    """Unix ms, as the next."""
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, Curve]
    """By key and step."""


def runs_of(uri: str, uuid: str, *, history: bool = True, deleted: bool = False) -> list[MlflowRun]:
    """Read what MLflow has of the ledger's run `uuid`: its parent run and the nested runs, parent first.

    history: every point of their metrics; else, and of deleted runs, the last point of each key only. deleted: give
    those too that somebody deleted and MLflow still keeps. An embedded store that is not there is not made. Raises
    TrackingUnavailable.
    """
    if not uri.startswith("sqlite:///"):
        return _runs_of(uri, uuid, history=history, deleted=deleted)
    path = database_of(uri)
    if not path.exists():
        return []
    refuse_damaged(path)
    if is_writable(path):
        return _runs_of(uri, uuid, history=history, deleted=deleted)
    with scratch.folder("mlflow") as temporary:  # MLflow opens its store to write, whatever it is asked for
        copied = temporary / "mlflow.db"
        _copy(path, copied)
        try:
            return _runs_of(embedded_uri(temporary), uuid, history=history, deleted=deleted)
        except TrackingUnavailable as error:  # of the copy, which is gone when somebody reads that
            reason = error.reason.replace(str(copied), str(path))
            raise TrackingUnavailable(uri, reason, remedy_for(uri)) from error


def _copy(path: Path, to: Path) -> None:
    """Copy an embedded store that cannot be written to. Raises TrackingUnavailable."""
    if (journal := journal_of(path)) is not None:
        shutil.copyfile(path, to)
        shutil.copyfile(journal, to.with_name(f"{to.name}-journal"))
        return
    try:
        with contextlib.closing(reader(path)) as source, contextlib.closing(sqlite3.connect(to)) as copy:
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchall()  # `backup` waits for a lock without end
            source.backup(copy)
    except sqlite3.Error as error:
        shown, remedy = f"sqlite:///{path}", remedy_for(f"sqlite:///{path}")
        if "locked" in str(error):
            remedy = "somebody writes to it: wait for that, and try again"
        elif "full" in str(error):
            remedy = f"make room in {to.parent.parent}, or set TMPDIR to a folder with more"
        raise TrackingUnavailable(shown, f"cannot be copied to be read ({error})", remedy) from error


def _runs_of(uri: str, uuid: str, *, history: bool, deleted: bool) -> list[MlflowRun]:
    try:
        client = connect(uri)
        runs = list(search(client, uuid, deleted=deleted))
        curves = histories(client, [run for run in runs if not is_deleted(run)]) if history else {}
        plain = [_plain(run, curves.get(run.info.run_id)) for run in runs]
        return sorted(plain, key=lambda run: (run["kind"] != "sweep", run["start"], run["run_id"]))
    except Exception as error:  # a server says what ails it as an MlflowException, a damaged file in several ways
        reason = first_line(str(error)) or type(error).__name__
        raise TrackingUnavailable(without_password(uri), reason, remedy_for(uri)) from error


def experiments(client: MlflowClient) -> Iterator[Experiment]:
    """Yield every experiment of the store, deleted experiments too."""
    from mlflow.entities import ViewType

    token: str | None = None
    while True:
        page = client.search_experiments(view_type=ViewType.ALL, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def search(client: MlflowClient, uuid: str, *, deleted: bool = False) -> Iterator[TrackedRun]:
    """Yield every MLflow run tagged with the ledger's run, wherever it lies; deleted runs only if asked for."""
    from mlflow.entities import ViewType

    view_type = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    ids = [experiment.experiment_id for experiment in experiments(client)]
    for start in range(0, len(ids), EXPERIMENTS):
        some, token = ids[start : start + EXPERIMENTS], None
        while True:
            page = client.search_runs(some, f"tags.`orchestrator.run` = '{uuid}'", view_type, page_token=token)
            yield from page
            token = page.token
            if not token:
                break


def is_deleted(run: TrackedRun) -> bool:
    """Return whether somebody deleted an MLflow run, which MLflow keeps until its garbage is collected."""
    return bool(run.info.lifecycle_stage == "deleted")


def histories(client: MlflowClient, runs: Sequence[TrackedRun]) -> dict[str, dict[str, Curve]]:
    """Read every point of many runs as (step, unix ms, value), by run and key. Asks once for each key of a hundred
    runs: to ask for each key of each run takes tens of times as long."""
    having: dict[str, list[str]] = {}
    for run in runs:
        for key in run.data.metrics:
            having.setdefault(key, []).append(run.info.run_id)
    curves: dict[str, dict[str, Curve]] = {run.info.run_id: {} for run in runs}
    for key, ids in having.items():
        for start in range(0, len(ids), BULK_RUNS):
            for run_id, step, at_ms, value in _points(client, key, ids[start : start + BULK_RUNS]):
                curves[run_id].setdefault(key, []).append((step, at_ms, value))
    return curves


def _points(client: MlflowClient, key: str, ids: Sequence[str]) -> list[tuple[str, int, int, float]]:
    """Read all points of one key of at most BULK_RUNS runs as (run id, step, unix ms, value)."""
    from mlflow.utils.rest_utils import http_request_safe

    store = client._tracking_client.store  # noqa: SLF001 - the client itself has no way to ask for many runs
    if hasattr(store, "get_metric_history_bulk"):  # a database, which returns as much as is asked for
        metrics = store.get_metric_history_bulk(ids, key, max_results=None)
        return [(point.run_id, point.step, point.timestamp, point.value) for point in metrics]
    asked = {"run_id": list(ids), "metric_key": key, "max_results": BULK_POINTS}
    path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
    answer = http_request_safe(store.get_host_creds(), path, "GET", params=asked)  # type: ignore[no-untyped-call]
    rows = answer.json()["metrics"]
    if len(rows) < BULK_POINTS:
        return [(row["run_id"], row["step"], row["timestamp"], row["value"]) for row in rows]
    if len(ids) > 1:
        half = len(ids) // 2
        return _points(client, key, ids[:half]) + _points(client, key, ids[half:])
    return [(ids[0], point.step, point.timestamp, point.value) for point in client.get_metric_history(ids[0], key)]


def _plain(run: TrackedRun, curves: Mapping[str, Curve] | None) -> MlflowRun:
    info, tags = run.info, dict(run.data.tags)
    if curves is None:
        last = run.data._metric_objs  # noqa: SLF001 - the public `metrics` has neither steps nor times
        curves = {point.key: [(point.step, point.timestamp, point.value)] for point in last}
    return {
        "run_id": info.run_id,
        "experiment_id": info.experiment_id,
        "kind": tags.get("orchestrator.kind"),
        "trial": tags.get("orchestrator.trial"),
        "parent": tags.get("mlflow.parentRunId"),
        "name": info.run_name,
        "status": info.status,
        "deleted": is_deleted(run),
        "start": info.start_time,
        "end": info.end_time,
        "params": dict(run.data.params),
        "tags": tags,
        "metrics": {key: sorted(points) for key, points in curves.items()},
    }
