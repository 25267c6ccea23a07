"""What lies in the folders of trials must be what the ledger says; and what there is no fault, but worth telling."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from jobs.config import EXECUTION_METRICS, JobConfig
from orchestrator.ledger import Attempt, Point, Trial
from orchestrator.verify.facts import Facts, Finding, PointKey, counted, other_keys, same

UNKNOWN = "has, and the ledger not,"


def _elsewhere(facts: Facts) -> Iterator[Finding]:
    if facts.disk is None and facts.started:
        yield Finding(
            f"{facts.within('trials')} is not there, so no file of {counted(len(facts.started), 'started trial')} "
            "could be looked at",
            "verify where the run's folder lies",
        )


def _strangers(facts: Facts) -> Iterator[Finding]:
    for name in facts.disk or ():
        if name not in facts.trials:
            where = facts.within(f"trials/{name}")
            yield Finding(f"{where} is the folder of a trial that the ledger does not have", "move it away")


def _folders(facts: Facts) -> Iterator[Finding]:
    for trial in facts.started if facts.disk is not None else ():
        if trial.state in ("done", "pruned") and trial.id not in (facts.disk or {}):
            where = facts.within(f"trials/{trial.id}")
            yield Finding(
                f"trial {trial.id}: the ledger says {trial.state}, but {where} is not there",
                f"put it back from a copy, or have all but its checkpoints written again: {facts.resume}",
            )
    for trial, record in facts.folders:
        for fault in record["faults"]:
            yield Finding(f"trial {trial.id}: {fault}", _written(facts))


def _jobs(facts: Facts) -> Iterator[Finding]:
    """Yield faults of job.json, which a trial that failed before it was loaded does not have."""
    for trial, record in facts.folders:
        job = record["job"]
        if job is None:
            if trial.state in ("done", "pruned"):
                yield Finding(
                    f"trial {trial.id}: the ledger says {trial.state}, but its folder has no job.json", _written(facts)
                )
        elif why := other_job(trial.job, job):
            yield Finding(f"trial {trial.id}: its job.json is {why}", _written(facts))


def _written(facts: Facts) -> str:
    """Return the remedy for what mending.py writes again."""
    return f"have it written again as the ledger has it: {facts.resume}"


def other_job(ours: object, theirs: object) -> str | None:
    """Explain why the job of a folder is not the trial's as the ledger has it; None where it is. How it is computed may
    differ, but a job that the ledger's version could run can be read."""
    if theirs == ours:
        return None
    if keys := other_keys(_objective(ours), _objective(theirs)):
        return f"not the job that the ledger has; {', '.join(keys)} differ"
    return "no job: its execution cannot be read" if _is_job(ours) and not _is_job(theirs) else None


def _is_job(job: object) -> bool:
    try:
        return JobConfig.model_validate(job) is not None
    except ValidationError:
        return False


def _objective(job: object) -> object:
    """Return a job without how it is computed, with every field that this version knows."""
    rest = {key: value for key, value in job.items() if key != "execution"} if isinstance(job, dict) else job
    try:
        return JobConfig.model_validate(rest).model_dump(mode="json", exclude={"execution"})
    except ValidationError:
        return rest


def _results(facts: Facts) -> Iterator[Finding]:
    for trial, record in facts.folders:
        if trial.state != "done":
            continue
        if record["result"] is None:
            yield Finding(f"trial {trial.id}: the ledger has a result, its folder has no result.json", _written(facts))
        elif keys := other_keys(trial.result, record["result"]):
            yield Finding(
                f"trial {trial.id}: its result.json is not the ledger's result; {', '.join(keys)} differ",
                _written(facts),
            )


def _points_on_disk(facts: Facts) -> Iterator[Finding]:
    """Yield faults in the points of finished trials only: the disk of a pruned trial may be ahead, that of an
    unfinished trial may be behind as well."""
    for trial, ours, theirs in _both(facts):
        differing = {
            "lacks": [at for at in ours if at not in theirs],
            "has with another value": [p for p in _changed(ours, theirs) if not _may_change(facts, trial, p[0])],
        }
        if trial.state == "done":
            differing[UNKNOWN] = [at for at in theirs if at not in ours]
        for what, places in differing.items():
            if places:
                key, step = at = places[0]
                mine = ours[at].value if at in ours else "nothing"
                remedy = (
                    "take these lines out of the file, if the ledger is right" if what == UNKNOWN else _written(facts)
                )
                yield Finding(
                    f"trial {trial.id}: its points.jsonl {what} {counted(len(places), 'point')}; {key} at step {step}: "
                    f"the ledger says {mine}, the file {theirs.get(at, 'nothing')}",
                    remedy,
                )


def _holes(facts: Facts) -> Iterator[Finding]:
    """Yield faults for points that a checkpoint has passed and the disk lacks: all were on disk before it. Where the
    ledger lacks them too, a trial that goes on measures them again."""
    for trial, record in facts.folders:
        ours = facts.points.get(trial.id, {}).keys()
        there = {(key, step) for key, step, _ in record["points"]}
        ended = trial.state in ("done", "pruned")
        known = not ours <= there if ended else any(fault.startswith("points.jsonl") for fault in record["faults"])
        if record["missing"] and not known:
            yield Finding(
                f"trial {trial.id}: its points.jsonl lacks {counted(record['missing'], 'point')} that its newest "
                f"checkpoint has passed{', and so does the ledger' if ended else ''}",
                "put it back from a copy: nothing measures them again" if ended else _again(facts, trial),
            )


def _again(facts: Facts, trial: Trial) -> str:
    flag = " --failed" if trial.state == "failed" else ""
    return f"they are written, or measured, again when the trial goes on: {facts.resume}{flag}"


def _both(facts: Facts) -> Iterator[tuple[Trial, dict[PointKey, Point], dict[PointKey, float]]]:
    """Yield the points of the ledger and the points on disk of every trial that is done or pruned."""
    for trial, record in facts.folders:
        if trial.state in ("done", "pruned"):
            yield trial, facts.points.get(trial.id, {}), {(key, step): value for key, step, value in record["points"]}


def _changed(ours: Mapping[PointKey, Point], theirs: Mapping[PointKey, float]) -> list[PointKey]:
    return [at for at in ours if at in theirs and not same(ours[at].value, theirs[at])]


def _may_change(facts: Facts, trial: Trial, key: str) -> bool:
    return may_change(facts.attempts.get(trial.id, []), key)


def may_change(attempts: Sequence[Attempt], key: str) -> bool:
    """Return whether a point may have another value when a later attempt measures it again: the ledger keeps the first,
    the disk the last. They are equal, bit for bit, for the same execution on the same host, but for times and
    memory."""
    how = [
        (attempt.host, {k: value for k, value in attempt.execution.items() if k != "verify"}) for attempt in attempts
    ]
    return len(attempts) > 1 and (key.startswith(EXECUTION_METRICS) or any(other != how[0] for other in how))


def _checkpoints(facts: Facts) -> Iterator[Finding]:
    for trial, record in facts.folders:
        where = facts.within(f"trials/{trial.id}/checkpoints")
        needed = (trial.came_to.step or None) if trial.outcome == "ok" else None  # what did not train has none
        for checkpoint in record["checkpoints"]:
            if checkpoint["fault"] is not None:
                yield Finding(
                    f"trial {trial.id}: {checkpoint['name']} in {where} is damaged: {checkpoint['fault']}",
                    COPY if checkpoint["step"] == needed else _quarantine(facts, trial, checkpoint["name"]),
                )
        if trial.state == "done" and needed is not None:
            newest = record["checkpoints"][0]["step"] if record["checkpoints"] else None
            if newest != needed:
                yield Finding(
                    f"trial {trial.id}: the ledger's result is of step {needed}, the newest checkpoint "
                    f"in {where} is {'none' if newest is None else f'of step {newest}'}",
                    COPY,
                )


def _kept_rows(facts: Facts) -> Iterator[Finding]:
    """Yield faults of what finished trials have kept row by row. The ledger has its digest, and nothing of it."""
    for trial, record in facts.folders:
        if trial.state == "done" and trial.came_to.rows is not None and record["rows"] != trial.came_to.rows:
            what = "is not there" if record["rows"] is None else "is damaged: it does not match its sha256"
            yield Finding(f"trial {trial.id}: its rows.parquet {what}", ROWS_COPY)


ROWS_COPY = (
    "put it back from a copy: nothing makes it again. Only what is said of other rows needs it, the verdict does not"
)

COPY = "put it back from a copy: nothing makes it again. The verdict does not need it, only `orchestrator export` does"


def _quarantine(facts: Facts, trial: Trial, name: str) -> str:
    """Return the remedy for a damaged checkpoint: a training that goes on sets it aside by itself; what has ended needs
    no older checkpoint."""
    if trial.state == "failed":
        return f"it is set aside when the trial is tried again: {facts.resume} --failed"
    if trial.state not in ("done", "pruned"):
        return f"it is set aside when the trial goes on: {facts.resume}"
    if "://" in facts.folder:
        where = facts.within(f"trials/{trial.id}/checkpoints/{name}")
        return f"nothing needs it any more: rename manifest.json in {where} to manifest.bad-1.json"
    path = shlex.quote(f"{facts.folder}/trials/{trial.id}/checkpoints/{name}")
    return f"nothing needs it any more: mv {path} {path}.bad-1"


def _to_be_closed(facts: Facts) -> Iterator[str]:
    running = [trial.id for trial in facts.trials.values() if trial.state == "running"]
    if running and facts.run.state != "done":
        yield (
            f"running in the ledger, but driven by nobody: {counted(len(running), 'trial')} "
            f"({', '.join(running[:10])}); the next launch or resume closes this: "
            f"{facts.resume}"
        )


def _queued(facts: Facts) -> Iterator[str]:
    if waiting := sum(trial.state == "queued" for trial in facts.trials.values()):
        again = " --failed" if facts.run.state == "done" else ""  # what a run that is done has left, failures stopped
        yield f"{counted(waiting, 'trial')} still to run; continue: {facts.resume}{again}"


def _remains(facts: Facts) -> Iterator[str]:
    totals: Counter[tuple[str, str]] = Counter()
    for _, record in facts.folders:
        totals["checkpoint", "damaged and set aside"] += len(record["quarantine"])
        totals["checkpoint", "never committed"] += len(record["leftovers"])
        totals["point", "in points.jsonl again"] += record["repeated"]
        totals["line", "of points.jsonl cut short by a kill"] += record["torn"]
    for (what, how), number in totals.items():
        if number:
            yield f"{counted(number, what)} {how}"


def _measured_again(facts: Facts) -> Iterator[str]:
    for trial, ours, theirs in _both(facts):
        if again := [at for at in _changed(ours, theirs) if _may_change(facts, trial, at[0])]:
            yield (
                f"trial {trial.id}: {counted(len(again), 'point')} measured again by another attempt, with another "
                f"value; the ledger keeps the first: {again[0][0]} at step {again[0][1]}"
            )


def _ahead(facts: Facts) -> Iterator[str]:
    pruned = {trial.id: set(theirs) - set(ours) for trial, ours, theirs in _both(facts) if trial.state == "pruned"}
    for trial, record in facts.folders:
        if trial.state != "done" and record["result"] is not None:
            yield f"trial {trial.id}: the ledger says {trial.state}, its folder has a result already"
        elif pruned.get(trial.id):
            yield f"trial {trial.id}: its points.jsonl is {counted(len(pruned[trial.id]), 'point')} ahead of the ledger"


CHECKS = (_elsewhere, _strangers, _folders, _jobs, _results, _points_on_disk, _holes, _checkpoints, _kept_rows)
NOTES = (_to_be_closed, _queued, _remains, _measured_again, _ahead)
