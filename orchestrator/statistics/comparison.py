"""The verdict of every contrast of a sweep.

Every contrast is judged on paired differences, one per seed: both arms start from the same seed, so what the seed
brings is subtracted. Three questions are asked of the differences d, in this order:

1. Is the difference too small to matter? Two one-sided t tests against +-smallest_difference (Schuirmann 1987),
   adjusted over the contrasts by Holm (1979).
2. Is there a difference? One exact sign-flip test of all contrasts at once (joint.py): without differences, the
   differences of a seed could as well all have the other sign.
3. Else we do not know: `inconclusive` is an answer.

A sweep as a whole makes a wrong claim with a chance of at most 0.05: 0.04 for better or worse and 0.01 for equivalent,
or 0.05 for either where there is one contrast, which cannot be wrong in both ways, or where no smallest difference was
declared, so that nothing can be equivalent. Any wrong claim as measured: 0.030 to 0.048 (0.05 for each would give 0.06
to 0.09).

Divergence is never a value, as an encoder that was destroyed is no worse or better one. A pair in which one side
diverged enters the sign-flip test as the largest difference of its contrast, against the side that diverged: exact, as
the size depends on no sign. There is no mean of such differences. An arm that diverged in at least half of its seeds,
or that no setting could train, is not compared at all: `diverges`.

Arms that differ in nothing but how they are computed are one method: between them there is nothing to test.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from orchestrator.statistics.intervals import bca_interval, t_interval
from orchestrator.statistics.joint import difference_interval, joint_test
from orchestrator.statistics.numbers import TIE, Interval, Mode
from orchestrator.statistics.power import seeds_to_exclude, seeds_to_find
from orchestrator.statistics.tests import equivalence_p, holm, sign_flip_p

ALPHA = 0.05
"""Chance of a wrong claim that is accepted, over all contrasts of a sweep."""

DIVIDED = (0.04, 0.01)
"""How it is divided between better or worse, and equivalent, where a sweep could be wrong in both ways."""

Verdict = Literal["equivalent", "a_better", "b_better", "inconclusive", "diverges"]


@dataclass(frozen=True)
class Pair:
    """Both sides of one seed."""

    seed: int
    difference: float
    """a - b as it enters the test."""

    diverged: Literal["", "a", "b", "both"] = ""
    """Which sides did; the difference is then no measured one."""


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
    """Two one-sided t tests against +-smallest_difference, the larger p of the two. 1 where a side diverged."""

    p_equivalence_holm: float | None
    """The same adjusted by Holm, which decides whether the arms are equivalent."""

    complete: bool
    """Every planned seed has ended in both arms. If not, the verdict is `inconclusive`."""

    diverged_arms: tuple[str, ...]
    """Those that diverged in at least half of their ended seeds, or that could not be trained at all."""

    same_objective: bool
    """The arms differ in nothing but `execution`."""

    verdict: Verdict
    needed: int | None
    """Of an inconclusive contrast: seeds that would tell the smallest difference that matters from none with a power of
    0.8, at the spread that was seen; None where that is not known, or beyond counting."""

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
class Divergence:
    """What diverged in a run, beside the values of what trained."""

    seeds: Mapping[str, Collection[int]] = field(default_factory=dict)
    """arm -> confirm seeds that diverged."""

    unconfirmed: Collection[str] = ()
    """Arms that have no confirm trial, because every setting that was tried diverged or failed, and one diverged."""


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
    values: Mapping[str, Mapping[int, float]],
    contrasts: Sequence[tuple[str, str]],
    *,
    seeds: Sequence[int] | Mapping[tuple[str, str], Sequence[int]],
    mode: Mode = "max",
    smallest_difference: float = 0.0,
    divergence: Divergence = Divergence(),
    same_objective: Collection[tuple[str, str]] = (),
    pending: bool = False,
    resamples: int = 9_999,
) -> list[Comparison]:
    """Judge every contrast (a, b) on the seeds that have ended in both arms, in the order given.

    values: arm -> seed -> final metric of what trained. divergence: what did not. same_objective: contrasts of arms
    that differ in `execution` alone: nothing is tested, they are equivalent by construction.
    pending: trials of the family are still to come. Then nothing is better or worse: a comparison without its pairs
    takes nothing from the joint test, which would ask less of the others now than at the end.
    seeds: the planned ones, of all contrasts or of each. Where an arm lacks a seed (lost, or not yet run), its
    contrasts are shown on what there is and are `inconclusive`, and they still count in the levels and for Holm.
    Raises ValueError for a metric that is not finite.
    """
    planned = seeds if isinstance(seeds, Mapping) else dict.fromkeys(contrasts, seeds)
    paired = {contrast: _paired(values, divergence, contrast, planned[contrast], mode) for contrast in contrasts}
    family = [
        contrast
        for contrast in contrasts
        if contrast not in same_objective and not set(contrast) & set(divergence.unconfirmed)
    ]
    alpha = levels(len(family), smallest_difference)
    alone = {contrast: sign_flip_p([pair.difference for pair in paired[contrast]]) for contrast in family}
    by_holm = dict(zip(family, holm(list(alone.values())), strict=True))
    differs = _differs({contrast: paired[contrast] for contrast in family}, alpha.difference)
    equals = _equals({contrast: paired[contrast] for contrast in family}, alpha.equivalence, smallest_difference)
    comparisons = []
    for contrast in contrasts:
        pairs = paired[contrast]
        trained = [pair.difference for pair in pairs if not pair.diverged]
        whole = len(trained) == len(pairs)
        fallen = tuple(arm for arm in contrast if _has_diverged(arm, planned[contrast], values, divergence))
        complete = len(pairs) == len(planned[contrast]) > 0 or bool(set(contrast) & set(divergence.unconfirmed))
        delta = float(np.mean(trained)) if trained else None
        verdict: Verdict = "inconclusive"
        if fallen:
            verdict = "diverges"
        elif complete and (contrast in same_objective or (contrast in family and equals[contrast].rejected)):
            verdict = "equivalent"
        elif complete and not pending and contrast in family and differs[contrast].rejected:
            verdict = "a_better" if (sum(p.difference for p in pairs) > 0) == (mode == "max") else "b_better"
        is_equal = verdict == "equivalent" and contrast in family
        judged = (equals if is_equal else differs).get(contrast)
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
                p=alone.get(contrast),
                p_adjusted=differs[contrast].p if contrast in family else None,
                p_holm=by_holm.get(contrast),
                p_equivalence=equals[contrast].p_alone if contrast in family else None,
                p_equivalence_holm=equals[contrast].p if contrast in family else None,
                complete=complete,
                diverged_arms=fallen,
                same_objective=contrast in same_objective,
                verdict=verdict,
                needed=_needed(trained, len(family), smallest_difference)
                if verdict == "inconclusive" and contrast in family and whole
                else None,
            )
        )
    return comparisons


def _paired(
    values: Mapping[str, Mapping[int, float]],
    divergence: Divergence,
    contrast: tuple[str, str],
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


@dataclass(frozen=True)
class _Judged:
    """What one of the two questions says of one contrast."""

    p_alone: float
    p: float
    rejected: bool
    interval: Interval | None


Contrast = tuple[str, str]


def _differs(paired: Mapping[Contrast, Sequence[Pair]], alpha: float) -> dict[Contrast, _Judged]:
    """Ask all contrasts at once whether there is a difference. An absent pair is 0."""
    rows = list(dict.fromkeys(pair.seed for pairs in paired.values() for pair in pairs))
    differences, there = np.zeros((len(rows), len(paired))), np.zeros((len(rows), len(paired)), dtype=bool)
    for column, pairs in enumerate(paired.values()):
        for pair in pairs:
            row = rows.index(pair.seed)
            differences[row, column], there[row, column] = pair.difference, True
    judged = {}
    for column, (contrast, joint) in enumerate(zip(paired, joint_test(differences, alpha), strict=True)):
        ends = difference_interval(differences[:, column], there[:, column], joint) if rows else None
        judged[contrast] = _Judged(joint.p, joint.p, joint.rejected, ends)
    return judged


def _equals(
    paired: Mapping[Contrast, Sequence[Pair]], alpha: float, smallest_difference: float
) -> dict[Contrast, _Judged]:
    """Ask each contrast whether its difference is too small to matter. With a side that diverged it never is."""
    alone = {
        contrast: 1.0
        if any(pair.diverged for pair in pairs)
        else equivalence_p([pair.difference for pair in pairs], smallest_difference)
        for contrast, pairs in paired.items()
    }
    adjusted = dict(zip(alone, holm(list(alone.values())), strict=True))
    ranks = {contrast: rank for rank, contrast in enumerate(sorted(alone, key=lambda contrast: alone[contrast]))}
    judged = {}
    for contrast, pairs in paired.items():
        level = 1 - 2 * alpha / (len(paired) - ranks[contrast])
        ends = t_interval([pair.difference for pair in pairs], level=level)
        judged[contrast] = _Judged(alone[contrast], adjusted[contrast], adjusted[contrast] <= alpha, ends)
    return judged


def _needed(differences: Sequence[float], contrasts: int, smallest_difference: float) -> int | None:
    """Find how many seeds find a difference that matters, or exclude it where there is none, whichever takes more.
    Never by the difference that was seen: that would be too few where it is large by chance."""
    spread = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    if smallest_difference <= 0 or spread <= 0:
        return None
    alpha, effect = levels(contrasts, smallest_difference), smallest_difference / spread
    find = seeds_to_find(effect, alpha.difference, contrasts)
    exclude = seeds_to_exclude(effect, alpha.equivalence / contrasts)
    return None if find is None or exclude is None else max(find, exclude)


def _difference(contrast: Contrast, seed: int, a: float, b: float) -> float:
    """Return a - b; 0 where it is rounding. Raises ValueError where it is beyond what a float holds."""
    difference = float(a - b)
    if not np.isfinite(difference):
        raise ValueError(f"arms {contrast[0]!r} and {contrast[1]!r}, seed {seed}: {a} - {b} is no finite number")
    return 0.0 if abs(difference) <= TIE * max(abs(a), abs(b)) else difference


def _has_diverged(
    arm: str, seeds: Sequence[int], values: Mapping[str, Mapping[int, float]], divergence: Divergence
) -> bool:
    lost = set(seeds) & set(divergence.seeds.get(arm, ()))
    ended = lost | (set(seeds) & set(values.get(arm, {})))
    return arm in divergence.unconfirmed or (bool(lost) and 2 * len(lost) >= len(ended))
