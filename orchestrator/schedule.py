"""What a sweep's ledger calls for: suggestions that are due, settings to freeze, trials to queue.

A function of the plan and the ledger: asked again after any kill, it gives the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from jobs.config import JobConfig, canonical
from orchestrator import search
from orchestrator.ledger import Ledger, Suggestion, Trial
from orchestrator.plan import Plan, Planned


class Schedule:
    """The decisions of one run. Only the writer thread calls `advance`."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan, self._ledger = plan, ledger
        self._settled: dict[tuple[str, int], search.Observed] = {}
        """Suggestions whose trials have all ended well: nothing about them changes any more."""

    def advance(self, arm: str | None = None) -> dict[str, Trial]:
        """Ask for the suggestions that are due and freeze the arms that are tuned, in every arm or in the one where a
        trial has ended. Returns the trials there by id."""
        for label in [one.label for one in self._plan.arms] if arm is None else [arm]:
            self._advance(label)
        return {trial.id: trial for trial in self._ledger.trials(arm=arm)}

    def due(self, trials: Iterable[Trial]) -> list[str]:
        """Ids of the queued trials in the order they are run: arms take turns, so that a sweep cut short has compared
        as much as it could."""
        order = {arm.label: place for place, arm in enumerate(self._plan.arms)}
        queued = [trial for trial in trials if trial.state == "queued"]
        queued.sort(key=lambda t: (t.stage != "tune", t.number or 0, t.seed, order[t.arm]))
        return [trial.id for trial in queued]

    def pruned(self, trial: Trial) -> bool:
        """Whether this trial may be pruned."""
        tune = self._plan.sweep.tune
        return tune is not None and tune.prune != "none" and trial.stage == "tune"

    def observed(self, arm: str) -> list[search.Observed]:
        """What the arm's suggestions have come to. `state` is None while one of its trials has not ended."""
        by_id = {trial.id: trial for trial in self._ledger.trials(stage="tune", arm=arm)}
        found = []
        for suggestion in self._ledger.suggestions(arm):
            one = self._settled.get((arm, suggestion.number))
            if one is None:
                trials = [by_id[trial] for trial in suggestion.trials]
                one = self._observe(suggestion, trials)
                if {trial.state for trial in trials} <= {"done", "pruned"}:
                    self._settled[arm, suggestion.number] = one
            found.append(one)
        return found

    def _advance(self, arm: str) -> None:
        tune, frozen = self._plan.sweep.tune, self._ledger.frozen()
        if arm in frozen:
            return
        if tune is None:
            self._freeze(arm, {}, None)
            return
        while len(observed := self.observed(arm)) < self._plan.suggestions[arm]:
            number = len(observed)
            seen = [one for one in observed if one.number <= number - tune.parallel]
            if any(one.state is None for one in seen):
                return
            params = search.suggest(
                tune,
                mode=self._plan.sweep.metric.mode,
                sweep_seed=tune.seed,
                arm=arm,
                number=number,
                history=seen,
                base=self._plan.arm(arm).values,
            )
            trials = self._plan.tune_trials(arm, number, params)
            self._ledger.add_suggestion(
                Suggestion(arm, number, params, tuple(trial.id for trial in trials)), map(as_trial, trials)
            )
        if all(one.state is not None for one in observed):
            self._freeze_best(arm, observed)

    def _freeze_best(self, arm: str, observed: Iterable[search.Observed]) -> None:
        sign = 1 if self._plan.sweep.metric.mode == "max" else -1
        usable = [one for one in observed if one.state == "done" and one.value is not None]
        if usable:
            best = max(usable, key=lambda one: (sign * (one.value or 0.0), -one.number))
            self._freeze(arm, best.params, best.number)

    def _freeze(self, arm: str, params: Mapping[str, Any], number: int | None) -> None:
        trials = self._plan.confirm_trials(arm, params)
        self._ledger.add_trials(map(as_trial, trials))
        job = trials[0].job.model_dump(mode="json", exclude={"seed"})
        self._ledger.freeze(arm, dict(params), number, digest(job))

    def _observe(self, suggestion: Suggestion, trials: list[Trial]) -> search.Observed:
        states = {trial.state for trial in trials}
        state: Any = None
        if not states & {"queued", "running"} and not any(map(withheld, trials)):
            state = next((kind for kind in ("failed", "pruned") if kind in states), "done")
            if state == "failed" and any(trial.outcome == "infeasible" for trial in trials):
                state = "infeasible"
        values = [trial.metric for trial in trials if trial.metric is not None]
        value = sum(values) / len(values) if state in ("done", "pruned") and len(values) == len(trials) else None
        rungs = self._rung_values(trials[0]) if state is not None and self.pruned(trials[0]) else {}
        return search.Observed(suggestion.number, suggestion.params, value, state, rungs)

    def _rung_values(self, trial: Trial) -> dict[int, float]:
        points = self._ledger.points(trial.id, key=self._plan.sweep.metric.name)
        return rungs(trial, {point.step: point.value for point in points})


def as_trial(planned: Planned) -> Trial:
    """A planned trial as a ledger row."""
    return Trial(
        id=planned.id,
        stage=planned.job.stage,
        arm=planned.arm,
        seed=planned.seed,
        job=planned.job.model_dump(mode="json"),
        number=planned.number,
    )


def withheld(trial: Trial) -> bool:
    """Whether a trial ran out of memory and nobody has decided yet. The search does not hear of it until it has run
    with less memory or is given up: a setting is no worse for want of memory."""
    return trial.state == "failed" and trial.failure == "out_of_memory" and trial.outcome != "infeasible"


def rungs(trial: Trial, measured: Mapping[int, float]) -> dict[int, float]:
    """The metric at each rung that a trial has reached, counted from 1; measured: the metric by optimizer step.

    Rungs are its evaluations but the first and the last. Rung k is the k-th of them, whatever the batch size, so that
    trials of different lengths meet at the same share of the budget. (With a budget in seconds, one that was so slow
    that a step used up two shares has a rung less.)
    """
    job = JobConfig.model_validate(trial.job)
    steps = job.evaluation_steps[:-1]
    if job.steps is None:
        end = trial.step if trial.state == "done" else None
        steps = sorted(step for step in measured if step not in (0, end))[: job.evaluate.times - 1]
    return {k: measured[step] for k, step in enumerate(steps, 1) if step in measured and isfinite(measured[step])}


def rung_count(trial: Trial) -> int:
    """How many rungs there are on the way of a trial."""
    job = JobConfig.model_validate(trial.job)
    return job.evaluate.times - 1 if job.steps is None else len(job.evaluation_steps) - 1


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
