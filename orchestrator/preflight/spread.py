"""What the seeds of a plan can show, by how far paired differences were spread in earlier runs.

Looked at are the ledgers within reach, as for the time that a sweep takes: contrasts of the same task, rows, metric and
budget with five confirm pairs or more. Of their standard deviations the largest counts, from above: a sample of few
pairs may be less spread than what it is drawn from, so it is multiplied by sqrt((n - 1) / chi2), at the fifth of
chi-squared below which one in five samples falls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import stdev
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from jobs.config import canonical
from jobs.config.components import is_import_path
from orchestrator.ledger import Finished
from orchestrator.ledger.stored import JsonObject
from orchestrator.preflight.estimate.history import confirmed_within_reach
from orchestrator.sweep import Sweep
from orchestrator.sweep import plan as planning
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.plan.warnings import is_seedless

if TYPE_CHECKING:
    from orchestrator.preflight.estimate import Estimate

FEWEST_PAIRS = 5
"""Pairs of a contrast from which on its spread says something."""

ONE_IN_FIVE = 0.2

ROUNDING = 1e-12
"""Of the metric: less is no spread."""


@dataclass(frozen=True)
class Spread:
    """How far the paired differences of a contrast lie apart."""

    sd: float
    """Standard deviation, from above."""

    pairs: int
    origin: str
    """The run's folder or name."""


Spreads = Sequence[tuple[str, Spread]]
"""Of contrasts of earlier runs, each with what its differences are differences of."""


class PowerSummary(TypedDict):
    """What the seeds of one contrast can show, as JSON."""

    a: str
    b: str
    n: int
    """Seeds, or repeats of the tuning where these are paired."""
    sd: float | None
    """Of paired differences in runs like it, from above; None where there are none, and of repeats."""
    detectable: float | None
    """The difference that n of them find with a power of 0.8, in standard deviations of what is paired; None where they
    find none."""
    needed: int | None
    """Seeds that find the smallest difference that matters with a power of 0.8; None where the spread is not known."""
    source: str | None
    """The run that tells sd."""
    unit: Literal["seed", "repeat"]
    """What is paired: with repeats, the means of their seeds."""
    rank_hours: float | None
    """Hours of a rank for the confirm trials of both arms, with looks up to the last; None where no time is known."""
    needed_rank_hours: float | None
    """The same, for as many seeds as are needed."""
    metric: NotRequired[str]
    """By which the contrast is judged, where it is judged by several."""


@dataclass(frozen=True)
class Power:
    """What the seeds of one contrast can show."""

    a: str
    b: str
    n: int
    detectable: float
    """The difference that they find with a power of 0.8, in standard deviations; inf where they cannot find any."""

    spread: Spread | None
    """Of single seeds, whatever is paired."""

    needed: int | None
    """Seeds that find the smallest difference that matters with a power of 0.8; None where the spread of what is paired
    is not known."""

    unit: Literal["seed", "repeat"] = "seed"
    rank_hours: float | None = None
    """Hours of a rank for the confirm trials of both arms; None where no time is known."""

    needed_rank_hours: float | None = None
    metric: str = ""
    """By which the contrast is judged, where it is judged by several; else empty."""

    def to_json(self) -> PowerSummary:
        """Return the record as JSON."""
        is_known = self.spread is not None and self.unit == "seed"
        sd, source = (self.spread.sd, self.spread.origin) if self.spread and is_known else (None, None)
        found = self.detectable if isfinite(self.detectable) else None
        record: PowerSummary = {
            "a": self.a, "b": self.b, "n": self.n, "sd": sd, "detectable": found, "needed": self.needed,
            "source": source, "unit": self.unit, "rank_hours": self.rank_hours,
            "needed_rank_hours": self.needed_rank_hours,
        }  # fmt: skip
        return record | {"metric": self.metric} if self.metric else record


def known() -> Spreads:
    """Collect the spread of every contrast of the runs within reach. Raises nothing; reads ledgers, writes none."""
    return [spread for origin, trials in confirmed_within_reach() for spread in _of_run(origin, trials)]


def planned(sweep: Sweep, spreads: Spreads) -> Plan:
    """Make the plan of a new run, with as many seeds as the spread of earlier runs asks for. Raises as `plan.make`."""
    made = planning.make(sweep)
    if sweep.confirm.seeds != "enough":
        return made
    known: dict[str, planning.SpreadOf] = {}
    for found in power(made, spreads):
        name, own = found.metric or sweep.metric.name, found.spread
        if own is not None and (name not in known or own.sd > known[name].sd):
            known[name] = planning.SpreadOf(own.sd, own.origin)
    return planning.make(sweep, known) if known else made


def power(plan: Plan, spreads: Spreads, estimate: Estimate | None = None) -> list[Power]:
    """Compute what the seeds of every contrast that is tested can show, by each metric, and what they take. estimate:
    what a trial of each arm takes; None: not asked for."""
    from orchestrator.statistics import levels
    from orchestrator.statistics.power import detectable, seeds_to_find

    metric, seeds = plan.sweep.metric, len(plan.units)
    if not plan.tested or is_seedless(plan.arms):
        return []
    tests = planning.family_of(plan.sweep, len(plan.tested))
    alpha, found = levels(tests, max(metric.smallest_differences)).difference, []
    effect = detectable(seeds, alpha, tests)
    is_of_repeats, hours = plan.repeats >= planning.REPEATS_AS_UNITS, _hours(estimate)
    for own, (a, b) in itertools.product(metric.every, plan.tested):
        kind = _kind([_job(plan, arm) for arm in (a, b)], own.name)
        like = [spread for other, spread in spreads if other == kind]
        widest = max(like, key=lambda spread: spread.sd, default=None)
        needed, smallest = None, own.smallest_difference
        if widest and smallest > 0 and not is_of_repeats:  # single seeds tell nothing of means that share a tuning
            needed = seeds_to_find(smallest / widest.sd, alpha, tests)
        pair = hours[a] + hours[b] if a in hours and b in hours else None
        found.append(
            Power(
                a,
                b,
                seeds,
                effect,
                widest,
                needed,
                "repeat" if is_of_repeats else "seed",
                None if pair is None else len(plan.confirm_seeds) * pair,
                None if pair is None or needed is None else needed * pair,
                own.name if metric.also else "",
            )
        )
    return found


def _hours(estimate: Estimate | None) -> dict[str, float]:
    """Map the arms of which a time is known to the hours of a rank that one trial takes."""
    known = estimate.arms if estimate is not None else ()
    return {arm.label: took * arm.ranks / 3600 for arm in known if (took := arm.trial_seconds) is not None}


def _job(plan: Plan, arm: str) -> JsonObject:
    return plan.arm(arm).config(stage="confirm", seed=0).model_dump(mode="json")


def _of_run(origin: str, trials: Sequence[Finished]) -> Iterator[tuple[str, Spread]]:
    from scipy.special import chdtri

    by_arm: dict[str, dict[object, Finished]] = {}
    for trial in trials:
        by_arm.setdefault(trial.arm, {})[trial.job.get("seed")] = trial
    for metric, (a, b) in itertools.product((trials[0].metric, *trials[0].further), trials[0].contrasts):
        left, right = by_arm.get(a, {}), by_arm.get(b, {})
        pairs = [(left[seed], right[seed]) for seed in left.keys() & right.keys()]
        values = [(x.result.metrics.get(metric), y.result.metrics.get(metric)) for x, y in pairs]
        measured = [(x, y) for x, y in values if x is not None and y is not None and isfinite(x) and isfinite(y)]
        if (n := len(measured)) < FEWEST_PAIRS or _is_one_objective(*pairs[0]):
            continue
        sd, largest = stdev([x - y for x, y in measured]), max(max(abs(x), abs(y)) for x, y in measured)
        kind = _kind([trial.job for trial in pairs[0]], metric)
        if kind is not None and isfinite(sd) and sd > ROUNDING * largest:
            yield kind, Spread(sd * sqrt((n - 1) / float(chdtri(n - 1, 1 - ONE_IN_FIVE))), n, origin)


def _is_one_objective(a: Finished, b: Finished) -> bool:
    """Return whether two arms differ in nothing but how they are computed: their differences are rounding."""
    one, other = ({key: value for key, value in trial.job.items() if key != "execution"} for trial in (a, b))
    return one == other


def _kind(jobs: Sequence[Mapping[str, object]], metric: str) -> str | None:
    """Name what a difference of two arms is a difference of: the task, the rows, the metric and the budget, and of a
    task of the user's own the options that both have; None where the arms differ in one of these."""
    kinds = {canonical([job.get("task"), _rows(job), job.get("budget")]) for job in jobs}
    if len(kinds) > 1:
        return None
    options: object = {}
    if is_import_path(str(jobs[0].get("task"))):  # which may say what it is trained on
        own, other = (table if isinstance(table := job.get("options"), dict) else {} for job in jobs)
        options = {key: value for key, value in own.items() if key in other and other[key] == value}
    return canonical([kinds.pop(), metric, options])


def _rows(job: Mapping[str, object]) -> list[object]:
    data = job.get("data")
    return [data.get("train"), data.get("confirm")] if isinstance(data, dict) else []
