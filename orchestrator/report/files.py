"""The files of a report: report.html, report.md, results.parquet and a PNG for each plot."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config import canonical
from orchestrator.ledger import Ledger, Trial
from orchestrator.report import content, page, plots
from orchestrator.report.arms import untrained
from orchestrator.report.evidence import answer, curves
from orchestrator.sweep import flatten

STALE_S = 3600
"""A half-written report older than this was left by a process that was killed."""

TIME = pa.timestamp("us", tz="UTC")
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "run": (pa.string(), "uuid of the run"),
    "trial": (pa.string(), "id of the trial"),
    "stage": (pa.string(), "tune or confirm"),
    "arm": (pa.string(), "label of the arm"),
    "seed": (pa.int64(), "seed of the trial"),
    "suggestion": (pa.int64(), "number of the suggestion, from 0; null in the confirm stage"),
    "state": (pa.string(), "queued, running, done, pruned or failed"),
    "outcome": (pa.string(), "ok or diverged; null until it ended"),
    "attempts": (pa.int64(), "executions"),
    "failure": (pa.string(), "class of the newest failure"),
    "message": (pa.string(), "what was raised"),
    "metric": (pa.float64(), "the sweep's metric at the final evaluation"),
    "untrained": (pa.float64(), "the same before the first step"),
    "step": (pa.int64(), "optimizer steps"),
    "samples": (pa.int64(), "pairs seen"),
    "seconds": (pa.float64(), "time of training"),
    "samples_per_second": (pa.float64(), "pairs per second"),
    "peak_memory_mb": (pa.float64(), "largest memory of a rank"),
    "negatives_per_anchor": (pa.int64(), "negatives that each anchor is compared with"),
    "data_hash": (pa.string(), "of the training data"),
    "init_hash": (pa.string(), "of the initial weights"),
    "order_hash": (pa.string(), "of the order of the data"),
    "mlflow_run_id": (pa.string(), "run in MLflow"),
    "created": (TIME, "planned at"),
    "started": (TIME, "first attempt began"),
    "ended": (TIME, "last attempt ended"),
    "job": (pa.string(), "the whole job as planned, JSON"),
}


def write(ledger: Ledger, folder: Path) -> dict[str, Any]:
    """Write the report of a run, finished or not, into `folder`, and return its answer.

    Every file is finished beside the folder and then put in place of the one before, so a reader, or a process killed
    at any moment, leaves whole files there. Plots that are no longer drawn go. Raises OSError when the disk is full.
    """
    found = answer(ledger)
    drawn = plots.draw(found, curves(ledger, found))
    top = (found["question"], found["sentence"], content.subtitle(found), found["notes"])
    body = content.blocks(found, drawn, ledger.run.sweep)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep_up(folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        made = Path(name)
        for plot in drawn:
            (made / f"{plot.name}.png").write_bytes(plot.png)
        pq.write_table(results(ledger), made / "results.parquet")
        (made / "report.md").write_text(page.markdown(*top, body), "utf-8")
        (made / "report.html").write_text(page.html(*top, body), "utf-8")
        files = sorted(made.iterdir())
        for file in files:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        for file in files:
            file.replace(folder / file.name)
        for old in {f"{name}.png" for name in plots.NAMES} - {file.name for file in files}:
            (folder / old).unlink(missing_ok=True)
    return found


def results(ledger: Ledger) -> pa.Table:
    """One row per trial, in the order they were planned.

    The columns of COLUMNS, each with a type, and its meaning as field metadata; `metric.NAME` (double) for every metric
    of a final evaluation; and `job.KEY` for every key of the job that is not the same in all trials, as bool, int64,
    double or string, whichever holds them all (lists as JSON).
    """
    run, trials = ledger.run, ledger.trials()
    rows = [_row(ledger, run.uuid, trial, run.sweep["metric"]["name"]) for trial in trials]
    fields = [pa.field(name, kind, metadata={"description": what}) for name, (kind, what) in COLUMNS.items()]
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in fields]
    for key in sorted({key for trial in trials for key in trial.metrics}):
        fields.append(pa.field(f"metric.{key}", pa.float64(), metadata={"description": "final evaluation"}))
        arrays.append(pa.array([_number(trial.metrics.get(key)) for trial in trials], pa.float64()))
    jobs = [flatten(trial.job) for trial in trials]
    for key in sorted({key for job in jobs for key in job} - {"seed", "stage"}):
        values = [job.get(key) for job in jobs]
        if len({canonical(value) for value in values}) > 1:
            array = _typed(values)
            fields.append(pa.field(f"job.{key}", array.type, metadata={"description": "job key, as planned"}))
            arrays.append(array)
    about = {"run": run.uuid, "sweep": run.name, "metric": json.dumps(run.sweep["metric"])}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=about))


def _row(ledger: Ledger, run: str, trial: Trial, metric: str) -> dict[str, Any]:
    result = trial.result or {}
    hashes = result.get("hashes") or {}
    same = ("stage", "arm", "seed", "state", "outcome", "attempts", "failure", "message", "step", "mlflow_run_id")
    costs = ("samples", "seconds", "samples_per_second", "peak_memory_mb", "negatives_per_anchor")
    return {
        "run": run,
        "trial": trial.id,
        "suggestion": trial.number,
        "metric": _number(trial.metric),
        "untrained": untrained(ledger, trial, metric),
        "job": canonical(trial.job),
        **{key: getattr(trial, key) for key in same},
        **{key: result.get(key) for key in costs},
        **{f"{key}_hash": hashes.get(key) for key in ("data", "init", "order")},
        **{key: _time(getattr(trial, key)) for key in ("created", "started", "ended")},
    }


def _typed(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array(values, pa.float64())
    plain = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(plain, pa.string())


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _sweep_up(folder: Path) -> None:
    for left in folder.parent.glob(f".{folder.name}-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
