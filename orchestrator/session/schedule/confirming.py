"""The confirm stage as the statistics see it: what trained, diverged and was lost, and how far its looks have come."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from orchestrator.ledger import Ledger, Trial
from orchestrator.sweep.plan import Plan, family_of

if TYPE_CHECKING:  # scipy is for those who judge
    from orchestrator.statistics import Course

HAS_ENDED = ("done", "pruned", "failed")
"""States of a trial of which nothing more comes, unless a person queues it again."""


def may_end(trial: Trial, stopped: Collection[str]) -> bool:
    """Return whether a trial may still get a result. stopped: arms of which nothing more is begun."""
    return trial.state not in HAS_ENDED and (trial.arm not in stopped or trial.state == "running")


def over(plan: Plan, trials: Iterable[Trial], untuned: Collection[str], stopped: Collection[str]) -> set[str]:
    """Find the arms of which no further confirm trial is begun, whatever was planned: those that are stopped, those
    without a setting, and those that are tuned with an arm that was stopped before it had one."""
    confirmed = {trial.arm for trial in trials if trial.stage == "confirm"}
    led = {arm for arm, leader in plan.searched_with.items() if leader in stopped and not confirmed & {arm, leader}}
    return {*untuned, *stopped, *led}


def to_come(
    plan: Plan,
    trials: Sequence[Trial],
    untuned: Collection[str],
    stopped: Collection[str],
    looked: Course | None = None,
) -> set[tuple[str, int]]:
    """Find the planned confirm trials that may still get a result, by arm and seed. untuned, stopped: as `course`.
    looked: how far the looks have come, where there are several: an arm trains no further than they ask for."""
    confirm = [trial for trial in trials if trial.stage == "confirm"]
    ended = {(trial.arm, trial.seed) for trial in confirm if trial.state in HAS_ENDED}
    running = {(trial.arm, trial.seed) for trial in confirm if trial.state == "running"}
    without = over(plan, trials, untuned, stopped)
    due = {arm.label: plan.confirm_seeds for arm in plan.arms}
    if looked is not None:
        last = plan.looks[looked.taken] if not looked.ended else None
        due |= {arm: plan.confirm_seeds[:count] for arm, count in looked.due.items() if count != last}
    return {
        (arm, seed)
        for arm, seeds in due.items()
        for seed in seeds
        if (arm, seed) not in ended and (arm not in without or (arm, seed) in running)
    }


def lost_before(ledger: Ledger) -> dict[str, set[int]]:
    """Collect the seeds of each arm that were lost when a look was taken. They stay so, whatever a retry brings: by its
    result a person could have a look judged twice."""
    lost: dict[str, set[int]] = {}
    for event in ledger.events(LOST):
        for arm, seeds in json.loads(event.text).items():
            lost.setdefault(arm, set()).update(seeds)
    return lost


def lost_by(
    plan: Plan, trials: Iterable[Trial], course: Course, never: Collection[str], before: Mapping[str, Collection[int]]
) -> dict[str, list[int]]:
    """Find the seeds of the looks taken so far that are lost, beside those that were `before`, by arm. never: arms that
    are not confirmed, as no setting trained."""
    confirm = [trial for trial in trials if trial.stage == "confirm"]
    trained, fallen = values(confirm), diverged(confirm)
    found = {}
    for arm, count in course.due.items() if course.taken else ():
        seeds = plan.confirm_seeds[: min(count, plan.looks[course.taken - 1])]
        there = {*trained.get(arm, {}), *fallen.get(arm, ()), *before.get(arm, ())}
        if arm not in never and (lost := [seed for seed in seeds if seed not in there]):
            found[arm] = lost
    return found


def without(
    found: Mapping[str, Mapping[int, float]], lost: Mapping[str, Collection[int]]
) -> dict[str, dict[int, float]]:
    """Return the metrics without those of seeds that count as lost."""
    return {
        arm: {seed: metric for seed, metric in own.items() if seed not in lost.get(arm, ())}
        for arm, own in found.items()
    }


def values(trials: Iterable[Trial], metric: str | None = None) -> dict[str, dict[int, float]]:
    """Collect the final metrics of confirm trials that trained: arm -> seed -> metric. metric: the name of a further
    one than the sweep's first."""
    found: dict[str, dict[int, float]] = {}
    for trial in trials:
        trained = trial.state == "done" and trial.outcome != "diverged"
        value = trial.metric if metric is None else trial.metrics.get(metric)
        if trained and value is not None and isfinite(value):
            found.setdefault(trial.arm, {})[trial.seed] = value
    return found


def diverged(trials: Iterable[Trial]) -> dict[str, set[int]]:
    """Collect the seeds of confirm trials that diverged, by arm."""
    found: dict[str, set[int]] = {}
    for trial in trials:
        if trial.outcome == "diverged":
            found.setdefault(trial.arm, set()).add(trial.seed)
    return found


LOST = "look_lost"
"""Of the events that hold, as JSON, the seeds of each arm that were lost when a look was taken."""


@dataclass(frozen=True)
class Units:
    """What is paired: seeds, or the repeats of a tuning."""

    names: list[int]
    """The first seed of each."""
    values: dict[str, dict[int, float]]
    diverged: dict[str, set[int]]
    of_seeds: dict[str, tuple[int, int]]
    """arm -> how many of its seeds diverged, and how many diverged or trained, where a unit has several."""


def by_unit(plan: Plan, trained: Mapping[str, Mapping[int, float]], fallen: Mapping[str, Collection[int]]) -> Units:
    """Average what seeds came to, where the repeat of a tuning is the unit."""
    return averaged(plan.units, [arm.label for arm in plan.arms], trained, fallen)


def averaged(
    parts: Sequence[Sequence[int]],
    arms: Iterable[str],
    trained: Mapping[str, Mapping[int, float]],
    fallen: Mapping[str, Collection[int]],
) -> Units:
    """Average what the seeds of each unit came to. It has diverged where one of its seeds has, and lacks a value where
    one does."""
    units = Units([seeds[0] for seeds in parts], {}, {}, {})
    has_several, planned = any(len(seeds) > 1 for seeds in parts), {seed for seeds in parts for seed in seeds}
    for arm in arms:
        mine, lost = trained.get(arm, {}), set(fallen.get(arm, ()))
        if has_several:
            units.of_seeds[arm] = len(lost & planned), len((lost | mine.keys()) & planned)
        units.diverged[arm] = {seeds[0] for seeds in parts if lost & set(seeds)}
        whole = (seeds for seeds in parts if not lost & set(seeds) and set(seeds) <= mine.keys())
        units.values[arm] = {seeds[0]: fmean(mine[seed] for seed in seeds) for seeds in whole}
    return units


def between_repeats(plan: Plan, trained: Mapping[str, Mapping[int, float]], a: str, b: str) -> float | None:
    """Compute the standard deviation of the mean difference of two arms between repeats of the tuning; None for fewer
    than two that have all their seeds."""
    left, right = trained.get(a, {}), trained.get(b, {})
    repeats = [plan.seeds_of(repeat) for repeat in range(plan.repeats)]
    whole = [seeds for seeds in repeats if set(seeds) <= left.keys() & right.keys()]
    means = [fmean(left[seed] - right[seed] for seed in seeds) for seeds in whole]
    return stdev(means) if len(means) > 1 else None


def course(
    plan: Plan,
    trials: Sequence[Trial],
    untuned: Mapping[str, str],
    stopped: Collection[str],
    before: Mapping[str, Collection[int]],
) -> Course:
    """Follow the looks of a plan as far as its trials have come.

    untuned: arms that will have no confirm trial, and why. stopped: arms of which nothing more is begun, so that what
    they lack is lost. before: arm -> seeds that count as lost whatever they have come to, as `lost_before`.
    """
    from orchestrator import statistics

    confirm = [trial for trial in trials if trial.stage == "confirm"]
    trained = without(values(confirm), before)
    fallen = {arm: seeds.difference(before.get(arm, ())) for arm, seeds in diverged(confirm).items()}
    ended: dict[str, set[int]] = {}
    for trial in confirm:
        if trial.state in HAS_ENDED:
            ended.setdefault(trial.arm, set()).add(trial.seed)
    never = [arm for arm, why in untuned.items() if why == "diverged"]
    for arm in over(plan, trials, untuned, stopped).difference(never):
        running = {trial.seed for trial in confirm if trial.arm == arm and trial.state == "running"}
        ended[arm] = set(plan.confirm_seeds) - running
    for arm, seeds in before.items():
        ended.setdefault(arm, set()).update(seeds)
    lost = {arm: seeds - trained.get(arm, {}).keys() - fallen.get(arm, set()) for arm, seeds in ended.items()}
    metric, asked = plan.sweep.metric, [pair for pair in plan.tested if not set(pair) & set(never)]
    alpha = statistics.levels(family_of(plan.sweep, len(asked)), max(metric.smallest_differences))
    further = {own.name: without(values(confirm, own.name), before) for own in metric.also}
    return statistics.course(
        statistics.Trained(trained, statistics.Divergence(fallen, never), lost, further),
        plan.contrasts,
        statistics.Looks(
            plan.looks,
            plan.confirm_seeds,
            (alpha.difference, alpha.equivalence),
            [statistics.Measure(own.name, own.mode, own.smallest_difference) for own in metric.every],
        ),
        same_objective=[pair for pair in plan.contrasts if pair not in plan.tested],
    )
