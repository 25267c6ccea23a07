"""How many confirm seeds a plan has, and by what they were chosen."""

from __future__ import annotations

from collections.abc import Sequence
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


def basis_of(sweep: Sweep, contrasts: int, spread: tuple[float, str] | None) -> Basis:
    """Choose the number of confirm seeds, and say by what."""
    from orchestrator.statistics import levels, power  # with scipy, which most verbs do not need

    seeds, smallest = sweep.confirm.seeds, sweep.metric.smallest_difference
    if isinstance(seeds, SeedLooks):
        return {"rule": "looks", "n": seeds.looks[-1], "looks": list(seeds.looks)}
    if not isinstance(seeds, str):
        return {"rule": "given", "n": seeds if isinstance(seeds, int) else len(seeds)}
    alpha, repeats = levels(contrasts, smallest).difference, sweep.tune.repeats if sweep.tune else 1
    if seeds == "fewest":
        return {"rule": "fewest", "n": _whole(power.fewest_seeds(alpha), repeats)}
    if spread is None or smallest == 0 or repeats >= REPEATS_AS_UNITS:  # the spread is known of single seeds
        count = _whole(power.enough_seeds(None), repeats)
        return {"rule": "enough", "n": count, "sd": None, "source": None, "needed": None}
    needed = power.seeds_to_find(smallest / spread[0], alpha, max(contrasts, 1))
    count = _whole(power.enough_seeds(needed or power.MOST), repeats)
    return {"rule": "enough", "n": count, "sd": spread[0], "source": spread[1], "needed": needed}


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
    """Check that the looks of a sweep make a test of so many contrasts. Raises ConfigError."""
    from orchestrator.statistics import levels
    from orchestrator.statistics.looks import refusal

    seeds = sweep.confirm.seeds
    if not isinstance(seeds, SeedLooks):
        return
    why = refusal(seeds.looks, levels(contrasts, sweep.metric.smallest_difference).difference)
    if why is not None:
        raise ConfigError(sweep.name, "sweep", [ConfigIssue("confirm.seeds.looks", repr(seeds.looks), why)])
