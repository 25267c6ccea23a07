"""What the ledger says must fit together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from orchestrator.ledger import Trial
from orchestrator.schedule import digest

from .facts import Facts, counted, same

LAST_ATTEMPT = {
    "queued": ("interrupted", "failed"),
    "running": ("running",),
    "done": ("done",),
    "pruned": ("pruned",),
    "failed": ("failed", "interrupted"),
}
"""How the last attempt of a trial may have ended, by the trial's state."""


def _left_running(facts: Facts) -> Iterator[str]:
    if facts.run.state == "done":
        for trial in facts.trials.values():
            if trial.state == "running":
                yield (
                    f"trial {trial.id}: the ledger says it is running, but the run is done and nobody drives it; "
                    f"continue it: {facts.resume}"
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
            has = numbers or "none"
            yield f"trial {trial.id}: the ledger counts {counted(trial.attempts, 'attempt')} and has {has}"


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
            if not same(value, trial.metric):
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
        yield f"arm {arm}: has {counted(len(confirm[arm]), 'confirm trial')}, but was never frozen"


CHECKS = (_left_running, _ids, _attempt_numbers, _trained_once, _ends, _metrics, _furthest, _suggested, _frozen)
