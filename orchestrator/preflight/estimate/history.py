"""What earlier runs tell: the trials in every ledger within reach. Read only; what cannot be read is left out.

Evidence is a trial that was trained to its end. A pruned one has no result; one that diverged may have ended within a
few steps; one that failed has ended anywhere. Of a trial of several attempts the training time is the sum over them,
which tells its speed, but the time between its first start and its end tells nothing of the rest.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jobs.config import JobConfig, canonical
from orchestrator.ledger import Finished, LedgerError, finished, sqlite_url
from orchestrator.preflight.estimate.model import Known
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.environment import machine
from orchestrator.sweep import merged

NEWEST = 100
"""Run folders that are looked at, those that were at work last."""

ENOUGH = 4000
"""Trials after which no older ledger is read: half a second's worth."""

MACHINE = ("processor", "cpus", "gpus")


@dataclass(frozen=True)
class History:
    """What earlier runs have told."""

    known: tuple[Known, ...]
    skipped: tuple[str, ...]
    """Ledgers that could not be read, each with why."""


def history() -> History:
    """Collect what the runs under `runs.home()` tell, and those in $ORCHESTRATOR_LEDGER. Raises nothing."""
    known: list[Known] = []
    skipped: list[str] = []
    here: Mapping[str, object] | None = None
    for url, folder in _ledgers():
        if len(known) >= ENOUGH:
            break
        try:
            trials = finished(url)
        except LedgerError as error:
            skipped.append(f"{folder or '$ORCHESTRATOR_LEDGER'}: {error}")
            continue
        if trials and here is None:
            here = machine()
        known += [
            known_trial
            for of_run in _by_run(trials)
            for known_trial in _of_run(of_run, folder or of_run[0].sweep, here or {})
        ]
    return History(tuple(known), tuple(skipped))


def confirmed_within_reach() -> Iterator[tuple[str, list[Finished]]]:
    """Yield the finished confirm trials of each run within reach, with the run's folder or name, those at work last
    first; at most ENOUGH in all. Ledgers that cannot be read are left out."""
    count = 0
    for url, folder in _ledgers():
        if count >= ENOUGH:
            return
        with contextlib.suppress(LedgerError):
            trials = finished(url, confirmed=True)
            count += len(trials)
            yield from ((folder or of_run[0].sweep, of_run) for of_run in _by_run(trials))


def _by_run(trials: Iterable[Finished]) -> list[list[Finished]]:
    runs_of: dict[str, list[Finished]] = {}
    for trial in trials:
        runs_of.setdefault(trial.run, []).append(trial)
    return list(runs_of.values())


def _ledgers() -> Iterator[tuple[str, str | None]]:
    """Yield the URLs of the ledgers within reach, and the folder of the run where a ledger is in a folder."""
    try:
        folders = [path.parent for path in runs.home().glob("*/ledger.db")]
    except (runs.RunError, OSError):  # $ORCHESTRATOR_RUNS is no folder, or one that may not be read
        folders = []
    for folder in sorted(folders, key=_touched, reverse=True)[:NEWEST]:
        yield sqlite_url(folder / "ledger.db"), str(folder)
    if named := os.environ.get("ORCHESTRATOR_LEDGER"):
        yield named, None


def _touched(folder: Path) -> float:
    try:
        return (folder / "ledger.db").stat().st_mtime
    except OSError:
        return 0.0


def _of_run(trials: list[Finished], origin: str, here: Mapping[str, object]) -> list[Known]:
    environment, rests = trials[0].environment, [rest for trial in trials if (rest := _rest_s(trial)) is not None]
    usual_s = statistics.median_low(rests) if rests else 0.0
    known = []
    for trial in trials:
        try:
            job = _job(trial)
        except (TypeError, ValueError):  # written by another version
            continue
        seconds, samples, peak = trial.result.seconds, trial.result.samples, trial.result.peak_memory_mb
        if job is None or seconds is None or samples is None or seconds <= 0 or samples <= 0:
            continue
        rest = _rest_s(trial)
        first = trial.position == 0 and rest is not None
        start = trial.started - trial.created + max(0.0, (rest or 0.0) - usual_s) if first else None
        same = all(environment.get(key) == here.get(key) for key in MACHINE)
        known.append(Known(job, trial.gpus_per_rank, seconds, samples, rest, peak, origin, same, start))
    return known


def _rest_s(trial: Finished) -> float | None:
    seconds = trial.result.seconds
    if len(trial.executions) != 1 or seconds is None:
        return None
    return max(0.0, trial.ended - trial.started - seconds)


def _job(trial: Finished) -> JobConfig | None:
    """Return the job as it was carried out; None where its attempts were not carried out alike."""
    first, *others = [
        {key: value for key, value in execution.items() if key != "verify"} for execution in trial.executions
    ]
    if any(execution != first for execution in others):
        return None
    optimizer = trial.job.get("optimizer")
    name = optimizer.get("name", "adamw") if isinstance(optimizer, dict) else "adamw"
    job = trial.job | {"seed": 0, "optimizer": {"name": name}}
    return _parsed(
        canonical(merged(job, {f"execution.{key}": value for key, value in first.items()}) if first else job)
    )


@lru_cache(maxsize=1000)
def _parsed(text: str) -> JobConfig:
    """Parse a job that stands for all trials of an arm: they differ in seed and learning rate, neither of which costs
    anything."""
    return JobConfig.model_validate_json(text)
