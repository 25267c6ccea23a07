"""What the ledger says must fit together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from jobs.config import trial_id
from orchestrator.ledger import Suggestion, Trial
from orchestrator.session.schedule import digest, stopped_arms, swapping
from orchestrator.sweep import plan as planning
from orchestrator.sweep.plan.trials import apart_id, swap_id
from orchestrator.verify.facts import Facts, Finding, counted, same

LAST_ATTEMPT = {
    "queued": ("interrupted", "failed"),
    "running": ("running",),
    "done": ("done",),
    "pruned": ("pruned",),
    "failed": ("failed", "interrupted"),
}
"""How the last attempt of a trial may have ended, by the trial's state."""


def _left_running(facts: Facts) -> Iterator[Finding]:
    if facts.run.state == "done":
        for trial in facts.trials.values():
            if trial.state == "running":
                attempts = facts.attempts.get(trial.id, [])
                cut_short = bool(attempts) and attempts[-1].state == "running"
                what = f"trial {trial.id}: the ledger says it is running, but the run is done and nobody drives it"
                yield Finding(what, f"continue it: {facts.resume}" if cut_short else facts.restore)


def _ids(facts: Facts) -> Iterator[Finding]:
    rules, defaults = facts.run.rules, facts.run.sweep.get("plan", {}).get("defaults")
    code = (facts.run.sweep.get("code") or {}).get("digest")
    for trial in facts.trials.values():
        # Of the job as it is stored, for a later version of the program may give a job more fields.
        own = digest(trial.job)[:12] if rules < 2 else trial_id(trial.job, rules=rules, defaults=defaults, code=code)
        ids = [swap_id(own, trial.arm)] if trial.stage == "swap" else [own, apart_id(own, trial.arm)]
        if trial.id not in ids:
            yield Finding(
                f"trial {trial.id}: the job that the ledger has of it is the job of trial {own}", facts.restore
            )


def _attempt_numbers(facts: Facts) -> Iterator[Finding]:
    for trial in facts.trials.values():
        numbers = [attempt.number for attempt in facts.attempts.get(trial.id, [])]
        if numbers != list(range(1, trial.attempts + 1)):
            has = numbers or "none"
            yield Finding(
                f"trial {trial.id}: the ledger counts {counted(trial.attempts, 'attempt')} and has {has}", facts.restore
            )


def _trained_once(facts: Facts) -> Iterator[Finding]:
    """Yield faults of attempts: what is finished was finished once, by the last attempt."""
    for trial in facts.trials.values():
        states = [attempt.state for attempt in facts.attempts.get(trial.id, [])]
        if states and states[-1] not in LAST_ATTEMPT[trial.state]:
            yield Finding(
                f"trial {trial.id}: the ledger says {trial.state}, its last attempt ended as {states[-1]}",
                facts.restore,
            )
        for number, state in enumerate(states[:-1], 1):
            if state in ("done", "pruned", "running"):
                yield Finding(
                    f"trial {trial.id}: attempt {number} of {len(states)} is {state}, yet another one followed it",
                    facts.restore,
                )


def _ends(facts: Facts) -> Iterator[Finding]:
    needed = {
        "done": ("started", "ended", "outcome", "metric", "result"),
        "pruned": ("started", "ended", "metric"),
        "failed": ("started", "ended", "failure"),
    }
    for trial in facts.trials.values():
        diverged = (trial.state, trial.outcome) == ("done", "diverged")  # which has no metric
        lacking = [name for name in needed.get(trial.state, ()) if getattr(trial, name) is None]
        lacking = [name for name in lacking if not (diverged and name == "metric")]
        if lacking:
            yield Finding(
                f"trial {trial.id}: the ledger says {trial.state}, but has no {', '.join(lacking)} of it", facts.restore
            )


def _metrics(facts: Facts) -> Iterator[Finding]:
    key = facts.metric
    for trial in facts.trials.values():
        curve = [point for (name, _), point in facts.points.get(trial.id, {}).items() if name == key]
        recorded: dict[str, float | None] = {}
        if trial.state == "done" and trial.result is not None:
            recorded = {"its result": trial.came_to.metrics.get(key), "its metrics": trial.metrics.get(key)}
            # What diverged has no metric; runs of before have that of the untrained encoder: the first, not the last.
            last = min if trial.outcome == "diverged" else max
            if not (trial.outcome == "diverged" and trial.metric is None):
                recorded["its curve"] = last(curve, key=lambda point: point.step).value if curve else None
        elif trial.state == "pruned" and trial.metric not in [point.value for point in curve]:
            recorded = {"its curve": None}
        for where, value in recorded.items():
            if not same(value, trial.metric):
                yield Finding(
                    f"trial {trial.id}: the ledger says {key} = {trial.metric}, {where} says {value}", facts.restore
                )


def _furthest(facts: Facts) -> Iterator[Finding]:
    for trial in facts.trials.values():
        furthest = max((step for _, step in facts.points.get(trial.id, ())), default=None)
        # A trial may diverge, or continue and be pruned, between two steps that are logged.
        between = trial.outcome == "diverged" or trial.state == "pruned"
        if trial.step != furthest and not (between and (trial.step or 0) >= (furthest or 0)):
            yield Finding(
                f"trial {trial.id}: the ledger says step {trial.step}, its furthest point is at step {furthest}",
                facts.restore,
            )


def _suggested(facts: Facts) -> Iterator[Finding]:
    """Yield faults of suggestions: a trial belongs to the first suggestion that asks for it; a search may come upon the
    same setting again."""
    apart = facts.run.sweep.get("plan", {}).get("apart", False)  # before, a trial could serve two arms
    asking: dict[str, list[Suggestion]] = defaultdict(list)
    for suggestion in facts.suggestions:
        for wanted in suggestion.trials:
            asking[wanted].append(suggestion)
    for wanted, suggestions in asking.items():
        trial = facts.trials.get(wanted)
        first = next(
            (suggestion for suggestion in suggestions if trial and suggestion.arm == trial.arm), suggestions[0]
        )
        what = f"suggestion {first.number} of arm {first.arm}"
        if trial is None:
            yield Finding(f"{what}: asks for trial {wanted}, which the ledger does not have", facts.restore)
        elif (
            trial.stage != "tune"
            or (apart and trial.arm != first.arm)
            or (trial.arm == first.arm and trial.number != first.number)
        ):
            yield Finding(
                f"{what}: asks for trial {wanted}, which belongs to suggestion {trial.number} of arm {trial.arm} "
                f"in the {trial.stage} stage",
                facts.restore,
            )
    for trial in facts.trials.values():
        if trial.stage == "tune" and trial.id not in asking:
            yield Finding(
                f"trial {trial.id}: is in the tune stage, but no suggestion of arm {trial.arm} asks for it",
                facts.restore,
            )


def _frozen(facts: Facts) -> Iterator[Finding]:
    confirm: dict[str, list[Trial]] = defaultdict(list)
    for trial in facts.trials.values():
        if trial.stage == "confirm":
            confirm[trial.arm].append(trial)
    needed, of_frozen = _confirmed_seeds(facts, confirm)
    for arm, frozen in facts.frozen.items():
        missing = sorted(needed - {trial.seed for trial in confirm[arm]})
        if missing or not confirm[arm]:
            on = f" on seed {', '.join(map(str, missing))}, as other arms have" if missing else ""
            yield Finding(f"arm {arm}: is frozen, but has no confirm trial{on}", facts.restore)
        for trial in confirm[arm]:
            if (
                trial.seed in of_frozen
                and digest({key: value for key, value in trial.job.items() if key != "seed"}) != frozen.hash
            ):
                yield Finding(
                    f"trial {trial.id}: is not the setting that arm {arm} was frozen at ({frozen.hash[:12]})",
                    facts.restore,
                )
    for arm in sorted(set(confirm) - set(facts.frozen)):
        yield Finding(
            f"arm {arm}: has {counted(len(confirm[arm]), 'confirm trial')}, but was never frozen", facts.restore
        )


def _confirmed_seeds(facts: Facts, confirm: Mapping[str, Sequence[Trial]]) -> tuple[set[int], set[int]]:
    """Return the seeds that every frozen arm has, and those that have the setting it was frozen at. With looks an arm
    may have ended at the first; with repeats of the tuning the first one's setting is the frozen one; and what a run
    was extended by may be of some arms alone, and of a better setting."""
    everywhere = {trial.seed for arm in facts.frozen for trial in confirm.get(arm, ())}
    if "plan" not in facts.run.sweep:
        return everywhere, everywhere
    plan = planning.stored(facts.run.sweep, facts.run.rules)
    first = plan.confirm_seeds[: plan.looks[0]] if plan.looks else plan.confirm_seeds
    of_frozen = set(plan.seeds_of(0)) if plan.repeats > 1 else set(plan.confirm_seeds)
    return everywhere & set(first), of_frozen


def _swapped(facts: Facts) -> Iterator[Finding]:
    """Yield faults of arms at each other's setting: their trials are those that the plan calls for, and all of these
    once the run is done, but for arms that are stopped."""
    if "plan" not in facts.run.sweep:
        return
    plan = planning.stored(facts.run.sweep, facts.run.rules)
    frozen = {arm: setting.params for arm, setting in facts.frozen.items()}
    trials = list(facts.trials.values())
    called = {planned.id for planned in swapping.called_for(plan, frozen)}
    for trial in trials:
        if trial.stage == "swap" and trial.id not in called:
            yield Finding(f"trial {trial.id}: no comparison calls for arm {trial.arm} at its setting", facts.restore)
    if facts.run.state != "done":
        return
    pool = swapping.Pool(plan, trials)
    for planned in swapping.called_for(plan, frozen, stopped_arms(trials)):
        if pool.find(planned) is None:
            what = f"arm {planned.arm}: has no trial {planned.id} at another arm's setting, seed {planned.seed}"
            yield Finding(what, f"continue it: {facts.resume}")


CHECKS = (
    *(_left_running, _ids, _attempt_numbers, _trained_once, _ends, _metrics, _furthest, _suggested, _frozen),
    _swapped,
)
