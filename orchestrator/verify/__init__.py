"""Proves that ledger, MLflow and the files on disk say the same of a run, or lists what differs.

Everything is read once, into `Facts`; each check is a small function of them that yields a Finding for each thing
wrong: what it is, and what mends it. MLflow is asked through `tracking`, files are read by
`python -m jobs.artifacts.audit`. Writes nothing, but for `mend`. Imports neither torch nor ray nor optuna.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypedDict

from orchestrator import tracking
from orchestrator.ledger import Attempt, LeaseHeld, Ledger, LedgerDamaged, LedgerError, Point, Run, damage_at
from orchestrator.run_dir import own_code
from orchestrator.run_dir.folder import RunError, RunFolder
from orchestrator.tracking.arms import recorded, wanted
from orchestrator.verify import disk_checks, ledger_checks, mlflow_checks, origin_checks
from orchestrator.verify.facts import DiskRecord, Facts, Finding, PointKey, beside
from orchestrator.verify.mending import mend

__all__ = ["Verified", "faults_after", "mend", "verify"]

Check = Callable[[Facts], Iterable[Finding | str]]

WITHOUT_MLFLOW: Sequence[Check] = (*ledger_checks.CHECKS, *origin_checks.CHECKS, *disk_checks.CHECKS)
FAULTS: Sequence[Check] = (*ledger_checks.CHECKS, *origin_checks.CHECKS, *mlflow_checks.CHECKS, *disk_checks.CHECKS)
NOTES: Sequence[Check] = (*disk_checks.NOTES, *origin_checks.NOTES, *mlflow_checks.NOTES)

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)
"""What reading a row raises that is not what a ledger writes."""

SOURCES = {"in_mlflow": "the ledger or MLflow has", "on_disk": "the ledger has or the disk holds"}
"""What a check compares, by its module, where that is not the ledger alone."""

SHOWN = 10
"""Faults of one kind that are listed one by one."""


class Verified(TypedDict):
    """What `orchestrator verify` prints, as plain JSON."""

    ok: bool
    """Whether there is no fault."""
    trials: int
    mlflow_runs: int
    points: int
    checkpoints: int
    faults: list[str]
    notes: list[str]


def verify(folder: RunFolder, uri: str) -> Verified:
    """Find everything that is wrong with a run, and what is worth telling. uri: MLflow's.

    Raises RunError or LedgerError, LeaseHeld while a driver is at work, TrackingUnavailable. A ledger that is there and
    damaged is a fault, however little can be read of it.
    """
    facts: Facts | None = None
    with contextlib.ExitStack() as stack:
        try:
            ledger = stack.enter_context(contextlib.closing(folder.open()))
            _refuse_while_driven(ledger)
        except (LeaseHeld, RunError):
            raise
        except (LedgerError, *UNREADABLE) as error:
            faults = [_damage_behind(folder, error, damage_at(folder.ledger_url()))]
        else:
            facts, faults = _facts(folder, ledger, uri)
            _refuse_while_driven(ledger)  # else what was read first is older than what was read last
    if facts is None:
        return Verified(ok=False, trials=0, mlflow_runs=0, points=0, checkpoints=0, faults=faults, notes=[])
    faults += _findings(FAULTS, facts)
    return {
        "ok": not faults,
        "trials": len(facts.trials),
        "mlflow_runs": sum(map(len, facts.nested.values())),
        "points": sum(map(len, facts.points.values())),
        "checkpoints": sum(len(record["checkpoints"]) for record in (facts.disk or {}).values()),
        "faults": faults,
        "notes": _findings(NOTES, facts),
    }


def faults_after(folder: RunFolder, ledger: Ledger, uri: str | None) -> list[str]:
    """Find what `verify` will call broken, for a driver that is about to end and still holds the lease.

    uri: MLflow's; None for a session without it. An MLflow that does not answer is left out: `verify` cannot judge it
    either. Takes as long as `verify`: the caller keeps the lease renewed. Raises RunError or LedgerError.
    """
    try:
        facts, faults = _facts(folder, ledger, uri)
    except tracking.TrackingUnavailable:
        facts, faults = _facts(folder, ledger, uri := None)
    return faults if facts is None else faults + _findings(FAULTS if uri else WITHOUT_MLFLOW, facts)


def _facts(folder: RunFolder, ledger: Ledger, uri: str | None) -> tuple[Facts | None, list[str]]:
    """Read the run, as far as its ledger can be read; and find what is wrong with the ledger."""
    damage = ledger.damage()
    try:
        facts = _read(folder, ledger)
    except (LedgerError, *UNREADABLE) as error:
        return None, [_damage_behind(folder, error, damage)]
    tracked = _tracked(facts.run, uri)
    facts = replace(
        facts,
        tracked=[run for run in tracked if not run["deleted"]],
        deleted={run["run_id"] for run in tracked if run["deleted"]},
        disk=_audit(folder),
    )
    return facts, [] if damage is None else [str(_damaged(folder, damage))]


def _damage_behind(folder: RunFolder, error: Exception, damage: str | None) -> str:
    """Return the fault behind an error that reading the ledger raised; raise the error if it is about something else,
    such as a server that is away. damage: what SQLite has against the file."""
    if isinstance(error, LeaseHeld) or (damage is None and not _undecodable(error)):
        raise error
    return str(_damaged(folder, damage or _decoding_error(error)))


def _damaged(folder: RunFolder, damage: str) -> Finding:
    url = re.sub(r"//[^/@]*@", "//", folder.ledger_url())
    sides = " (and delete its -wal and -shm)" if url.startswith("sqlite:") else ""
    return Finding(
        f"the ledger {url.removeprefix('sqlite:///')} is damaged: {damage}",
        f"put back a copy of it from before{sides}, or begin anew: {beside(folder.name)}",
    )


def _undecodable(error: Exception) -> bool:
    """Return whether the database was read, and holds what no ledger writes: SQLite itself has nothing against that."""
    return isinstance(error, LedgerDamaged) or not isinstance(error, LedgerError) or "decode" in str(error)


def _decoding_error(error: Exception) -> str:
    """Describe in words what was read there."""
    return str(error.__cause__) if isinstance(error, LedgerDamaged) else f"{type(error).__name__}: {error}"


def _findings(checks: Sequence[Check], facts: Facts) -> list[str]:
    texts: list[str] = []
    for check in checks:
        try:
            texts += _some(map(str, check(facts)))
        except UNREADABLE as error:  # a value that is not what a ledger writes, or what it is compared with
            where = SOURCES.get(check.__module__.rpartition(".")[2], "the ledger has")
            what = f"what {where} of this run is not what {check.__name__.strip('_')} needs: {error!r}"
            texts.append(str(Finding(what, facts.restore)))
    return texts


def _read(folder: RunFolder, ledger: Ledger) -> Facts:
    """Read what the ledger has, and of MLflow and the disk nothing yet."""
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in ledger.attempts():
        attempts[attempt.trial].append(attempt)
    points: dict[str, dict[PointKey, Point]] = defaultdict(dict)
    for point in ledger.points():
        points[point.trial][point.key, point.step] = point
    waiting: dict[str, set[PointKey]] = defaultdict(set)
    for trial in ledger.waiting():
        waiting[trial] = {(p.key, p.step) for p in ledger.unprojected_points(len(points[trial]), trial)}
    of_arms = recorded(ledger.events())  # of the others nothing is made, but a driver must be able to read them
    return Facts(
        folder=folder.name,
        run=ledger.run,
        trials={trial.id: trial for trial in ledger.trials()},
        attempts=attempts,
        points=points,
        suggestions=ledger.suggestions(),
        frozen=ledger.frozen(),
        unprojected={trial.id for trial in ledger.unprojected_trials()},
        waiting=waiting,
        tracked=[],
        deleted=set(),
        arms=wanted(ledger) if of_arms else {},
        of_arms=of_arms,
        user_code=_user_code(folder),
        disk=None,
    )


def _user_code(folder: RunFolder) -> str | None:
    try:
        code = own_code.read(folder)
    except RunError:
        return None
    return None if code is None else code.digest


def _tracked(run: Run, uri: str | None) -> list[tracking.MlflowRun]:
    """List MLflow's runs, deleted ones too. Raises TrackingUnavailable."""
    if uri is None or run.mlflow_run_id is None:
        return []
    tracking.check(uri)
    return tracking.runs_of(uri, run.uuid, deleted=True)


def _audit(folder: RunFolder) -> dict[str, DiskRecord] | None:
    """Read the folders of trials, by a process of their own: only jobs know what a checkpoint is."""
    if folder.remote is None and not folder.trials.is_dir():
        return None
    trials = folder.trials if folder.remote is None else folder.remote.inside("trials").uri
    command = [sys.executable, "-m", "jobs.artifacts.audit", str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{trials} cannot be read: {done.stderr.strip().removeprefix('error: ')}")
    records = {}
    for line in done.stdout.splitlines():
        try:
            record: DiskRecord = json.loads(line)
            records[str(record["trial"])] = record
        except UNREADABLE as error:
            raise RunError(
                f"{trials} cannot be read, as the process that looks at it says {line[:60]!r} where JSON belongs; see "
                f"what prints that: {shlex.join(command)}"
            ) from error
    return records


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


def _some(listed: Iterable[str]) -> list[str]:
    texts = list(listed)
    more = len(texts) - SHOWN
    return texts if more <= 0 else [*texts[:SHOWN], f"... and {more:,} more like this one: {texts[SHOWN]}"]
