"""What MLflow has must be what the ledger says, once."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.ledger import Trial
from orchestrator.tracking.projection import RUN_STATUS, TRIAL_STATUS
from orchestrator.tracking.told import flat

from .facts import Facts, Place, counted, same


def _untold(facts: Facts) -> Iterator[str]:
    points = sum(map(len, facts.waiting.values()))
    if facts.untold or points or facts.run.mlflow_run_id is None:
        yield (
            f"MLflow has not been told the state of {counted(len(facts.untold), 'trial')} and "
            f"{counted(points, 'point')}; "
            f"tell it: {facts.resume}"
        )


def _parent(facts: Facts) -> Iterator[str]:
    recorded = facts.run.mlflow_run_id
    if recorded is None:
        return
    found = [run for run in facts.tracked if run["kind"] == "sweep"]
    if not facts.tracked:
        yield (
            f"MLflow has nothing of this run, the ledger recorded its parent run as {recorded}; set "
            f"MLFLOW_TRACKING_URI to the store that has it, or tell this one: {facts.resume}"
        )
    elif [run["run_id"] for run in found] != [recorded]:
        ids = ", ".join(run["run_id"] for run in found) or "none"
        yield f"the ledger says that MLflow's parent run is {recorded}, MLflow has {ids}{_resume(facts, found)}"
    elif found[0]["status"] != RUN_STATUS[facts.run.state]:
        yield (
            f"the ledger says that the run is {facts.run.state}, MLflow's parent run {recorded} is "
            f"{found[0]['status']} and not {RUN_STATUS[facts.run.state]}; tell it: {facts.resume}"
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
    return f"; to delete all but the recorded one: {facts.resume}" if len(runs) > 1 else ""


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
            "has with another value": [p for p in once if not same(_stored(ours[p][0]), theirs[p][0][0])],
            "has with another time": [p for p in once if ours[p][1] != theirs[p][0][1]],
        }
        for what, places in found.items():
            if places:
                key, step = place = places[0]
                told = ", ".join(f"{value} at {at_ms} ms" for value, at_ms in theirs.get(place, ())) or "nothing"
                mine = f"{ours[place][0]} at {ours[place][1]} ms" if place in ours else "nothing"
                yield (
                    f"trial {trial.id}: MLflow's run {run['run_id']} {what} {counted(len(places), 'point')}; "
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


CHECKS = (_untold, _parent, _orphans, _nested, _status, _params, _tags, _curves)
