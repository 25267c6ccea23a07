"""What MLflow has must be what the ledger says, once, in one experiment and under one parent run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.ledger import Trial
from orchestrator.tracking import MlflowRun, metadata
from orchestrator.tracking.arms import ARM, Shown, difference
from orchestrator.verify.facts import Facts, Finding, counted


def _untold(facts: Facts) -> Iterator[Finding]:
    points = sum(map(len, facts.waiting.values()))
    if facts.unprojected or points or facts.run.mlflow_run_id is None:
        yield Finding(
            f"MLflow lacks the state of {counted(len(facts.unprojected), 'trial')} and {counted(points, 'point')}",
            f"tell it: {facts.resume}",
        )


def _parent(facts: Facts) -> Iterator[Finding]:
    recorded = facts.run.mlflow_run_id
    if recorded is None:
        return
    parents = [run for run in facts.tracked if run["kind"] == "sweep"]
    ids = [run["run_id"] for run in parents]
    if not facts.tracked and not facts.deleted:
        yield Finding(
            f"MLflow has nothing of this run, the ledger recorded its parent run as {recorded}",
            f"set MLFLOW_TRACKING_URI to the store that has it, or tell this one: {facts.resume}",
        )
    elif recorded in facts.deleted:
        yield Finding(f"MLflow's parent run {recorded} was deleted there", _restored(facts))
    elif ids != [recorded]:
        yield Finding(
            f"the ledger says that MLflow's parent run is {recorded}, MLflow has {', '.join(ids) or 'none'}",
            f"to delete all but the recorded one: {facts.resume}" if recorded in ids else f"make it: {facts.resume}",
        )
    elif parents[0]["status"] != metadata.RUN_STATUS[facts.run.state]:
        yield Finding(
            f"the ledger says that the run is {facts.run.state}, MLflow's parent run {recorded} is "
            f"{parents[0]['status']} and not {metadata.RUN_STATUS[facts.run.state]}",
            f"tell it: {facts.resume}",
        )


def _experiment(facts: Facts) -> Iterator[Finding]:
    """Yield faults for MLflow's runs in another experiment: neither page of MLflow shows the whole of a run that lies
    in two experiments."""
    recorded = facts.run.mlflow_experiment_id
    for run in facts.tracked if recorded is not None else ():
        if run["experiment_id"] != recorded:
            whose = "the parent run" if run["kind"] == "sweep" else f"trial {run['trial']}"
            whose = f"arm {run['tags'].get('arm')}" if run["kind"] == ARM else whose
            yield Finding(
                f"{whose}: MLflow's run {run['run_id']} lies in experiment {run['experiment_id']}, the ledger says "
                f"that the run is in experiment {recorded}",
                f"bring all of it into one: {facts.resume}",
            )


def _orphans(facts: Facts) -> Iterator[Finding]:
    for trial, runs in facts.nested.items():
        for run in runs:
            if trial not in facts.trials or not facts.trials[trial].attempts:
                known = "never started" if trial in facts.trials else "does not have"
                yield Finding(
                    f"MLflow's run {run['run_id']} ({run['name']}) is tagged as trial {trial} of this run, which the "
                    f"ledger {known}",
                    f"delete that run in MLflow, or have it done: {facts.resume}",
                )


def _nested(facts: Facts) -> Iterator[Finding]:
    for trial in facts.started if facts.tracked or facts.deleted else ():
        ids = [run["run_id"] for run in facts.nested.get(trial.id, [])]
        if len(ids) == 1 and trial.mlflow_run_id in (None, ids[0]):
            continue
        if not ids and trial.mlflow_run_id is None and trial.id in facts.unprojected:
            continue  # counted by _untold
        if trial.mlflow_run_id in facts.deleted:
            yield Finding(f"trial {trial.id}: its MLflow run {trial.mlflow_run_id} was deleted there", _restored(facts))
            continue
        recorded = trial.mlflow_run_id or "not recorded"
        yield Finding(
            f"trial {trial.id}: the ledger says that its MLflow run is {recorded}, MLflow has {len(ids)}: "
            f"{', '.join(ids) or 'none'}",
            f"to delete all but the recorded one: {facts.resume}" if len(ids) > 1 else f"tell it: {facts.resume}",
        )


def _restored(facts: Facts) -> str:
    return f"restore it there, or have it done: {facts.resume}"


def _status(facts: Facts) -> Iterator[Finding]:
    for trial, run in facts.pairs:
        wanted = metadata.status_of(trial)
        if run["status"] != wanted and trial.id not in facts.unprojected and not _is_of_first_rules(facts, trial, run):
            yield Finding(
                f"trial {trial.id}: the ledger says {_state(trial)}, MLflow's run {run['run_id']} is {run['status']} "
                f"and not {wanted}",
                f"tell it: {facts.resume}",
            )
        if run["parent"] != facts.run.mlflow_run_id:
            yield Finding(
                f"trial {trial.id}: MLflow's run {run['run_id']} lies under {run['parent'] or 'no run'}, not under the "
                f"parent run {facts.run.mlflow_run_id}",
                f"hang it there: {facts.resume}",
            )


def _is_of_first_rules(facts: Facts, trial: Trial, run: MlflowRun) -> bool:
    """Return whether MLflow has a diverged trial as the version for runs of the first rules recorded it: as a training
    that has come to its end, without a tag that says to what."""
    diverged = facts.run.rules < 2 and (trial.state, trial.outcome) == ("done", "diverged")
    return diverged and run["status"] == "FINISHED" and not run["tags"].get("outcome")


def _shown_as_before(facts: Facts) -> Iterator[str]:
    count = sum(_is_of_first_rules(facts, trial, run) for trial, run in facts.pairs)
    if count:
        yield (
            f"MLflow shows {counted(count, 'diverged trial')} as FINISHED, as an earlier version told it; to have "
            f"that shown as FAILED: {facts.resume}"
        )


def _state(trial: Trial) -> str:
    return "done, diverged" if (trial.state, trial.outcome) == ("done", "diverged") else trial.state


def _params(facts: Facts) -> Iterator[Finding]:
    for trial, run in facts.pairs:
        if trial.id not in facts.unprojected:
            yield from _differing(facts, trial, "parameter", metadata.params(trial), run["params"])


def _tags(facts: Facts) -> Iterator[Finding]:
    for trial, run in facts.pairs:
        if trial.id not in facts.unprojected:
            wanted = metadata.marks(trial)
            if _is_of_first_rules(facts, trial, run):
                wanted.pop("outcome")
            yield from _differing(facts, trial, "tag", wanted, {key: run["tags"].get(key) for key in wanted})


def _differing(
    facts: Facts, trial: Trial, what: str, wanted: Mapping[str, str], tracked: Mapping[str, str | None]
) -> Iterator[Finding]:
    keys = [key for key in [*wanted, *(set(tracked) - set(wanted))] if wanted.get(key) != tracked.get(key)]
    if keys:
        more = f", and {len(keys) - 1} more" if len(keys) > 1 else ""
        ours, theirs = (repr("nothing" if side.get(keys[0]) is None else side[keys[0]]) for side in (wanted, tracked))
        yield Finding(
            f"trial {trial.id}: {what} {keys[0]}: the ledger says {ours}, MLflow says {theirs}{more}",
            f"tell it: {facts.resume}",
        )


def _curves(facts: Facts) -> Iterator[Finding]:
    for trial, run in facts.pairs:
        points = facts.points.get(trial.id, {})
        curves = metadata.compare(trial, points.values(), run["metrics"], facts.metric)
        late = facts.waiting.get(trial.id, set()) | (
            curves.wanted.keys() - points if trial.id in facts.unprojected else set()
        )
        differing = {
            "lacks": [at for at in curves.lacking if at not in late],
            "has twice": curves.twice,
            "has, and the ledger not,": curves.strange,
            "has with another value": curves.other_value,
            "has with another time": curves.other_time,
        }
        for what, places in differing.items():
            if places:
                key, step = at = places[0]
                theirs = ", ".join(f"{value} at {at_ms} ms" for value, at_ms in curves.there.get(at, ()))
                ours = "{} at {} ms".format(*curves.wanted[at]) if at in curves.wanted else "nothing"
                yield Finding(
                    f"trial {trial.id}: MLflow's run {run['run_id']} {what} {counted(len(places), 'point')}; "
                    f"{key} at step {step}: the ledger says {ours}, MLflow {theirs or 'nothing'}",
                    f"delete that run in MLflow, and it is made anew by: {facts.resume}",
                )


def _arms(facts: Facts) -> Iterator[Finding]:
    """Yield faults for runs of arms: there is one for each arm that has ended a seed, and it says what the ledger
    says."""
    if not (facts.tracked and facts.of_arms):
        return
    for label in [*facts.arms, *(label for label in facts.runs_of_arms if label not in facts.arms)]:
        runs = facts.runs_of_arms.get(label, [])
        ids = ", ".join(run["run_id"] for run in runs) or "none"
        if label not in facts.arms or len(runs) != 1:
            wanted = 1 if label in facts.arms else 0
            yield Finding(
                f"arm {label}: MLflow has {counted(len(runs), 'run')} of the arm itself, and not {wanted}: {ids}",
                f"to put that in order: {facts.resume}",
            )
            continue
        run = runs[0]
        shown = Shown(run["status"], run["end"], run["params"], run["tags"], run["metrics"])
        found = difference(facts.arms[label], shown)
        what = found.what if found else None
        if what is None and run["parent"] != facts.run.mlflow_run_id:
            what = f"it lies under {run['parent'] or 'no run'}, not under the parent run {facts.run.mlflow_run_id}"
        if what is not None:
            yield Finding(f"arm {label}: MLflow's run {ids}: {what}", f"tell it: {facts.resume}")


CHECKS = (_untold, _parent, _experiment, _orphans, _nested, _status, _params, _tags, _curves, _arms)
NOTES = (_shown_as_before,)
