"""Proves that ledger, MLflow and the files on disk say the same of a run, or lists what differs.

Everything is read once, into `Facts`; each check is a small function of them that yields one sentence for each thing
wrong. MLflow is asked through `tracking`, files are read by `python -m jobs.audit`. Writes nothing. Imports neither
torch nor ray nor optuna.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestrator import tracking
from orchestrator.ledger import Attempt, LeaseHeld, Ledger, Point
from orchestrator.runs import RunError, RunFolder

from . import in_itself, in_mlflow, on_disk
from .facts import Facts, Place

__all__ = ["verify"]

Check = Callable[[Facts], Iterable[str]]

FAULTS: Sequence[Check] = (*in_itself.CHECKS, *in_mlflow.CHECKS, *on_disk.CHECKS)
NOTES: Sequence[Check] = on_disk.NOTES

SHOWN = 10
"""Faults of one kind that are told one by one."""


def verify(folder: RunFolder, uri: str) -> dict[str, Any]:
    """What `orchestrator verify` prints, as plain JSON; `ok` when there is no fault. uri: MLflow's.

    Raises RunError or LedgerError, LeaseHeld while a driver is at work, TrackingUnavailable.
    """
    with contextlib.closing(folder.open()) as ledger:
        _refuse_while_driven(ledger)
        facts = _read(folder, ledger, uri)
        _refuse_while_driven(ledger)  # else what was read first is older than what was read last
    faults = [text for check in FAULTS for text in _some(check(facts))]
    return {
        "ok": not faults,
        "trials": len(facts.trials),
        "mlflow_runs": sum(map(len, facts.nested.values())),
        "points": sum(map(len, facts.points.values())),
        "checkpoints": sum(len(record["checkpoints"]) for record in (facts.disk or {}).values()),
        "faults": faults,
        "notes": [text for check in NOTES for text in _some(check(facts))],
    }


def _read(folder: RunFolder, ledger: Ledger, uri: str) -> Facts:
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in ledger.attempts():
        attempts[attempt.trial].append(attempt)
    points: dict[str, dict[Place, Point]] = defaultdict(dict)
    for point in ledger.points():
        points[point.trial][point.key, point.step] = point
    waiting: dict[str, set[Place]] = defaultdict(set)
    for trial in ledger.waiting():
        waiting[trial] = {(p.key, p.step) for p in ledger.unprojected_points(len(points[trial]), trial)}
    run = ledger.run
    tracked = []
    if run.mlflow_run_id is not None:
        tracking.check(uri)
        tracked = tracking.runs_of(uri, run.uuid)
    return Facts(
        folder=folder.name,
        run=run,
        trials={trial.id: trial for trial in ledger.trials()},
        attempts=attempts,
        points=points,
        suggestions=ledger.suggestions(),
        frozen=ledger.frozen(),
        untold={trial.id for trial in ledger.unprojected_trials()},
        waiting=waiting,
        tracked=tracked,
        disk=_audit(folder),
    )


def _audit(folder: RunFolder) -> dict[str, dict[str, Any]] | None:
    """The folders of trials, read by a process of their own: what a checkpoint is, only jobs know."""
    if folder.remote is None and not folder.trials.is_dir():
        return None
    trials = folder.trials if folder.remote is None else folder.remote.inside("trials").uri
    command = [sys.executable, "-m", "jobs.audit", str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{trials} cannot be read: {done.stderr.strip().removeprefix('error: ')}")
    return {record["trial"]: record for record in map(json.loads, done.stdout.splitlines())}


def _refuse_while_driven(ledger: Ledger) -> None:
    driver = ledger.holder()
    if driver is None:
        return
    holder, since, expires = driver
    text = (
        f"{holder.partition(' [')[0]} has been driving this run since "
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}; what it writes cannot be verified meanwhile. "
        "Wait for it, or end that process first"
    )
    raise LeaseHeld(text, holder=holder, since=since, expires=expires, token=0)


def _some(found: Iterable[str]) -> list[str]:
    texts = list(found)
    more = len(texts) - SHOWN
    return texts if more <= 0 else [*texts[:SHOWN], f"... and {more:,} more like this one: {texts[SHOWN]}"]
