"""What the seeds of a plan can show, by how far paired differences were spread in earlier runs.

Looked at are the ledgers within reach, as for the time that a sweep takes: contrasts of the same task, rows, metric and
budget with five confirm pairs or more. Of their standard deviations the largest counts, from above: a sample of few
pairs may be less spread than what it is drawn from, so it is multiplied by sqrt((n - 1) / chi2), at the fifth of
chi-squared below which one in five samples falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import stdev

from jobs.config import canonical
from orchestrator.ledger import Finished
from orchestrator.ledger.stored import JsonObject
from orchestrator.preflight.estimate.history import trials_within_reach
from orchestrator.sweep import Sweep
from orchestrator.sweep import plan as planning
from orchestrator.sweep.plan import Plan

FEWEST_PAIRS = 5
"""Pairs of a contrast from which on its spread says something."""

ONE_IN_FIVE = 0.2


@dataclass(frozen=True)
class Spread:
    """How far the paired differences of a contrast lie apart."""

    sd: float
    """Standard deviation, from above."""

    pairs: int
    origin: str
    """The run's folder or name."""


@dataclass(frozen=True)
class Power:
    """What the seeds of one contrast can show."""

    a: str
    b: str
    n: int
    detectable: float
    """The difference that they find with a power of 0.8, in standard deviations."""

    spread: Spread | None
    needed: int | None
    """Seeds that find the smallest difference that matters with a power of 0.8; None where the spread is not known."""

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""
        sd, source = (self.spread.sd, self.spread.origin) if self.spread else (None, None)
        return {
            "a": self.a, "b": self.b, "n": self.n, "sd": sd, "detectable": self.detectable, "needed": self.needed,
            "source": source,
        }  # fmt: skip


def planned(sweep: Sweep) -> Plan:
    """Make the plan of a new run, with as many seeds as the spread of earlier runs asks for. Raises nothing more than
    `plan.make`; reads ledgers, writes none."""
    made = planning.make(sweep)
    if sweep.confirm.seeds != "enough":
        return made
    known = [contrast.spread for contrast in power(made) if contrast.spread]
    widest = max(known, key=lambda spread: spread.sd, default=None)
    return made if widest is None else planning.make(sweep, (widest.sd, widest.origin))


def power(plan: Plan) -> list[Power]:
    """Compute what the seeds of every contrast that is tested can show. Raises nothing; reads ledgers, writes none."""
    from orchestrator.statistics import levels
    from orchestrator.statistics.power import detectable, seeds_to_find

    tested, smallest, seeds = plan.tested, plan.sweep.metric.smallest_difference, len(plan.confirm_seeds)
    if not tested:
        return []
    alpha = levels(len(tested), smallest).difference / len(tested)
    effect, spreads, found = detectable(seeds, alpha), _spreads(), []
    for a, b in tested:
        kinds = {_kind(_job(plan, arm), plan.sweep.metric.name) for arm in (a, b)}
        like = [spread for kind, spread in spreads if kind in kinds and len(kinds) == 1]
        widest = max(like, key=lambda spread: spread.sd, default=None)
        needed = seeds_to_find(smallest / widest.sd, alpha) if widest and smallest > 0 else None
        found.append(Power(a, b, seeds, effect, widest, needed))
    return found


def _job(plan: Plan, arm: str) -> JsonObject:
    return plan.arm(arm).config(stage="confirm", seed=0).model_dump(mode="json")


def _spreads() -> list[tuple[str, Spread]]:
    """Collect the spread of every contrast of an earlier run, and the kind that its trials are of."""
    found: list[tuple[str, Spread]] = []
    for origin, trials in trials_within_reach():
        found += _of_run(origin, [trial for trial in trials if trial.job.get("stage") == "confirm"])
    return found


def _of_run(origin: str, trials: Sequence[Finished]) -> Iterator[tuple[str, Spread]]:
    from scipy.special import chdtri

    by_arm: dict[str, dict[object, Finished]] = {}
    for trial in trials:
        by_arm.setdefault(trial.arm, {})[trial.job.get("seed")] = trial
    for a, b in trials[0].contrasts if trials else ():
        left, right = by_arm.get(a, {}), by_arm.get(b, {})
        pairs = [(left[seed], right[seed]) for seed in left.keys() & right.keys()]
        metric = trials[0].metric
        kinds = {_kind(trial.job, metric) for pair in pairs for trial in pair}
        values = [(x.result.metrics.get(metric), y.result.metrics.get(metric)) for x, y in pairs]
        differences = [x - y for x, y in values if x is not None and y is not None]
        n = len(differences)
        if n >= FEWEST_PAIRS and len(kinds) == 1 and (sd := stdev(differences)) > 0:
            upper = sd * sqrt((n - 1) / float(chdtri(n - 1, 1 - ONE_IN_FIVE)))
            yield kinds.pop(), Spread(upper, n, origin)


def _kind(job: Mapping[str, object], metric: str) -> str:
    """Name what a difference is a difference of: the task, the rows, the metric and the budget."""
    rows = job.get("data")
    sources = [rows.get(key) for key in ("train", "confirm")] if isinstance(rows, dict) else []
    return canonical({"task": job.get("task"), "rows": sources, "metric": metric, "budget": job.get("budget")})
