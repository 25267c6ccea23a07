"""The verdict of every contrast of a sweep.

Every contrast is judged on paired differences, one per seed: both arms start from the same seed, so what the seed
brings is subtracted. Three questions are asked of the differences d, in this order:

1. Is the difference too small to matter? Two one-sided t tests against +-smallest_difference (Schuirmann 1987),
   adjusted over the contrasts by Holm (1979).
2. Is there a difference? One exact sign-flip test of all contrasts at once (joint.py): without differences, the
   differences of a seed could as well all have the other sign.
3. Else we do not know: `inconclusive` is an answer.

By several metrics a contrast is as many questions: the differences of a seed by all metrics flip together, so all
contrasts by all metrics are one family, and what follows of contrasts holds of these. Whether a difference is too small
to matter is asked by the metrics that declare a smallest difference.

A sweep as a whole makes a wrong claim with a chance of at most 0.05: 0.04 for better or worse and 0.01 for equivalent,
or 0.05 for either where there is one contrast, which cannot be wrong in both ways, or where no smallest difference was
declared, so that nothing can be equivalent. Any wrong claim as measured by `make bench ONLY=statistics` (2,000 sweeps
of each of six truths; m = 2, 3, 7, n = 6, 8, 12): at the worst 0.030 to 0.044; 0.05 for each would give 0.041 to 0.065.

Assumption: a seed's vector of differences between arms that do not differ is symmetric about 0, for the test of a
difference (joint.py); differences are normal, for equivalence (`equivalence_p`); and what a seed brings to one pair it
brings to no other.

Divergence is never a value, as an encoder that was destroyed is no worse or better one. A pair in which one side
diverged enters the sign-flip test as the largest difference of its contrast, against the side that diverged: exact, as
the size depends on no sign. There is no mean of such differences. An arm that diverged in at least half of its seeds,
or that no setting could train, is not compared at all: `diverges`.

Arms that differ in nothing but how they are computed are one method: between them there is nothing to test.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.statistics.intervals import bca_interval, t_interval
from orchestrator.statistics.judging import askable, differs, equals
from orchestrator.statistics.looks import Course
from orchestrator.statistics.numbers import Interval, Mode, deviation, vector
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
from orchestrator.statistics.power import seeds_to_exclude, seeds_to_find
from orchestrator.statistics.tests import holm, sign_flip_p

ALPHA = 0.05
"""Chance of a wrong claim that is accepted, over all contrasts of a sweep."""

DIVIDED = (0.04, 0.01)
"""How it is divided between better or worse, and equivalent, where a sweep could be wrong in both ways."""

NOTHING = Divergence()
"""Nothing diverged."""

Verdict = Literal["equivalent", "a_better", "b_better", "inconclusive", "diverges"]


@dataclass(frozen=True)
class Comparison:
    """What one contrast says. All differences are a - b in units of the metric, whichever direction is better."""

    a: str
    b: str
    pairs: tuple[Pair, ...]
    """Of the seeds that have ended in both arms, in the planned order."""

    delta: float | None
    """Mean difference; None without any, and where a side diverged."""

    delta_trained: float | None
    """Mean over the pairs in which both sides trained, which describes and decides nothing."""

    n_trained: int
    ci95: Interval | None
    """95% t interval of the mean difference where both sides trained; None below two seeds."""

    ci95_bca: Interval | None
    """The same by BCa bootstrap, which does not assume a normal distribution and is too narrow at few seeds."""

    ci90: Interval | None
    """90% t interval: inside +-smallest_difference is what equivalence asks of a single contrast."""

    interval: Interval | None
    """What is printed beside the verdict. Of a difference, 0 lies outside if and only if the joint test rejects; of an
    equivalence, the t interval at the level that decided. None where a side diverged, where nothing is tested, and
    where these seeds could reject nothing."""

    interval_kind: Literal["difference", "equivalence"]
    p: float | None
    """Sign-flip test of this contrast alone, two-sided, which decides nothing. None where nothing is tested: an arm
    that was never confirmed, or one objective."""

    p_adjusted: float | None
    """Of the joint test of all contrasts, which decides between better, worse and neither."""

    p_holm: float | None
    """`p` adjusted by Holm, as the first versions judged; decides nothing."""
    p_equivalence: float | None
    """Two one-sided t tests against +-smallest_difference, the larger p of the two. None where a side diverged."""

    p_equivalence_holm: float | None
    """The same adjusted by Holm, which decides whether the arms are equivalent. Of a contrast with a side that
    diverged p counts as 1."""

    complete: bool
    """Every planned seed has ended in both arms. If not, the verdict is `inconclusive`."""

    diverged_arms: tuple[str, ...]
    """Those that diverged in at least half of the seeds that they ended, failed ones left aside, or that could not be
    trained at all."""

    same_objective: bool
    """The arms differ in nothing but `execution`."""

    verdict: Verdict
    look: int | None
    """The look that decided, or the last one taken, counted from 1; 0 before the first; None where none were planned,
    and of contrasts that are not tested."""

    needed: int | None
    """Of an inconclusive contrast: seeds that would tell the smallest difference that matters from none with a power of
    0.8, at the spread that was seen; None where that is not known, or beyond counting, and while trials of the family
    are still to come."""

    metric: str = ""
    """By which the contrast is judged, where it is judged by several; else empty."""

    @property
    def n(self) -> int:
        """Pairs, those with a side that diverged included."""
        return len(self.pairs)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the pairs."""
        return tuple(pair.seed for pair in self.pairs)

    def diverged(self, side: Literal["a", "b", "both"]) -> int:
        """Count the pairs where this side alone diverged, or both did."""
        return sum(pair.diverged == side for pair in self.pairs)


@dataclass(frozen=True)
class Alpha:
    """Chance of a wrong claim that is accepted, over all contrasts: of better or worse, and of equivalent."""

    difference: float
    equivalence: float


def levels(contrasts: int, smallest_difference: float) -> Alpha:
    """Return at which levels so many contrasts are judged. A sweep is wrong at most once in twenty."""
    if contrasts <= 1 or smallest_difference <= 0:
        return Alpha(ALPHA, ALPHA)
    return Alpha(*DIVIDED)


def compare(
    values: Values,
    contrasts: Sequence[Contrast],
    *,
    seeds: Sequence[int] | Mapping[Contrast, Sequence[int]],
    mode: Mode = "max",
    smallest_difference: float = 0.0,
    divergence: Divergence = NOTHING,
    same_objective: Collection[Contrast] = (),
    pending: bool = False,
    looked: Course | None = None,
    resamples: int = 9_999,
) -> list[Comparison]:
    """Judge every contrast (a, b) by one metric on the seeds that have ended in both arms, in the order given.

    values: arm -> seed -> final metric of what trained. The rest is as of `compare_by`.
    """
    return compare_by(
        {Measure("", mode, smallest_difference): values},
        contrasts,
        seeds=seeds,
        divergence=divergence,
        same_objective=same_objective,
        pending=pending,
        looked=looked,
        resamples=resamples,
    )


def compare_by(
    measured: Mapping[Measure, Values],
    contrasts: Sequence[Contrast],
    *,
    seeds: Sequence[int] | Mapping[Contrast, Sequence[int]],
    divergence: Divergence = NOTHING,
    same_objective: Collection[Contrast] = (),
    pending: bool = False,
    looked: Course | None = None,
    resamples: int = 9_999,
) -> list[Comparison]:
    """Judge every contrast (a, b) by every metric on the seeds that have ended in both arms: metric by metric, and
    within each in the order given.

    measured: metric -> arm -> seed -> final value of what trained. divergence: what did not, which has no value by any
    metric. same_objective: contrasts of arms that differ in `execution` alone: nothing is tested, they are equivalent
    by construction.
    pending: trials of the family are still to come. Then nothing that is tested is claimed: a comparison without its
    pairs takes nothing from the joint test, which would ask less of the others now than at the end, and Holm's
    adjustment would take the p of some pairs for that of all. With `looked` the looks say what may be claimed.
    seeds: the planned ones, of all contrasts or of each. Where an arm lacks a seed (lost, or not yet run), its
    contrasts are shown on what there is and are `inconclusive`, and they still count in the levels and for Holm.
    looked: how far the looks have come, where several were planned: then each contrast is shown as of the look that
    decided it, or the last one taken, whatever has ended since.
    Raises ValueError for a metric that is not finite.
    """
    by_name = {measure.name: (measure, values) for measure, values in measured.items()}
    every = [Question(contrast, name) for name in by_name for contrast in contrasts]
    planned = {asked: seeds[asked.contrast] if isinstance(seeds, Mapping) else seeds for asked in every}
    in_test = tested(contrasts, divergence, same_objective)
    family = [asked for asked in every if asked.contrast in in_test]
    smallest = {asked: by_name[asked.metric][0].smallest_difference for asked in family}
    if looked is not None:
        shown = {
            asked: looked.standing[asked].seeds
            if asked in looked.standing
            else min(looked.due[arm] for arm in asked.contrast)
            for asked in every
        }
        planned = {asked: own[: shown[asked]] for asked, own in planned.items()}
    pairs_of = {
        asked: paired(values, divergence, asked.contrast, planned[asked], measure.mode)
        for asked in every
        for measure, values in (by_name[asked.metric],)
    }
    alpha = levels(len(family), max(smallest.values(), default=0.0))
    alone = {asked: sign_flip_p([pair.difference for pair in pairs_of[asked]]) for asked in family}
    by_holm = dict(zip(family, holm(list(alone.values())), strict=True))
    if looked is None:
        own = {asked: pairs_of[asked] for asked in family}
        apart, alike = differs(own, alpha.difference), equals(own, alpha.equivalence, smallest)
    else:
        apart = {asked: one.differs for asked, one in looked.standing.items()}
        alike = {asked: one.equals for asked, one in looked.standing.items()}
    comparisons = []
    for asked in every:
        contrast, pairs, (measure, values) = asked.contrast, pairs_of[asked], by_name[asked.metric]
        trained = [pair.difference for pair in pairs if not pair.diverged]
        whole = len(trained) == len(pairs)
        fallen = tuple(arm for arm in contrast if has_diverged(arm, planned[asked], values, divergence))
        complete = len(pairs) == len(planned[asked]) > 0 or bool(set(contrast) & set(divergence.unconfirmed))
        may_claim = complete and not pending and asked in smallest
        if looked is not None:
            one = looked.standing.get(asked)
            decided = bool(one and one.claim)
            complete = complete and (decided or bool(looked.ended))
            may_claim = complete and decided and asked in smallest
        delta = float(np.mean(trained)) if trained else None
        verdict: Verdict = "inconclusive"
        if fallen:
            verdict = "diverges"
        elif complete and contrast in same_objective:
            # What one way of computing it alone does not survive is no one method.
            verdict = "inconclusive" if any(pair.diverged in ("a", "b") for pair in pairs) else "equivalent"
        elif may_claim and alike[asked].rejected:
            verdict = "equivalent"
        elif may_claim and apart[asked].rejected:
            verdict = "a_better" if (sum(p.difference for p in pairs) > 0) == (measure.mode == "max") else "b_better"
        is_equal = verdict == "equivalent" and asked in smallest
        judged = (alike if is_equal else apart).get(asked)
        comparisons.append(
            Comparison(
                a=contrast[0],
                b=contrast[1],
                pairs=tuple(pairs),
                delta=delta if whole else None,
                delta_trained=delta,
                n_trained=len(trained),
                ci95=t_interval(trained),
                ci95_bca=bca_interval(trained, resamples=resamples),
                ci90=t_interval(trained, level=0.90) if whole else None,
                interval=judged.interval if judged and whole else None,
                interval_kind="equivalence" if is_equal else "difference",
                p=alone.get(asked),
                p_adjusted=apart[asked].p if asked in smallest else None,
                p_holm=by_holm.get(asked),
                p_equivalence=alike[asked].p_alone if asked in smallest and whole else None,
                p_equivalence_holm=alike[asked].p if asked in smallest else None,
                complete=complete,
                diverged_arms=fallen,
                same_objective=contrast in same_objective,
                verdict=verdict,
                look=None if looked is None or asked not in looked.standing else looked.standing[asked].look,
                needed=_needed(trained, asked, smallest)
                if verdict == "inconclusive" and asked in smallest and whole and not (pending and looked is None)
                else None,
                metric=asked.metric if len(by_name) > 1 else "",
            )
        )
    return comparisons


def _needed(differences: Sequence[float], asked: Question, smallest: Mapping[Question, float]) -> int | None:
    """Find how many seeds find a difference that matters, or exclude it where there is none, whichever takes more.
    Never by the difference that was seen: that would be too few where it is large by chance. smallest: the smallest
    difference that matters of each question of the family."""
    spread = deviation(vector(differences)) if len(differences) > 1 else 0.0
    if smallest[asked] <= 0 or spread <= 0:
        return None
    alpha, effect = levels(len(smallest), smallest[asked]), smallest[asked] / spread
    find = seeds_to_find(effect, alpha.difference, len(smallest))
    exclude = seeds_to_exclude(effect, alpha.equivalence / len(askable(smallest)))
    return None if find is None or exclude is None else max(find, exclude)
