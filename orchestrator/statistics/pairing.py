"""Pairs of a contrast, one for each seed that both arms have ended, and what of them diverged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from orchestrator.statistics.numbers import TIE, Mode

Contrast = tuple[str, str]
"""(a, b): arm a against its baseline b."""

Values = Mapping[str, Mapping[int, float]]
"""arm -> seed -> final metric of what trained."""


@dataclass(frozen=True)
class Measure:
    """A metric by which contrasts are judged."""

    name: str = ""
    mode: Mode = "max"
    smallest_difference: float = 0.0
    """The smallest difference worth having; 0: nothing is equivalent by it."""


class Question(NamedTuple):
    """A contrast by one metric: what the joint test has a column of."""

    contrast: Contrast
    metric: str = ""
    """Name of the measure."""


@dataclass(frozen=True)
class Pair:
    """Both sides of one seed."""

    seed: int
    difference: float
    """a - b as it enters the test."""

    diverged: Literal["", "a", "b", "both"] = ""
    """Which sides did; the difference is then no measured one."""


@dataclass(frozen=True)
class Divergence:
    """What diverged in a run, beside the values of what trained."""

    seeds: Mapping[str, Collection[int]] = field(default_factory=dict)
    """arm -> confirm seeds that diverged."""

    unconfirmed: Collection[str] = ()
    """Arms that have no confirm trial, because every setting that was tried diverged or failed, and one diverged."""

    of_seeds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """arm -> how many of its seeds diverged, and how many diverged or trained, where a pair is of several seeds: then
    `seeds` names each pair of which one seed did."""


def tested(
    contrasts: Sequence[Contrast], divergence: Divergence, same_objective: Collection[Contrast]
) -> list[Contrast]:
    """List the contrasts that a test is asked about: not those of one objective, nor of an arm that never trained."""
    return [c for c in contrasts if c not in same_objective and not set(c) & set(divergence.unconfirmed)]


def paired(
    values: Values,
    divergence: Divergence,
    contrast: Contrast,
    seeds: Sequence[int],
    mode: Mode,
) -> list[Pair]:
    """Build the pairs that have ended. A pair with one side that diverged is as far apart as the widest of the others,
    against that side; with both it is 0."""
    a, b = contrast
    left, right = values.get(a, {}), values.get(b, {})
    lost = {side: set(divergence.seeds.get(arm, ())) for side, arm in (("a", a), ("b", b))}
    for arm, own in ((a, left), (b, right)):
        for seed in seeds:
            if seed in own and not np.isfinite(own[seed]):
                raise ValueError(f"arm {arm!r}, seed {seed}: the metric is {own[seed]}; it must be a finite number")
    both = [seed for seed in seeds if seed in left and seed in right and seed not in lost["a"] | lost["b"]]
    measured = {seed: _difference(contrast, seed, left[seed], right[seed]) for seed in both}
    widest = max(map(abs, measured.values()), default=0.0) or 1.0
    against_a = -widest if mode == "max" else widest
    pairs = []
    for seed in seeds:
        if seed in measured:
            pairs.append(Pair(seed, measured[seed]))
        elif seed in lost["a"] and seed in lost["b"]:
            pairs.append(Pair(seed, 0.0, "both"))
        elif seed in lost["a"] and seed in right:
            pairs.append(Pair(seed, against_a, "a"))
        elif seed in lost["b"] and seed in left:
            pairs.append(Pair(seed, -against_a, "b"))
    return pairs


def has_diverged(arm: str, seeds: Sequence[int], values: Values, divergence: Divergence) -> bool:
    """Return whether an arm diverged in at least half of the seeds that it has ended, or could never be trained. A seed
    that failed counts neither way: whether it would have diverged is not known."""
    fallen = set(seeds) & set(divergence.seeds.get(arm, ()))
    ended = fallen | (set(seeds) & set(values.get(arm, {})))
    lost, of = divergence.of_seeds.get(arm, (len(fallen), len(ended)))
    return arm in divergence.unconfirmed or (lost > 0 and 2 * lost >= of)


def _difference(contrast: Contrast, seed: int, a: float, b: float) -> float:
    """Return a - b; 0 where it is rounding. Raises ValueError where it is beyond what a float holds."""
    difference = float(a - b)
    if not np.isfinite(difference):
        raise ValueError(f"arms {contrast[0]!r} and {contrast[1]!r}, seed {seed}: {a} - {b} is no finite number")
    return 0.0 if abs(difference) <= TIE * max(abs(a), abs(b)) else difference
