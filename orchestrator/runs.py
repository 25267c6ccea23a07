"""A run's folder: where things lie in it, how its ledger is opened, and what `status` and `logs` say.

Works from the folder and the ledger alone, so also when the driver is dead. Imports no torch, ray, optuna or mlflow.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import nearest
from orchestrator.ledger import TRIAL_STATES, Ledger, LedgerError, LedgerMissing, sqlite_url


class RunError(ValueError):
    """A run that is not there, or not what was expected; the text says what would work."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @property
    def trials(self) -> Path:
        """Folder of the trials' folders."""
        return self.path / "trials"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    @property
    def log(self) -> Path:
        """What the driver, Ray and MLflow print during a session."""
        return self.path / "driver.log"

    @property
    def identity(self) -> Path:
        """The resolved sweep and the run's uuid, as JSON."""
        return self.path / "sweep.json"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.identity.exists()

    def trial(self, trial: str) -> Path:
        """Folder of one trial."""
        return self.trials / trial

    def ledger_url(self) -> str:
        """The database: $ORCHESTRATOR_LEDGER, or ledger.db in this folder."""
        return os.environ.get("ORCHESTRATOR_LEDGER") or sqlite_url(self.path / "ledger.db")

    def open(self) -> Ledger:
        """The ledger of this run. Raises RunError or LedgerError."""
        if not self.exists:
            raise RunError(
                f"{self.path} holds no run{nearest(self.path.name, names(self.path.parent))}; "
                "begin one with: orchestrator launch SWEEP.toml"
            )
        uuid = json.loads(self.identity.read_text())["run"]
        try:
            return Ledger.open(self.ledger_url(), uuid)
        except LedgerMissing as error:
            raise LedgerError(f"{error}. $ORCHESTRATOR_LEDGER names a database outside the folder") from error


def home() -> Path:
    """Where runs live unless told otherwise: $ORCHESTRATOR_RUNS, or `runs` here."""
    return Path(os.environ.get("ORCHESTRATOR_RUNS") or "runs")


def names(folder: Path) -> list[str]:
    """Names of the runs in a folder."""
    return sorted(path.parent.name for path in folder.glob("*/sweep.json"))


def find(run: str) -> RunFolder:
    """The run that a person means: a folder, or a name under `home`. Raises RunError with the nearest match."""
    for path in (Path(run), home() / run):
        if (folder := RunFolder(path)).exists:
            return folder
    known = names(home())
    listed = f"; runs in {home()}: {', '.join(known)}" if known else f"; {home()} holds no run yet"
    raise RunError(f"there is no run {run!r}{nearest(run, known)}{listed}")


def status(ledger: Ledger) -> dict[str, Any]:
    """The state of a run as plain JSON. Raises LedgerError."""
    run, trials = ledger.run, ledger.trials()
    states = Counter(trial.state for trial in trials)
    driver = ledger.holder()
    planned = run.sweep["plan"]["trials"]
    return {
        "sweep": run.name,
        "question": run.sweep["question"],
        "run": run.uuid,
        "state": run.state,
        "driver": None if driver is None else {"holder": driver[0], "since": driver[1], "until": driver[2]},
        "planned": planned,
        "counts": {state: states[state] for state in TRIAL_STATES},
        "trials": [
            {
                "id": trial.id,
                "stage": trial.stage,
                "arm": trial.arm,
                "seed": trial.seed,
                "number": trial.number,
                "state": trial.state,
                "outcome": trial.outcome,
                "attempts": trial.attempts,
                "failure": trial.failure or ("diverged" if trial.outcome == "diverged" else None),
                "message": trial.message,
                "mlflow_run_id": trial.mlflow_run_id,
                "metric": trial.metric,
                "step": trial.step,
            }
            for trial in trials
        ],
    }


def stop(ledger: Ledger, folder: RunFolder, *, wait_s: float) -> tuple[str, bool]:
    """Ask the driver of a run to stop, and wait for it. Returns what to tell, and whether nobody drives it now."""
    driver = ledger.holder()
    if driver is None:
        return f"nobody drives {folder.path}; continue it: orchestrator resume {folder.path}", True
    ledger.ask_to_stop()
    who, deadline = driver[0].partition(" [")[0], time.monotonic() + wait_s
    while time.monotonic() < deadline:
        holder = ledger.holder()
        if holder is None or holder[:2] != driver[:2]:
            return f"{who} has stopped; continue: orchestrator resume {folder.path}", True
        time.sleep(0.2)
    return (
        f"{who} was asked to stop and has not within {wait_s:g} s; if it hangs, end that process: nothing is lost",
        False,
    )


def logs(folder: RunFolder, trial: str, rank: int) -> Path:
    """The log file of one rank of one trial, whose id may be shortened. Raises RunError."""
    found = sorted(path.name for path in folder.trials.glob(f"{trial}*") if path.is_dir())
    if len(found) != 1:
        some = ", ".join(found[:5]) or ", ".join(sorted(p.name for p in folder.trials.glob("*"))[:5]) or "none yet"
        raise RunError(f"{trial!r} names {len(found)} trials of {folder.path}; trials there: {some}")
    path = folder.trial(found[0]) / f"log.rank{rank}.txt"
    if not path.exists():
        ranks = sorted(p.name for p in path.parent.glob("log.rank*.txt"))
        raise RunError(f"rank {rank} of trial {found[0]} has no log; there are: {', '.join(ranks) or 'none'}")
    return path
