"""results.parquet: one row for each trial, from the ledger, in types that any reader of Arrow knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from jobs.config import canonical
from orchestrator.ledger import Ledger, Trial
from orchestrator.report.summary.arms import diverged, untrained
from orchestrator.report.summary.pairs import HASHES
from orchestrator.sweep import flatten

TIME = pa.timestamp("us", tz="UTC")
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "name": (pa.string(), "what the report calls the run"),
    "run": (pa.string(), "uuid of the run"),
    "trial": (pa.string(), "id of the trial"),
    "stage": (
        pa.string(),
        "tune, confirm, or swap: a trial of an arm at another one's setting, which is beside the answer",
    ),
    "arm": (pa.string(), "label of the arm"),
    "seed": (pa.int64(), "seed of the trial"),
    "suggestion": (pa.int64(), "number of the suggestion, from 0; null in the other stages"),
    "state": (pa.string(), "queued, running, done, pruned or failed"),
    "outcome": (pa.string(), "ok, diverged or infeasible; null until it ended"),
    "attempts": (pa.int64(), "executions"),
    "failure": (pa.string(), "class of the newest failure"),
    "message": (pa.string(), "what was raised"),
    "metric": (pa.float64(), "the sweep's metric at the final evaluation; null where training diverged"),
    "untrained": (pa.float64(), "the same before the first step"),
    "step": (pa.int64(), "optimizer steps"),
    "samples": (pa.int64(), "pairs seen"),
    "seconds": (pa.float64(), "time of training"),
    "samples_per_second": (pa.float64(), "pairs per second"),
    "peak_memory_mb": (pa.float64(), "largest memory of a rank"),
    "negatives_per_anchor": (pa.int64(), "negatives that each anchor is compared with"),
    "data_hash": (pa.string(), "of the rows trained on and judged on"),
    "order_hash": (pa.string(), "of the order of the rows"),
    "init_hash": (pa.string(), "of the initial weights"),
    "encoder_hash": (pa.string(), "of the initial weights of the encoder"),
    "reading": (pa.string(), "how the encoder took and pooled its inputs, as JSON"),
    "mlflow_run_id": (pa.string(), "run in MLflow"),
    "created": (TIME, "planned at"),
    "started": (TIME, "first attempt began"),
    "ended": (TIME, "last attempt ended"),
    "job": (pa.string(), "the whole job as planned, JSON"),
}


def table(named: Mapping[str, Ledger]) -> pa.Table:
    """Build one row per trial of these runs, in the order given and planned. named: name of a run -> its ledger.

    The columns of COLUMNS, each with a type, and its meaning as field metadata; `metric.NAME` (double) for every metric
    of a final evaluation; and `job.KEY` for every key of the job that is not the same in all trials, as bool, int64,
    double or string, whichever holds them all (lists as JSON). Null where a trial has no such value.
    """
    runs = {name: ledger.run for name, ledger in named.items()}
    trials = {name: ledger.trials() for name, ledger in named.items()}
    rows = [
        {"name": name, **_row(named[name], runs[name].uuid, trial, runs[name].sweep["metric"]["name"])}
        for name in named
        for trial in trials[name]
    ]
    whole = [trial for name in named for trial in trials[name]]
    fields = [_field(name, kind, what) for name, (kind, what) in COLUMNS.items()]
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in fields]
    for key in sorted({key for trial in whole for key in trial.metrics}):
        fields.append(_field(f"metric.{key}", pa.float64(), f"{key} at the final evaluation"))
        arrays.append(pa.array([_number(_measured(trial).get(key)) for trial in whole], pa.float64()))
    for key, array in _job_keys(whole):
        fields.append(_field(f"job.{key}", array.type, f"{key} of the job as planned"))
        arrays.append(array)
    about = {
        "runs": json.dumps({name: run.uuid for name, run in runs.items()}),
        "sweeps": json.dumps({name: run.name for name, run in runs.items()}),
        "metric": json.dumps(next(iter(runs.values())).sweep["metric"]),
    }
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=about))


def columns(schema: pa.Schema) -> list[tuple[str, str, str]]:
    """Return name, type and meaning of every column."""
    return [(field.name, str(field.type), field.metadata[b"description"].decode()) for field in schema]


def _field(name: str, kind: pa.DataType, what: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": what})


def _row(ledger: Ledger, run: str, trial: Trial, metric: str) -> dict[str, object]:
    result = trial.came_to
    same = ("stage", "arm", "seed", "state", "outcome", "attempts", "failure", "message", "step", "mlflow_run_id")
    costs = ("samples", "seconds", "samples_per_second", "peak_memory_mb", "negatives_per_anchor")
    return {
        "run": run,
        "trial": trial.id,
        "suggestion": trial.number,
        "metric": None if diverged(trial) else _number(trial.metric),
        "untrained": untrained(ledger, trial, metric),
        "job": canonical(trial.job),
        "reading": canonical(result.reading) if result.reading else None,
        **{key: getattr(trial, key) for key in same},
        **{key: getattr(result, key) for key in costs},
        **{f"{what}_hash": result.hashes.get(what) for what in HASHES},
        **{key: _time(getattr(trial, key)) for key in ("created", "started", "ended")},
    }


def _measured(trial: Trial) -> Mapping[str, float]:
    """Return the metrics of a trial, none for one that diverged: there, ledgers of the first rules have those of the
    untrained encoder."""
    return {} if diverged(trial) else trial.metrics


def _job_keys(trials: Sequence[Trial]) -> Iterator[tuple[str, pa.Array]]:
    """Yield the keys that differ between these jobs, with their values."""
    first = trials[0].job if trials else {}
    sections = {key for trial in trials for key in trial.job | first if trial.job.get(key) != first.get(key)}
    jobs = [flatten({key: trial.job[key] for key in sections if key in trial.job}) for trial in trials]
    for key in sorted({key for job in jobs for key in job} - {"seed", "stage"}):
        values = [job.get(key) for job in jobs]
        if len({_identity(value) for value in values}) > 1:
            yield key, _typed(values)


def _identity(value: object) -> object:
    """Return what is equal for values that are written alike: 1, 1.0 and true are three."""
    return (type(value), value) if value is None or isinstance(value, bool | int | float | str) else canonical(value)


def _typed(values: Sequence[object]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array(values, pa.float64())
    plain = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(plain, pa.string())


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
