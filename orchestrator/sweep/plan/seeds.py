"""How many confirm seeds a plan has, and by what they were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from jobs.config import ConfigError, ConfigIssue
from orchestrator.sweep import Sweep
from orchestrator.sweep.model import SeedLooks

REPEATS_AS_UNITS = 6
"""Repeats of the tuning from which on the repeat is the unit of the test: fewer could not reach the level."""


class Basis(TypedDict):
    """How a number of confirm seeds came about. Nothing looks again once a run has begun."""

    rule: Literal["given", "fewest", "enough", "looks"]
    n: int
    """With looks, of the last one."""
    looks: NotRequired[list[int]]
    """How many seeds each look has, where several are planned."""
    sd: NotRequired[float | None]
    """Of paired differences in a run like it, from above; None where there was none."""
    source: NotRequired[str | None]
    needed: NotRequired[int | None]
    """Seeds that find the smallest difference that matters with a power of 0.8."""
    metric: NotRequired[str]
    """Of several, the one that takes most seeds: `sd` and `needed` are of it."""


@dataclass(frozen=True)
class SpreadOf:
    """How far paired differences by a metric lie apart in a run like the one that is planned."""

    sd: float
    source: str
    """The run."""


def family_of(sweep: Sweep, contrasts: int) -> int:
    """Count what is tested together: each of so many contrasts by each metric."""
    return contrasts * len(sweep.metric.every)


def basis_of(sweep: Sweep, contrasts: int, spreads: Mapping[str, SpreadOf]) -> Basis:
    """Choose the number of confirm seeds, and say by what. contrasts: how many are tested. spreads: by metric, as far
    as known. Of several metrics the one that needs most counts; where one is not known, no fewer than without any."""
    from orchestrator.statistics import levels, power  # with scipy, which most verbs do not need

    seeds, tests = sweep.confirm.seeds, family_of(sweep, contrasts)
    if isinstance(seeds, SeedLooks):
        return {"rule": "looks", "n": seeds.looks[-1], "looks": list(seeds.looks)}
    if not isinstance(seeds, str):
        return {"rule": "given", "n": seeds if isinstance(seeds, int) else len(seeds)}
    alpha = levels(tests, max(sweep.metric.smallest_differences)).difference
    repeats = sweep.tune.repeats if sweep.tune else 1
    if seeds == "fewest":
        return {"rule": "fewest", "n": _whole(power.fewest_seeds(alpha), repeats)}
    asked = [metric for metric in sweep.metric.every if metric.smallest_difference > 0]
    known = [metric for metric in asked if metric.name in spreads]
    if not known or repeats >= REPEATS_AS_UNITS:  # the spread is known of single seeds
        count = _whole(power.enough_seeds(None), repeats)
        return {"rule": "enough", "n": count, "sd": None, "source": None, "needed": None}
    most = min(known, key=lambda metric: metric.smallest_difference / spreads[metric.name].sd)
    spread = spreads[most.name]
    needed = power.seeds_to_find(most.smallest_difference / spread.sd, alpha, max(tests, 1))
    chosen = power.enough_seeds(needed or power.MOST)
    count = _whole(chosen if len(known) == len(asked) else max(chosen, power.enough_seeds(None)), repeats)
    basis: Basis = {"rule": "enough", "n": count, "sd": spread.sd, "source": spread.source, "needed": needed}
    return basis | {"metric": most.name} if sweep.metric.also else basis


def _whole(count: int, repeats: int) -> int:
    """Return the next multiple, as each repeat of the tuning has as many seeds; the one below where that is more than a
    word gives."""
    from orchestrator.statistics.power import MOST_CHOSEN

    above = -(-count // repeats) * repeats
    return above if above <= MOST_CHOSEN else max(MOST_CHOSEN // repeats, 1) * repeats


def tune_seeds(sweep: Sweep) -> tuple[int, ...]:
    """List the seeds that are tuned on: those given, and for each further repeat of the tuning as many fresh ones, so
    that a setting that two repeats try is trained anew."""
    if sweep.tune is None:
        return ()
    given, confirmed = sweep.tune.seed_list, sweep.confirm.seeds
    first = max([*given, *(confirmed if isinstance(confirmed, list) else ())], default=-1) + 1
    return (*given, *range(first, first + len(given) * (sweep.tune.repeats - 1)))


def confirm_seeds(sweep: Sweep, tuned: Sequence[int], count: int) -> tuple[int, ...]:
    """List the confirm seeds: those given, or `count` fresh ones after those that are tuned on."""
    if isinstance(sweep.confirm.seeds, list):
        return tuple(sweep.confirm.seeds)
    first = max(tuned, default=-1) + 1
    return tuple(range(first, first + count))


def check_looks(sweep: Sweep, contrasts: int) -> None:
    """Check that the looks of a sweep make a test of so many contrasts, by all of its metrics. Raises ConfigError."""
    from orchestrator.statistics import levels
    from orchestrator.statistics.looks import refusal

    seeds = sweep.confirm.seeds
    if not isinstance(seeds, SeedLooks):
        return
    level = levels(family_of(sweep, contrasts), max(sweep.metric.smallest_differences)).difference
    why = refusal(seeds.looks, level)
    if why is not None:
        raise ConfigError(sweep.name, "sweep", [ConfigIssue("confirm.seeds.looks", repr(seeds.looks), why)])
