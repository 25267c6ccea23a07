"""Proves that ledger, MLflow and the files on disk say the same of a run, or lists what differs.

Everything is read once, into `Facts`; each check is a small function of them that yields one sentence for each thing
wrong, and FAULTS and NOTES are their table. MLflow is asked through `tracking`, files are read by `python -m
jobs.audit`. Writes nothing. Imports neither torch nor ray nor optuna.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.config import JobConfig
from orchestrator import tracking
from orchestrator.ledger import Attempt, Frozen, LeaseHeld, Ledger, Point, Run, Suggestion, Trial
from orchestrator.runs import RunError, RunFolder
from orchestrator.schedule import digest
from orchestrator.tracking.projection import RUN_STATUS, TRIAL_STATUS, flat

SHOWN = 10
"""Faults of one kind that are told one by one."""

LAST_ATTEMPT = {
    "queued": ("interrupted", "failed"),
    "running": ("running",),
    "done": ("done",),
    "pruned": ("pruned",),
    "failed": ("failed", "interrupted"),
}
"""How the last attempt of a trial may have ended, by the trial's state."""

TIMED = ("samples_per_second", "peak_memory_mb")
"""Keys of points that say how it was computed, and differ whenever it is done again."""

Place = tuple[str, int]
"""Key and step of a point."""


@dataclass(frozen=True)
class Facts:
    """All that was read of one run."""

    folder: Path
    run: Run
    trials: dict[str, Trial]
    attempts: Mapping[str, list[Attempt]]
    points: Mapping[str, dict[Place, Point]]
    suggestions: list[Suggestion]
    frozen: dict[str, Frozen]
    untold: set[str]
    """Trials whose state MLflow has not been told."""
    waiting: Mapping[str, set[Place]]
    """Points that MLflow has not been told, by trial."""
    tracked: list[dict[str, Any]]
    """MLflow's runs, as `tracking.runs_of` gives them."""
    disk: dict[str, dict[str, Any]] | None
    """What `python -m jobs.audit` says, by trial; None when the trials do not lie on this disk."""

    @property
    def metric(self) -> str:
        """Key of the sweep's metric."""
        return str(self.run.sweep["metric"]["name"])

    @property
    def started(self) -> list[Trial]:
        """Trials that have been attempted."""
        return [trial for trial in self.trials.values() if trial.attempts]

    @cached_property
    def nested(self) -> dict[str, list[dict[str, Any]]]:
        """MLflow's nested runs by trial."""
        found = defaultdict(list)
        for run in self.tracked:
            if run["kind"] != "sweep":
                found[str(run["trial"])].append(run)
        return dict(found)

    @cached_property
    def pairs(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Trials that have been attempted with their MLflow run, where there is exactly one."""
        return [(trial, runs[0]) for trial in self.started if len(runs := self.nested.get(trial.id, [])) == 1]

    @cached_property
    def folders(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Trials with what their folder holds, where there is one."""
        return [(trial, self.disk[trial.id]) for trial in self.trials.values() if self.disk and trial.id in self.disk]


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
        folder=folder.path,
        run=run,
        trials={trial.id: trial for trial in ledger.trials()},
        attempts=attempts,
        points=points,
        suggestions=ledger.suggestions(),
        frozen=ledger.frozen(),
        untold={trial.id for trial in ledger.unprojected_trials()},
        waiting=waiting,
        tracked=tracked,
        disk=_audit(folder.trials),
    )


def _audit(trials: Path) -> dict[str, dict[str, Any]] | None:
    """The folders of trials, read by a process of their own: what a checkpoint is, only jobs know."""
    if not trials.is_dir():
        return None
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


# The ledger in itself


def _left_running(facts: Facts) -> Iterator[str]:
    if facts.run.state == "done":
        for trial in facts.trials.values():
            if trial.state == "running":
                yield (
                    f"trial {trial.id}: the ledger says it is running, but the run is done and nobody drives it; "
                    f"continue it: orchestrator resume {facts.folder}"
                )


def _ids(facts: Facts) -> Iterator[str]:
    for trial in facts.trials.values():
        # Of the job as it is stored, for a later version of the program may give a job more fields.
        if (own := digest(trial.job)[:12]) != trial.id:
            yield f"trial {trial.id}: the job that the ledger has of it is the job of trial {own}"


def _attempt_numbers(facts: Facts) -> Iterator[str]:
    for trial in facts.trials.values():
        numbers = [attempt.number for attempt in facts.attempts.get(trial.id, [])]
        if numbers != list(range(1, trial.attempts + 1)):
            counted = _number(trial.attempts, "attempt")
            yield f"trial {trial.id}: the ledger counts {counted} and has {numbers or 'none'}"


def _trained_once(facts: Facts) -> Iterator[str]:
    """What is finished was finished once, by the last attempt."""
    for trial in facts.trials.values():
        states = [attempt.state for attempt in facts.attempts.get(trial.id, [])]
        if states and states[-1] not in LAST_ATTEMPT[trial.state]:
            yield f"trial {trial.id}: the ledger says {trial.state}, its last attempt ended as {states[-1]}"
        for number, state in enumerate(states[:-1], 1):
            if state in ("done", "pruned", "running"):
                yield f"trial {trial.id}: attempt {number} of {len(states)} is {state}, yet another one followed it"


def _ends(facts: Facts) -> Iterator[str]:
    needed = {
        "done": ("started", "ended", "outcome", "metric", "result"),
        "pruned": ("started", "ended", "metric"),
        "failed": ("started", "ended", "failure"),
    }
    for trial in facts.trials.values():
        lacking = [name for name in needed.get(trial.state, ()) if getattr(trial, name) is None]
        if lacking:
            yield f"trial {trial.id}: the ledger says {trial.state}, but has no {', '.join(lacking)} of it"


def _metrics(facts: Facts) -> Iterator[str]:
    key = facts.metric
    for trial in facts.trials.values():
        curve = [point for (name, _), point in facts.points.get(trial.id, {}).items() if name == key]
        told: dict[str, Any] = {}
        if trial.state == "done" and trial.result is not None:
            told = {"its result": trial.result["metrics"].get(key), "its metrics": trial.metrics.get(key)}
            # A diverged trial scores as if it had not trained: what was measured first, not last.
            last = min if trial.outcome == "diverged" else max
            told["its curve"] = last(curve, key=lambda point: point.step).value if curve else None
        elif trial.state == "pruned" and trial.metric not in [point.value for point in curve]:
            told = {"its curve": None}
        for where, value in told.items():
            if not _same(value, trial.metric):
                yield f"trial {trial.id}: the ledger says {key} = {trial.metric}, {where} says {value}"


def _furthest(facts: Facts) -> Iterator[str]:
    for trial in facts.trials.values():
        furthest = max((step for _, step in facts.points.get(trial.id, ())), default=None)
        # A trial may diverge, or continue and be pruned, between two steps that are logged.
        between = trial.outcome == "diverged" or trial.state == "pruned"
        if trial.step != furthest and not (between and (trial.step or 0) >= (furthest or 0)):
            yield f"trial {trial.id}: the ledger says step {trial.step}, its furthest point is at step {furthest}"


def _suggested(facts: Facts) -> Iterator[str]:
    asked = {trial: one for one in facts.suggestions for trial in one.trials}
    for trial_id, one in asked.items():
        trial = facts.trials.get(trial_id)
        what = f"suggestion {one.number} of arm {one.arm}"
        if trial is None:
            yield f"{what}: asks for trial {trial_id}, which the ledger does not have"
        elif (trial.stage, trial.arm, trial.number) != ("tune", one.arm, one.number):
            yield (
                f"{what}: asks for trial {trial_id}, which belongs to suggestion {trial.number} of arm {trial.arm} "
                f"in the {trial.stage} stage"
            )
    for trial in facts.trials.values():
        if trial.stage == "tune" and trial.id not in asked:
            yield f"trial {trial.id}: is in the tune stage, but no suggestion of arm {trial.arm} asks for it"


def _frozen(facts: Facts) -> Iterator[str]:
    confirm: dict[str, list[Trial]] = defaultdict(list)
    for trial in facts.trials.values():
        if trial.stage == "confirm":
            confirm[trial.arm].append(trial)
    seeds = {trial.seed for arm in facts.frozen for trial in confirm[arm]}
    for arm, frozen in facts.frozen.items():
        missing = sorted(seeds - {trial.seed for trial in confirm[arm]})
        if missing or not confirm[arm]:
            on = f" on seed {', '.join(map(str, missing))}, as other arms have" if missing else ""
            yield f"arm {arm}: is frozen, but has no confirm trial{on}"
        for trial in confirm[arm]:
            if digest({key: value for key, value in trial.job.items() if key != "seed"}) != frozen.hash:
                yield f"trial {trial.id}: is not the setting that arm {arm} was frozen at ({frozen.hash[:12]})"
    for arm in sorted(set(confirm) - set(facts.frozen)):
        yield f"arm {arm}: has {_number(len(confirm[arm]), 'confirm trial')}, but was never frozen"


# MLflow


def _untold(facts: Facts) -> Iterator[str]:
    points = sum(map(len, facts.waiting.values()))
    if facts.untold or points or facts.run.mlflow_run_id is None:
        yield (
            f"MLflow has not been told the state of {_number(len(facts.untold), 'trial')} and "
            f"{_number(points, 'point')}; "
            f"tell it: orchestrator resume {facts.folder}"
        )


def _parent(facts: Facts) -> Iterator[str]:
    recorded = facts.run.mlflow_run_id
    if recorded is None:
        return
    found = [run for run in facts.tracked if run["kind"] == "sweep"]
    if not facts.tracked:
        yield (
            f"MLflow has nothing of this run, the ledger recorded its parent run as {recorded}; set "
            f"MLFLOW_TRACKING_URI to the store that has it, or tell this one: orchestrator resume {facts.folder}"
        )
    elif [run["run_id"] for run in found] != [recorded]:
        ids = ", ".join(run["run_id"] for run in found) or "none"
        yield f"the ledger says that MLflow's parent run is {recorded}, MLflow has {ids}{_resume(facts, found)}"
    elif found[0]["status"] != RUN_STATUS[facts.run.state]:
        yield (
            f"the ledger says that the run is {facts.run.state}, MLflow's parent run {recorded} is "
            f"{found[0]['status']} and not {RUN_STATUS[facts.run.state]}; tell it: orchestrator resume {facts.folder}"
        )


def _orphans(facts: Facts) -> Iterator[str]:
    for trial, runs in facts.nested.items():
        for run in runs:
            if trial not in facts.trials or not facts.trials[trial].attempts:
                known = "never started" if trial in facts.trials else "does not have"
                yield (
                    f"MLflow's run {run['run_id']} ({run['name']}) is tagged as trial {trial} of this run, which the "
                    f"ledger {known}; delete that run in MLflow"
                )


def _nested(facts: Facts) -> Iterator[str]:
    for trial in facts.started if facts.tracked else ():
        runs = facts.nested.get(trial.id, [])
        ids = [run["run_id"] for run in runs]
        if len(ids) == 1 and trial.mlflow_run_id in (None, ids[0]):
            continue
        if not ids and trial.mlflow_run_id is None and trial.id in facts.untold:
            continue  # counted by _untold
        recorded = trial.mlflow_run_id or "not recorded"
        yield (
            f"trial {trial.id}: the ledger says that its MLflow run is {recorded}, MLflow has {len(ids)}: "
            f"{', '.join(ids) or 'none'}{_resume(facts, runs)}"
        )


def _resume(facts: Facts, runs: Sequence[Any]) -> str:
    return f"; to delete all but the recorded one: orchestrator resume {facts.folder}" if len(runs) > 1 else ""


def _status(facts: Facts) -> Iterator[str]:
    for trial, run in facts.pairs:
        wanted = TRIAL_STATUS[trial.state]
        if run["status"] != wanted and trial.id not in facts.untold:
            yield (
                f"trial {trial.id}: the ledger says {trial.state}, MLflow's run {run['run_id']} is {run['status']} "
                f"and not {wanted}"
            )
        if run["parent"] != facts.run.mlflow_run_id:
            yield (
                f"trial {trial.id}: MLflow's run {run['run_id']} lies under {run['parent']}, not under the parent run "
                f"{facts.run.mlflow_run_id}"
            )


def _params(facts: Facts) -> Iterator[str]:
    for trial, run in facts.pairs:
        if trial.id not in facts.untold:
            yield from _differing(trial, "parameter", dict(flat(trial.job)), run["params"])


def _tags(facts: Facts) -> Iterator[str]:
    for trial, run in facts.pairs:
        if trial.id not in facts.untold:
            told = {"trial": trial.id, "arm": trial.arm, "stage": trial.stage, "seed": trial.seed, "state": trial.state}
            wanted = {key: str(value) for key, value in told.items()}
            yield from _differing(trial, "tag", wanted, {key: run["tags"].get(key) for key in wanted})


def _differing(trial: Trial, what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    keys = [key for key in [*wanted, *(set(found) - set(wanted))] if wanted.get(key) != found.get(key)]
    if keys:
        more = f", and {len(keys) - 1} more" if len(keys) > 1 else ""
        ours, theirs = (repr(side.get(keys[0], "nothing")) for side in (wanted, found))
        yield f"trial {trial.id}: {what} {keys[0]}: the ledger says {ours}, MLflow says {theirs}{more}"


def _curves(facts: Facts) -> Iterator[str]:
    for trial, run in facts.pairs:
        ours = {place: (point.value, int(point.time * 1000)) for place, point in facts.points.get(trial.id, {}).items()}
        finals = dict(_finals(trial, {key for key, _ in ours}))
        late = facts.waiting.get(trial.id, set()) | (set(finals) if trial.id in facts.untold else set())
        ours |= finals
        theirs: dict[Place, list[tuple[float, int]]] = defaultdict(list)
        for key, points in run["metrics"].items():
            for step, at_ms, value in points:
                theirs[key, step].append((value, at_ms))
        twice = [place for place, found in theirs.items() if len(found) > 1]
        once = [place for place, found in theirs.items() if len(found) == 1 and place in ours]
        found = {
            "lacks": [place for place in ours if place not in theirs and place not in late],
            "has twice": twice,
            "has, and the ledger not,": [place for place in theirs if place not in ours],
            "has with another value": [p for p in once if not _same(_stored(ours[p][0]), theirs[p][0][0])],
            "has with another time": [p for p in once if ours[p][1] != theirs[p][0][1]],
        }
        for what, places in found.items():
            if places:
                key, step = place = places[0]
                told = ", ".join(f"{value} at {at_ms} ms" for value, at_ms in theirs.get(place, ())) or "nothing"
                mine = f"{ours[place][0]} at {ours[place][1]} ms" if place in ours else "nothing"
                yield (
                    f"trial {trial.id}: MLflow's run {run['run_id']} {what} {_number(len(places), 'point')}; "
                    f"{key} at step {step}: the ledger says {mine}, MLflow {told}"
                )


def _finals(trial: Trial, plotted: set[str]) -> Iterator[tuple[Place, tuple[float, int]]]:
    """Final numbers that are no curve's last point, as the projection tells them."""
    if trial.state in ("done", "pruned"):
        for key, value in trial.metrics.items():
            if key not in plotted and isinstance(value, int | float):
                yield (key, trial.step or 0), (float(value), int((trial.ended or 0) * 1000))


def _stored(value: float) -> float:
    """What MLflow makes of a value: it has no infinities."""
    return min(max(value, -sys.float_info.max), sys.float_info.max) if value == value else value  # noqa: PLR0124 - NaN


# The disk


def _elsewhere(facts: Facts) -> Iterator[str]:
    if facts.disk is None and facts.started:
        yield (
            f"{facts.folder}/trials is not there, so no file of {_number(len(facts.started), 'started trial')} "
            "could be looked at; verify where the run's folder lies"
        )


def _strangers(facts: Facts) -> Iterator[str]:
    for name in facts.disk or ():
        if name not in facts.trials:
            yield f"{facts.folder}/trials/{name} is the folder of a trial that the ledger does not have; move it away"


def _folders(facts: Facts) -> Iterator[str]:
    for trial in facts.started if facts.disk is not None else ():
        if trial.state in ("done", "pruned") and trial.id not in (facts.disk or {}):
            yield f"trial {trial.id}: the ledger says {trial.state}, but {facts.folder}/trials/{trial.id} is not there"
    for trial, record in facts.folders:
        for fault in record["faults"]:
            yield f"trial {trial.id}: {fault}"


def _jobs(facts: Facts) -> Iterator[str]:
    """A trial that failed before it was loaded has no job.json."""
    for trial, record in facts.folders:
        job = record["job"]
        if job is None:
            if trial.state in ("done", "pruned"):
                yield f"trial {trial.id}: the ledger says {trial.state}, but its folder has no job.json"
        elif keys := _other_keys(_objective(trial.job), _objective(job)):
            yield f"trial {trial.id}: its job.json is not the job that the ledger has; {', '.join(keys)} differ"


def _objective(job: Any) -> Any:
    """A job but for how it is computed, with every field that this version knows."""
    try:
        return JobConfig.model_validate(job).model_dump(mode="json", exclude={"execution"})
    except ValidationError:
        return {key: value for key, value in job.items() if key != "execution"} if isinstance(job, dict) else job


def _results(facts: Facts) -> Iterator[str]:
    for trial, record in facts.folders:
        if trial.state != "done":
            continue
        if record["result"] is None:
            yield f"trial {trial.id}: the ledger has a result, its folder has no result.json"
        elif keys := _other_keys(trial.result, record["result"]):
            yield f"trial {trial.id}: its result.json is not the ledger's result; {', '.join(keys)} differ"


def _points_on_disk(facts: Facts) -> Iterator[str]:
    """Of what is finished: the disk of a pruned trial may be ahead, that of any other may be behind as well."""
    for trial, ours, theirs in _both(facts):
        found = {
            "lacks": [place for place in ours if place not in theirs],
            "has with another value": [p for p in _changed(ours, theirs) if not _may_change(facts, trial, p[0])],
        }
        if trial.state == "done":
            found["has, and the ledger not,"] = [place for place in theirs if place not in ours]
        for what, places in found.items():
            if places:
                key, step = place = places[0]
                mine = ours[place].value if place in ours else "nothing"
                yield (
                    f"trial {trial.id}: its points.jsonl {what} {_number(len(places), 'point')}; {key} at step {step}: "
                    f"the ledger says {mine}, the file {theirs.get(place, 'nothing')}"
                )


def _both(facts: Facts) -> Iterator[tuple[Trial, dict[Place, Point], dict[Place, float]]]:
    """Points of the ledger and points on disk of every trial that is done or pruned."""
    for trial, record in facts.folders:
        if trial.state in ("done", "pruned"):
            yield trial, facts.points.get(trial.id, {}), {(key, step): value for key, step, value in record["points"]}


def _changed(ours: Mapping[Place, Point], theirs: Mapping[Place, float]) -> list[Place]:
    return [place for place in ours if place in theirs and not _same(ours[place].value, theirs[place])]


def _may_change(facts: Facts, trial: Trial, key: str) -> bool:
    """Whether a point may have another value when a later attempt measures it again: the ledger keeps the first, the
    disk the last. They are equal, bit for bit, for the same execution on the same host, but for times and memory."""
    attempts = facts.attempts.get(trial.id, [])
    how = [(one.host, {k: value for k, value in one.execution.items() if k != "verify"}) for one in attempts]
    return len(attempts) > 1 and (key in TIMED or any(one != how[0] for one in how))


def _checkpoints(facts: Facts) -> Iterator[str]:
    for trial, record in facts.folders:
        where = f"{facts.folder}/trials/{trial.id}/checkpoints"
        for one in record["checkpoints"]:
            if one["fault"] is not None:
                yield f"trial {trial.id}: checkpoint {where}/{one['name']} is damaged: {one['fault']}"
        if trial.state == "done" and trial.outcome == "ok" and trial.result is not None:
            newest = record["checkpoints"][0]["step"] if record["checkpoints"] else None
            if newest != trial.result["step"]:
                yield (
                    f"trial {trial.id}: the ledger's result is of step {trial.result['step']}, the newest checkpoint "
                    f"in {where} is {'none' if newest is None else f'of step {newest}'}"
                )


# What is no fault, but worth telling


def _to_be_closed(facts: Facts) -> Iterator[str]:
    running = [trial.id for trial in facts.trials.values() if trial.state == "running"]
    if running and facts.run.state != "done":
        yield (
            f"running in the ledger, but driven by nobody: {_number(len(running), 'trial')} "
            f"({', '.join(running[:SHOWN])}); the next launch or resume closes this: "
            f"orchestrator resume {facts.folder}"
        )


def _queued(facts: Facts) -> Iterator[str]:
    if waiting := sum(trial.state == "queued" for trial in facts.trials.values()):
        yield f"{_number(waiting, 'trial')} still to run; continue: orchestrator resume {facts.folder}"


def _remains(facts: Facts) -> Iterator[str]:
    totals: Counter[tuple[str, str]] = Counter()
    for _, record in facts.folders:
        totals["checkpoint", "damaged and set aside"] += len(record["set_aside"])
        totals["checkpoint", "never committed"] += len(record["leftovers"])
        totals["point", "in points.jsonl again"] += record["repeated"]
        totals["line", "of points.jsonl cut short by a kill"] += record["torn"]
    for (what, how), number in totals.items():
        if number:
            yield f"{_number(number, what)} {how}"


def _measured_again(facts: Facts) -> Iterator[str]:
    for trial, ours, theirs in _both(facts):
        if again := [place for place in _changed(ours, theirs) if _may_change(facts, trial, place[0])]:
            yield (
                f"trial {trial.id}: {_number(len(again), 'point')} measured again by another attempt, with another "
                f"value; the ledger keeps the first: {again[0][0]} at step {again[0][1]}"
            )


def _ahead(facts: Facts) -> Iterator[str]:
    pruned = {trial.id: set(theirs) - set(ours) for trial, ours, theirs in _both(facts) if trial.state == "pruned"}
    for trial, record in facts.folders:
        if trial.state != "done" and record["result"] is not None:
            yield f"trial {trial.id}: the ledger says {trial.state}, its folder has a result already"
        elif pruned.get(trial.id):
            yield f"trial {trial.id}: its points.jsonl is {_number(len(pruned[trial.id]), 'point')} ahead of the ledger"


Check = Callable[[Facts], Iterable[str]]

FAULTS: Sequence[Check] = (
    *(_left_running, _ids, _attempt_numbers, _trained_once, _ends, _metrics, _furthest, _suggested, _frozen),
    *(_untold, _parent, _orphans, _nested, _status, _params, _tags, _curves),
    *(_elsewhere, _strangers, _folders, _jobs, _results, _points_on_disk, _checkpoints),
)
NOTES: Sequence[Check] = (_to_be_closed, _queued, _remains, _measured_again, _ahead)


def _same(one: Any, other: Any) -> bool:
    """Equal, where NaN equals NaN."""
    return bool(one == other) or (isinstance(one, float) and isinstance(other, float) and one != one and other != other)  # noqa: PLR0124


def _other_keys(one: Any, other: Any) -> list[str]:
    """Keys of two JSON objects whose values differ, NaN equal to NaN."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else ["(everything)"]
    texts = [{key: json.dumps(value, sort_keys=True) for key, value in side.items()} for side in (one, other)]
    return sorted(key for key in one.keys() | other.keys() if texts[0].get(key) != texts[1].get(key))


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
