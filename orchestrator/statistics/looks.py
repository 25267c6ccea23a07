"""Seeds until the question is settled: looks that were planned, what each decides, and whether another follows.

A look is taken when all its seeds have ended in every arm that trains on, so nothing depends on which of them ended
first: the course is a function of the values. Each look asks, in this order:

1. Which open contrasts are equivalent? Two one-sided t tests, Holm over all contrasts, at alpha_E / K of K looks.
2. Which differ? The joint test at this look (joint.py), of all contrasts that have not been found to differ. Only this
   ends the seeds of a contrast: to drop those that seem to lose would break the level (false verdicts of 0.075 for
   three contrasts, 0.101 for seven). An arm trains on while one of its contrasts does, so a baseline until the last.
3. Does a further look help? The sweep stops when nothing is open, or when every open contrast is futile: of DRAWN
   continuations to the last look, by what is known of its mean and spread (normal differences, the usual prior), fewer
   than HOPE come to a verdict. To stop for that is no claim.

By several metrics a contrast is as many questions, all of one family, and its arms train on while one of them does.
What a look has decided stays, whatever later looks would say. A seed that was lost when a look was taken is recorded
with it, and stays lost: by a retry that has the look judged anew a person could have it judged twice.

Source: the level is spent over the looks as by Lan and DeMets (1983), in joint.py. Assumption: as there and for
`equivalence_p`; and how many looks there are, and at which seeds, was fixed before the first value was seen. For 3.
alone, by which nothing is claimed: normal differences.

Error rates as measured by `make bench ONLY=statistics`, at 7, 10 and 14 seeds (4,000 sweeps of one contrast, 2,000 of
three and seven): 0.052, 0.055, 0.051 without differences at 0.05; 0.037 with any wrong claim where a part of the
contrasts differs by as much as matters. To test by hand at 6, 9 and 12 seeds is wrong in 0.087.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy import special

from orchestrator.statistics.joint import spent
from orchestrator.statistics.judging import Judged, askable, differs, equals
from orchestrator.statistics.numbers import TIE, Floats, in_unit, scaled
from orchestrator.statistics.pairing import (
    Contrast,
    Divergence,
    Measure,
    Pair,
    Question,
    Values,
    has_diverged,
    paired,
    tested,
)
from orchestrator.statistics.power import smallest_p

DRAWN = 300
"""Continuations by which it is judged whether more seeds help."""

HOPE = 0.10
"""Share of them that must come to a verdict."""

Claim = Literal["", "differs", "equivalent"]
Ended = Literal["", "settled", "futile", "last"]
"""Why no further look follows: nothing is open, no seeds would help, there are no more; empty while one follows."""


@dataclass(frozen=True)
class Standing:
    """How a contrast stands by a metric: as of the look that decided it, or as of the last one taken."""

    look: int
    """Counted from 1; 0 while none has been taken, and then the numbers are of what there is."""

    seeds: int
    """Of the planned ones, the first so many."""

    differs: Judged
    equals: Judged
    claim: Claim
    has_left: bool = False
    """It was found to differ: it is out of the family, and asks for no more seeds."""


@dataclass(frozen=True)
class Course:
    """How far the looks of a sweep have come."""

    taken: int
    standing: Mapping[Question, Standing]
    """Of the contrasts that are tested, by each metric."""

    due: Mapping[str, int]
    """arm -> how many of the planned seeds it trains, as far as is known."""

    ended: Ended


@dataclass(frozen=True)
class Looks:
    """Looks as they were planned."""

    counts: Sequence[int]
    """Seeds of each, increasing."""

    seeds: Sequence[int]
    """All of them, in the planned order: each look has the first so many."""

    alpha: tuple[float, float]
    """Chance of a wrong claim, over all contrasts, metrics and looks: of a difference, of equivalence."""

    measures: Sequence[Measure] = (Measure(),)
    """The metrics, by each of which every contrast is judged."""


@dataclass(frozen=True)
class Trained:
    """What is known of a sweep's confirm trials."""

    values: Values
    """By the first metric."""
    divergence: Divergence = field(default_factory=Divergence)
    lost: Mapping[str, Collection[int]] = field(default_factory=dict)
    """arm -> seeds that ended without a value, and not because they diverged."""
    further: Mapping[str, Values] = field(default_factory=dict)
    """By name of each further metric: the values of the same trials."""

    def by(self, metric: str) -> Values:
        """Return the values by a metric."""
        return self.further.get(metric, self.values)

    def has_ended(self, arm: str, seeds: Sequence[int]) -> bool:
        """Return whether an arm has ended all of these seeds, or never will train any."""
        ended = (self.values.get(arm, {}), self.divergence.seeds.get(arm, ()), self.lost.get(arm, ()))
        return arm in self.divergence.unconfirmed or all(any(seed in part for part in ended) for seed in seeds)


def course(
    trained: Trained, contrasts: Sequence[Contrast], planned: Looks, *, same_objective: Collection[Contrast] = ()
) -> Course:
    """Follow the looks as far as the trials have come.

    contrasts: all, of which those of one objective, and of arms that cannot be trained, are not tested.
    """
    family = [
        Question(contrast, measure.name)
        for measure in planned.measures
        for contrast in tested(contrasts, trained.divergence, same_objective)
    ]
    looks, seeds = planned.counts, planned.seeds
    due = {arm: looks[0] for contrast in contrasts for arm in contrast}
    course = Course(0, _unlooked(_paired(trained, family, planned, looks[0]), planned), due, "")
    for number, count in enumerate(looks, 1):
        active = _active(course, contrasts, family, same_objective)
        due = {arm: count if arm in active else until for arm, until in course.due.items()}
        course = replace(course, due=due)
        if not all(trained.has_ended(arm, seeds[:count]) for arm in active):
            return course
        pairs = _paired(trained, family, planned, count)
        standing = _look(pairs, course.standing, number, planned)
        open_ = [
            asked
            for asked in family
            if not standing[asked].claim
            and len(pairs[asked]) == count
            and not any(has_diverged(arm, seeds[:count], trained.values, trained.divergence) for arm in asked.contrast)
        ]
        ended: Ended = ""
        if not open_:
            ended = "settled"
        elif number == len(looks):
            ended = "last"
        elif all(
            _is_futile(pairs[asked], planned, asked, family, f"{list(contrasts)} {number} {_named(asked, planned)}")
            for asked in open_
        ):
            ended = "futile"
        course = Course(number, standing, due, ended)
        if ended:
            return course
    return course


def refusal(looks: Sequence[int], alpha: float) -> str | None:
    """Explain why looks at so many seeds can reject nothing at the first at this level; None where they can. looks: two
    or more numbers that increase, EXACT_UP_TO at most."""
    if smallest_p(looks[0]) <= spent(alpha, looks)[0]:
        return None
    able = (n for n in range(2, looks[1]) if smallest_p(n) <= spent(alpha, [n, *looks[1:]])[0])
    fewest = next(able, None)
    if fewest is not None:
        return f"a first look at {looks[0]} seeds can reject nothing; the fewest that can before {looks[1]} is {fewest}"
    more = next(n for n in itertools.count(2) if smallest_p(n) <= spent(alpha, [n, n + 3, n + 7])[0])
    return f"a first look at {looks[0]} seeds can reject nothing; use for example [{more}, {more + 3}, {more + 7}]"


def _paired(trained: Trained, family: Sequence[Question], planned: Looks, count: int) -> dict[Question, list[Pair]]:
    """Build the pairs of the first so many seeds."""
    seeds, modes = planned.seeds[:count], {measure.name: measure.mode for measure in planned.measures}
    return {
        asked: paired(trained.by(asked.metric), trained.divergence, asked.contrast, seeds, modes[asked.metric])
        for asked in family
    }


def _smallest(family: Iterable[Question], planned: Looks) -> dict[Question, float]:
    """Map each question to the smallest difference that matters by its metric."""
    own = {measure.name: measure.smallest_difference for measure in planned.measures}
    return {asked: own[asked.metric] for asked in family}


def _named(asked: Question, planned: Looks) -> tuple[str, ...]:
    """Name a question for what is drawn of it: by the first metric as its contrast alone, whatever that is called."""
    return asked.contrast if asked.metric == planned.measures[0].name else (*asked.contrast, asked.metric)


def _active(
    course: Course,
    contrasts: Sequence[Contrast],
    family: Sequence[Question],
    same_objective: Collection[Contrast],
) -> set[str]:
    """Find the arms that train to the next look: of every contrast that has not been found to differ by every metric,
    and those that share the objective of such an arm. To the first look, all."""
    if not course.taken:
        return {arm for contrast in contrasts for arm in contrast}
    active = {arm for asked in family if not course.standing[asked].has_left for arm in asked.contrast}
    return active | {arm for c in same_objective if active & set(c) for arm in c}


def _unlooked(pairs: Mapping[Question, Sequence[Pair]], planned: Looks) -> dict[Question, Standing]:
    """Judge, for a reader, what there is before the first look; nothing is claimed."""
    apart = differs(pairs, planned.alpha[0])
    alike = equals(pairs, planned.alpha[1], _smallest(pairs, planned), looks=len(planned.counts))
    return {c: Standing(0, planned.counts[0], apart[c], alike[c], "") for c in pairs}


def _look(
    pairs: Mapping[Question, Sequence[Pair]], before: Mapping[Question, Standing], number: int, planned: Looks
) -> dict[Question, Standing]:
    """Take one look. Of a contrast that lacks a pair nothing is claimed."""
    looks, count = planned.counts, planned.counts[number - 1]
    left = [c for c in pairs if before[c].has_left]
    asked = {c: own for c, own in pairs.items() if c not in left}
    alike = equals(pairs, planned.alpha[1], _smallest(pairs, planned), looks=len(looks), settled=left)
    apart = differs(asked, planned.alpha[0], seeds=planned.seeds[:count], looks=looks, taken=number)
    after = {}
    for contrast, was in before.items():
        if was.has_left:
            after[contrast] = was
            continue
        is_whole = len(pairs[contrast]) == count
        leaves = is_whole and apart[contrast].rejected
        if was.claim:
            after[contrast] = replace(was, has_left=leaves)
            continue
        claim: Claim = ""
        if is_whole and alike[contrast].rejected:
            claim = "equivalent"
        elif leaves:
            claim = "differs"
        after[contrast] = Standing(number, count, apart[contrast], alike[contrast], claim, leaves)
    return after


def _is_futile(pairs: Sequence[Pair], planned: Looks, asked: Question, family: Sequence[Question], key: str) -> bool:
    """Return whether the rest of the planned seeds would hardly bring a verdict. key: what the draws follow from,
    beside the plan."""
    of_each = _smallest(family, planned)
    d, exponent = scaled(np.array([pair.difference for pair in pairs]))
    n, last, smallest = len(d), planned.counts[-1], in_unit(of_each[asked], -exponent)
    seed = hashlib.sha256(f"{list(planned.seeds)} {list(planned.counts)} {key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:8]))
    spread = float(d.std(ddof=1)) * np.sqrt((n - 1) / rng.chisquare(n - 1, size=(DRAWN, 1)))
    centre = float(d.mean()) + spread / math.sqrt(n) * rng.standard_normal((DRAWN, 1))
    further: Floats = centre + spread * rng.standard_normal((DRAWN, last - n))
    means = (d.sum() + further.sum(1)) / last
    squares = ((d - means[:, None]) ** 2).sum(1) + ((further - means[:, None]) ** 2).sum(1)
    least = TIE * float(np.abs(d).max(initial=0.0)) + np.finfo(float).tiny  # of equal differences there is no spread
    errors = np.maximum(np.sqrt(squares / (last - 1) / last), least)
    found = np.abs(means) / errors >= special.stdtrit(last - 1, 1 - planned.alpha[0] / (2 * len(family)))
    level = 1 - planned.alpha[1] / (len(planned.counts) * len(askable(of_each)))
    equal = (smallest > 0) & ((smallest - np.abs(means)) / errors >= special.stdtrit(last - 1, level))
    return bool(np.mean(found | equal) < HOPE)
