"""What a sweep's ledger calls for: suggestions that are due, settings to freeze, trials to queue, arms to stop.

A function of the plan and the ledger: asked again after any kill, it gives the same answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from jobs.config import JobConfig, canonical, issues
from orchestrator.ledger import Ledger, Suggestion, Trial
from orchestrator.session.schedule import confirming, extension, swapping
from orchestrator.session.schedule.pruning import Climb, rungs
from orchestrator.session.schedule.stopping import (
    fingerprint,
    is_stopped,
    setting_of,
    stopped_arms,
    stopped_swaps,
    stops_the_sweep,
)
from orchestrator.sweep import search
from orchestrator.sweep.model import Tune
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.plan.trials import Planned
from orchestrator.sweep.search import sampling
from orchestrator.sweep.space import conditions
from orchestrator.sweep.values import Settings
from orchestrator.system.display import counted

if TYPE_CHECKING:
    from orchestrator.statistics import Course

__all__ = [
    "Schedule", "as_trial", "awaiting_oom_decision", "digest", "fingerprint", "is_stopped", "no_job", "note_lost",
    "passed_over", "setting_of", "stopped_arms", "stopped_swaps", "stops_the_sweep", "untuned_arms", "wrong_metric",
]  # fmt: skip

STAGES = ("tune", "confirm", "swap")
"""In the order in which their trials are run."""


class Schedule:
    """The decisions of one run. Only the writer thread calls `advance`."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        *,
        ending: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Take the plan and the ledger. ending: whether the session is to end, so that what is still to be suggested is
        left to the next session. tell: gets a line for a person when a suggestion is passed over."""
        self._plan, self._ledger, self._ending, self._tell = plan, ledger, ending, tell
        tune = plan.sweep.tune
        self._parallel = tune.parallel if tune else 1
        within = (
            [set(conditions.within(tune.space, plan.arm(label).values)) for label in plan.suggestions] if tune else []
        )
        self._everywhere = set.intersection(*within) if within else set[str]()
        """Keys that every arm tunes."""
        self._extended: extension.Extended | None = None
        self._looked = False
        """The looks of this session have ended, unless a person queues a trial again."""
        self._queued = False
        """All that extensions call for is there."""
        self._swaps = swapping.Swaps(plan) if plan.swaps else None
        self._settled: dict[tuple[str, int], sampling.Observed] = {}
        """Suggestions whose trials have all ended well: nothing about them changes any more."""

    def advance(self, arm: str | None = None) -> dict[str, Trial]:
        """Ask for the suggestions that are due and freeze the arms that are tuned, in every arm, or only in the arm
        where a trial has ended and in those tuned with it. Returns the trials there by id."""
        labels = [planned.label for planned in self._plan.arms] if arm is None else [arm, *self._followers(arm)]
        stopped = stopped_arms(self._ledger.trials(state="failed"))
        for label in labels:
            if label not in stopped and not self._ending():
                self._advance(label)
        if not self._ending():
            new = [self._swap(stopped), (self._plan.looks and self._look(stopped)) or self._extend(stopped)]
            arm = None if any(new) else arm  # other arms have new trials too
        trials = (
            self._ledger.trials() if arm is None else [t for label in labels for t in self._ledger.trials(arm=label)]
        )
        return {trial.id: trial for trial in trials}

    def due(self, trials: Iterable[Trial]) -> list[str]:
        """List the ids of the queued trials in the order they are run, without those that are stopped: arms take turns,
        so that a sweep cut short has compared as much as it could. A trial that may be pruned waits for those that it
        is compared with, where a person has queued such a trial again."""
        trials = list(trials)
        stopped, unswapped = stopped_arms(trials), stopped_swaps(trials)
        order = {arm.label: number for number, arm in enumerate(self._plan.arms)}
        open_: dict[str, int] = {}
        for trial in trials:
            if self.pruned(trial) and (trial.state in ("queued", "running") or awaiting_oom_decision(trial)):
                open_[trial.arm] = min(trial.number or 0, open_.get(trial.arm, trial.number or 0))
        queued = [
            trial
            for trial in trials
            if trial.state == "queued"
            and not is_stopped(trial, stopped, unswapped)
            and not (self.pruned(trial) and open_[trial.arm] <= (trial.number or 0) - self._parallel)
        ]
        queued.sort(key=lambda t: (STAGES.index(t.stage), t.number or 0, t.seed, order[t.arm]))
        return [trial.id for trial in queued]

    def pruned(self, trial: Trial) -> bool:
        """Return whether this trial may be pruned."""
        tune = self._plan.sweep.tune
        return tune is not None and tune.prune != "none" and trial.stage == "tune"

    def climb(self, trial: Trial) -> Climb | None:
        """Build what decides where a trial is pruned; None if it may not be pruned."""
        if not self.pruned(trial):
            return None
        points = self._ledger.points(trial.id, key=self._plan.sweep.metric.name)
        return Climb(self._plan, trial, self.observed(trial.arm), [point.step for point in points])

    def observed(self, arm: str) -> list[sampling.Observed]:
        """Collect the results of the arm's suggestions; `state` is None until a suggestion's trials have ended."""
        by_id = {trial.id: trial for trial in self._ledger.trials(stage="tune", arm=arm)}
        history = []
        for suggestion in self._ledger.suggestions(arm):
            settled = self._settled.get((arm, suggestion.number))
            if settled is None:
                # A run begun before trials were kept apart may have asked for one of another arm.
                trials = [by_id.get(trial) or self._ledger.trial(trial) for trial in suggestion.trials]
                settled = self._observe(suggestion, trials)
                if {trial.state for trial in trials} <= {"done", "pruned"}:
                    self._settled[arm, suggestion.number] = settled
            history.append(settled)
        return history

    def _advance(self, arm: str) -> None:
        tune, frozen = self._plan.sweep.tune, self._ledger.frozen()
        if arm in frozen:
            return
        if tune is None:
            self._freeze(arm, [({}, None)])
            return
        leader = self._plan.searched_with.get(arm, arm)
        if leader != arm and leader not in frozen:
            return
        observed = self._suggest(tune, leader, self._plan.asked(leader)) if leader == arm else self.observed(leader)
        if (best := self._best(leader, observed)) is not None:
            self._freeze(arm, best)

    def _suggest(self, tune: Tune, arm: str, budget: int) -> list[sampling.Observed]:
        """Ask for the suggestions of an arm that are due, of so many in all; return the results of all, or none while
        some are still to be asked for."""
        while len(observed := self.observed(arm)) < budget:
            number = len(observed)
            repeat, own = self._within(arm, number)
            first = number - own
            seen = [
                replace(earlier, number=earlier.number - first)
                for earlier in observed[first:]
                if earlier.number <= number - tune.parallel
            ]
            if any(earlier.state is None for earlier in seen) or self._ending():
                return []
            params = search.suggest(
                tune,
                mode=self._plan.sweep.metric.mode,
                sweep_seed=tune.seed + repeat,
                arm=arm,
                number=own,
                history=seen,
                base=self._plan.arm(arm).values,
                everywhere=self._everywhere,
                rules=self._plan.rules,
            )
            why = no_job(self._plan, arm, "tune", params)
            trials = [] if why is not None else self._own(self._plan.tune_trials(arm, number, params))
            self._ledger.add_suggestion(
                Suggestion(arm, number, params, tuple(trial.id for trial in trials)), map(as_trial, trials)
            )
            if why is not None:
                text = f"arm {arm}: suggestion {number + 1} is passed over, as it makes no job: {why}"
                self._ledger.event("no_job", text)
                if self._tell is not None:
                    self._tell(text)
        return observed

    def _within(self, arm: str, number: int) -> tuple[int, int]:
        """Return which repeat of the tuning a suggestion belongs to, and its number there."""
        return divmod(number, self._plan.suggestions[arm]) if self._plan.repeats > 1 else (0, number)

    def _best(self, arm: str, observed: Sequence[sampling.Observed]) -> list[tuple[Settings, int | None]] | None:
        """Choose the setting of every repeat of an arm's tuning, with its suggestion's number; None while one is still
        to be had, and where one has none that trained to its end."""
        count = self._plan.suggestions[arm]
        if len(observed) < self._plan.asked(arm) or any(one.state is None for one in observed[: self._plan.asked(arm)]):
            return None
        repeats = [observed[repeat * count : (repeat + 1) * count] for repeat in range(self._plan.repeats)]
        found = [extension.best(own, self._plan.sweep.metric.mode) for own in repeats]
        if any(one is None for one in found):
            return None
        return [(one.params, one.number) for one in found if one is not None]

    def _freeze(self, arm: str, settings: Sequence[tuple[Settings, int | None]]) -> None:
        """Queue an arm's confirm trials and record its setting, of the first repeat where there are several."""
        if any(no_job(self._plan, arm, "confirm", params) is not None for params, _ in settings):
            return  # another arm was tuned for this one; `untuned_arms` tells
        planned = [
            trial
            for repeat, (params, _) in enumerate(settings)
            for trial in self._plan.confirm_trials(arm, params, self._plan.seeds_of(repeat))
        ]
        trials = self._own(planned)
        first = self._plan.looks[0] if self._plan.looks else len(trials)
        self._ledger.add_trials(map(as_trial, trials[:first]))
        job = {key: value for key, value in trials[0].record.items() if key != "seed"}
        params, number = settings[0]
        self._ledger.freeze(arm, dict(params), number, digest(job))

    def _look(self, stopped: Collection[str]) -> bool:
        """Queue the seeds of the next look, in one write, once the last one is over; return whether there are any."""
        if self._looked:
            return False
        trials, frozen = self._ledger.trials(), self._ledger.frozen()
        confirm = [trial for trial in trials if trial.stage == "confirm" and trial.seed in self._plan.confirm_seeds]
        if any(confirming.may_end(trial, stopped) for trial in confirm):
            return False
        untuned = untuned_arms(self._plan, self._ledger)
        if self._unsettled(untuned, stopped):
            return False
        course = _looked_at(self._plan, self._ledger, trials, untuned)
        self._note_look(course)
        self._looked = bool(course.ended)
        there = {(trial.arm, trial.seed) for trial in confirm}
        new = [
            planned
            for arm, count in course.due.items()
            if arm in frozen
            for planned in self._own(self._plan.confirm_trials(arm, frozen[arm].params))
            if planned.seed in self._plan.confirm_seeds[:count] and (arm, planned.seed) not in there
        ]
        self._ledger.add_trials(map(as_trial, new))
        return bool(new)

    def _swap(self, stopped: Collection[str]) -> bool:
        """Queue, in one write, the trials of arms at one another's setting that are called for by now and not there;
        return whether there are any."""
        if self._swaps is None:
            return False
        frozen = {arm: setting.params for arm, setting in self._ledger.frozen().items()}
        due = self._swaps.due(
            frozen,
            stopped,
            self._ledger.trials,
            lambda: self._unsettled(untuned_arms(self._plan, self._ledger), stopped),
        )
        if due:
            self._ledger.add_trials(map(as_trial, due))
        return bool(due)

    def _unsettled(self, untuned: Collection[str], stopped: Collection[str]) -> set[str]:
        """Find the arms that may yet be frozen."""
        led = {arm for arm, leader in self._plan.searched_with.items() if leader in stopped}
        return {arm.label for arm in self._plan.arms} - {*self._ledger.frozen(), *untuned, *stopped, *led}

    def _extend(self, stopped: Collection[str]) -> bool:
        """Ask for the suggestions and queue the confirm trials that were added to the run; return whether there are new
        ones."""
        if self._extended is None:  # what a session adds it records before it begins
            self._extended = extension.Extended(self._plan, extension.recorded(self._ledger))
        extended, tune = self._extended, self._plan.sweep.tune
        if not extended.extensions:
            return False
        if self._queued:
            return False
        before = {trial.id for trial in self._ledger.trials()}
        observed: dict[str, list[sampling.Observed]] = {}
        for arm in self._plan.suggestions:
            if tune is not None and arm not in stopped:
                self._suggest(tune, arm, extended.budget(arm))
            observed[arm] = self.observed(arm)
        frozen = {arm: setting.params for arm, setting in self._ledger.frozen().items() if arm not in stopped}
        called, self._queued = extended.trials(frozen, observed, stopped)
        of_arm: dict[str, list[Planned]] = defaultdict(list)
        for planned in called:
            of_arm[planned.arm].append(planned)
        new = [trial for own in of_arm.values() for trial in self._own(own) if trial.id not in before]
        self._ledger.add_trials(map(as_trial, new))
        return bool({trial.id for trial in self._ledger.trials()} - before)

    def _note_look(self, course: Course) -> None:
        """Say what the last look has decided, once."""
        looks, total = self._plan.looks, len(self._plan.looks)
        text = f"look {course.taken} of {total}, {looks[course.taken - 1]} seeds: "
        open_ = [pair for pair, one in course.standing.items() if not one.claim]
        text += f"{len(course.standing) - len(open_)} of {counted(len(course.standing), 'comparison')} settled"
        if not course.ended:
            text += f"; it goes on to {looks[course.taken]} seeds"
        elif course.ended == "futile":
            text += "; more seeds would hardly settle the rest, and none are trained"
        if course.taken and text not in {event.text for event in self._ledger.events("look")}:
            self._ledger.event("look", text)
            if self._tell is not None:
                self._tell(text)

    def _own(self, trials: list[Planned]) -> list[Planned]:
        """Return the same trials, under ids of their own where the ledger has theirs under another arm, as in a run
        that was begun before the plan kept them apart. Those that the plan keeps apart stay so."""
        shared = [trial.id for trial in trials if not trial.apart]
        arms = self._ledger.arms(shared) if shared else {}
        return [replace(t, apart=t.apart or arms.get(t.id, t.arm) != t.arm) for t in trials]

    def _observe(self, suggestion: Suggestion, trials: list[Trial]) -> sampling.Observed:
        states = {trial.state for trial in trials}
        state: Literal["done", "pruned", "failed", "infeasible"] | None = None
        if not trials:  # it makes no job, and never will
            return sampling.Observed(suggestion.number, suggestion.params, None, "infeasible")
        if not states & {"queued", "running"} and not any(map(awaiting_oom_decision, trials)):
            state = "failed" if "failed" in states else "pruned" if "pruned" in states else "done"
            diverged = any(trial.outcome == "diverged" for trial in trials)
            if diverged or (state == "failed" and any(trial.outcome == "infeasible" for trial in trials)):
                state = "infeasible"
        values = [trial.metric for trial in trials if trial.metric is not None]
        value = sum(values) / len(values) if state in ("done", "pruned") and len(values) == len(trials) else None
        measured = state not in (None, "infeasible") and self.pruned(trials[0])
        rungs = self._rung_values(trials[0]) if measured else {}
        return sampling.Observed(suggestion.number, suggestion.params, value, state, rungs)

    def _followers(self, arm: str) -> list[str]:
        """List the arms that this arm is tuned for too."""
        return [label for label, leader in self._plan.searched_with.items() if leader == arm]

    def _rung_values(self, trial: Trial) -> dict[int, float]:
        points = self._ledger.points(trial.id, key=self._plan.sweep.metric.name)
        return rungs(trial, {point.step: point.value for point in points})


def as_trial(planned: Planned) -> Trial:
    """Convert a planned trial to a ledger row."""
    return Trial(
        id=planned.id,
        stage="swap" if planned.stage == "swap" else planned.job.stage,
        arm=planned.arm,
        seed=planned.seed,
        job=planned.record,
        number=planned.number,
    )


def no_job(plan: Plan, arm: str, stage: str, params: Settings) -> str | None:
    """Explain why settings make no job of an arm; None where they do. A plan is checked before a run is begun, but not
    by an earlier version, and not in every combination of many keys."""
    try:
        plan.arm(arm).config(stage=stage, seed=0, settings=params)
    except ValidationError as error:
        reason = "; ".join(
            f"{issue.key}: {issue.expected}" if issue.key else issue.expected for issue in issues(error, JobConfig)
        )
        return f"{reason} ({', '.join(f'{key} = {value}' for key, value in params.items())})"
    return None if stage == "confirm" or plan.tune_seeds else "tune.seeds names none"


def passed_over(plan: Plan, ledger: Ledger) -> dict[str, list[str]]:
    """Collect, arm by arm, why suggestions make no job: the suggestions without trials."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for suggestion in ledger.suggestions():
        if not suggestion.trials:
            reasons[suggestion.arm].append(no_job(plan, suggestion.arm, "tune", suggestion.params) or "it made none")
    return reasons


def awaiting_oom_decision(trial: Trial) -> bool:
    """Return whether a trial ran out of memory and nobody has decided yet. The search does not hear of it until it has
    run with less memory or is given up: a setting is no worse because memory was short."""
    return trial.state == "failed" and trial.failure == "out_of_memory" and trial.outcome != "infeasible"


def untuned_arms(plan: Plan, ledger: Ledger) -> dict[str, str]:
    """Find the arms that have ended all their suggestions without one that could be frozen: `diverged` where a trial
    did, else `failed`. An arm tuned with another is untuned with it, and `failed` if the other's settings make no job
    of it."""
    untuned: dict[str, str] = {}
    frozen, schedule = ledger.frozen(), Schedule(plan, ledger)
    diverged = {trial.id for trial in ledger.trials(stage="tune") if trial.outcome == "diverged"}
    for arm, count in plan.suggestions.items():
        observed = schedule.observed(arm) if arm not in frozen else []
        if observed and len(observed) >= plan.asked(arm) and all(tried.state is not None for tried in observed):
            repeats = [observed[first : first + count] for first in range(0, plan.asked(arm), count)]
            empty = [own for own in repeats if extension.best(own, plan.sweep.metric.mode) is None]
            tried = {one.number: diverged.intersection(one.trials) for one in ledger.suggestions(arm)}
            fell = all(any(tried[one.number] for one in own) for own in empty)
            untuned[arm] = "diverged" if fell else "failed"
    for arm, leader in plan.searched_with.items():
        if leader in untuned:
            untuned[arm] = untuned[leader]
        elif leader in frozen and arm not in frozen and no_job(plan, arm, "confirm", frozen[leader].params):
            untuned[arm] = "failed"
    return untuned


def note_lost(plan: Plan, ledger: Ledger) -> None:
    """Record the seeds that were lost when looks were taken, before anything is begun by what these have said, and
    before a person queues a failed trial again."""
    if plan.looks:
        _looked_at(plan, ledger, ledger.trials(), untuned_arms(plan, ledger))


def _looked_at(plan: Plan, ledger: Ledger, trials: Sequence[Trial], untuned: Mapping[str, str]) -> Course:
    """Follow the looks, and record what was lost when they were taken."""
    before = confirming.lost_before(ledger)
    course = confirming.course(plan, trials, untuned, stopped_arms(trials), before)
    never = [arm for arm, why in untuned.items() if why == "diverged"]
    if lost := confirming.lost_by(plan, trials, course, never, before):
        ledger.event(confirming.LOST, json.dumps(lost))
    return course


def wrong_metric(name: str, metrics: Mapping[str, object]) -> str | None:
    """Explain what is wrong with a trial's metric; None if nothing is."""
    if name not in metrics:
        measured = ", ".join(key for key in metrics if not key.startswith(("train/", "system/")))
        return f"the metric {name!r} was not measured; the trial measured {measured}"
    value = metrics[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"the metric {name!r} is {type(value).__name__} {str(value)[:60]!r}; it must be one finite number"
    return None if isfinite(value) else f"the metric {name!r} is {value}; it must be one finite number"


def digest(value: object) -> str:
    """Compute the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
