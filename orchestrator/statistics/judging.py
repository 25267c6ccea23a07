"""The two things that are asked of all contrasts, by all metrics, at once, at one look or several.

Is there a difference: the joint sign-flip test (Westfall and Young 1993). Is it too small to matter: two one-sided t
tests (Schuirmann 1987), by Holm (1979). What each assumes, and how often each is wrong, stands with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from orchestrator.statistics.intervals import t_interval
from orchestrator.statistics.joint import difference_interval, joint_test
from orchestrator.statistics.numbers import Interval
from orchestrator.statistics.pairing import Pair
from orchestrator.statistics.tests import equivalence_p, holm

K = TypeVar("K")
"""What a column of the test is of: a contrast, or a contrast by one of several metrics."""


@dataclass(frozen=True)
class Judged:
    """What one of the two questions says of one contrast."""

    p_alone: float
    p: float
    rejected: bool
    interval: Interval | None


def differs(
    paired: Mapping[K, Sequence[Pair]],
    alpha: float,
    *,
    seeds: Sequence[int] = (),
    looks: Sequence[int] = (),
    taken: int | None = None,
) -> dict[K, Judged]:
    """Ask all contrasts at once whether there is a difference. An absent pair is 0.

    seeds: of the look, in the planned order; none for those that there are pairs of. looks, taken: as `joint_test`.

    Assumption, source and error rates: those of joint.py, of which this is the test; with looks, of looks.py.
    """
    rows = list(seeds) or list(dict.fromkeys(pair.seed for pairs in paired.values() for pair in pairs))
    place = {seed: row for row, seed in enumerate(rows)}
    differences, there = np.zeros((len(rows), len(paired))), np.zeros((len(rows), len(paired)), dtype=bool)
    for column, pairs in enumerate(paired.values()):
        for pair in pairs:
            row = place[pair.seed]
            differences[row, column], there[row, column] = pair.difference, True
    judged = {}
    tested = joint_test(differences, alpha, looks=looks, taken=taken)
    for column, (contrast, joint) in enumerate(zip(paired, tested, strict=True)):
        ends = difference_interval(differences[:, column], there[:, column], joint) if rows else None
        judged[contrast] = Judged(joint.p, joint.p, joint.rejected, ends)
    return judged


def equals(
    paired: Mapping[K, Sequence[Pair]],
    alpha: float,
    smallest_difference: float | Mapping[K, float],
    *,
    looks: int = 1,
    settled: Collection[K] = (),
) -> dict[K, Judged]:
    """Ask each contrast whether its difference is too small to matter. With a side that diverged it never is.

    smallest_difference: of all, or of each. Where some have none, these are not asked and take nothing from the
    others. looks: how often this is asked in all, each time at a share of the level: p is so many times as large.
    settled: contrasts that were decided before, which are not asked again and count with p = 1.

    Assumption and source: those of `equivalence_p` and `holm`. Any is called equivalent at 0.05 where each of 2, 3 or 7
    contrasts differs by the smallest difference that matters (4,000 sweeps of 8 seeds, normal arms that share a
    baseline): in 0.042, 0.044 and 0.038.
    """
    own = (
        smallest_difference if isinstance(smallest_difference, Mapping) else dict.fromkeys(paired, smallest_difference)
    )
    alone = {
        contrast: 1.0
        if contrast in settled or any(pair.diverged for pair in pairs)
        else equivalence_p([pair.difference for pair in pairs], own[contrast])
        for contrast, pairs in paired.items()
    }
    asked = {contrast: alone[contrast] for contrast in askable(own)}
    adjusted = {contrast: min(1.0, looks * p) for contrast, p in zip(asked, holm(list(asked.values())), strict=True)}
    ranks = {contrast: rank for rank, contrast in enumerate(sorted(asked, key=lambda contrast: asked[contrast]))}
    judged = {}
    for contrast, pairs in paired.items():
        if contrast not in asked:
            judged[contrast] = Judged(alone[contrast], 1.0, rejected=False, interval=None)
            continue
        level = 1 - 2 * alpha / (looks * (len(asked) - ranks[contrast]))
        ends = t_interval([pair.difference for pair in pairs], level=level)
        judged[contrast] = Judged(alone[contrast], adjusted[contrast], adjusted[contrast] <= alpha, ends)
    return judged


def askable(smallest_difference: Mapping[K, float]) -> list[K]:
    """List what can be asked whether its difference is too small to matter: where a smallest difference was declared;
    all where none was."""
    return [contrast for contrast, own in smallest_difference.items() if own > 0] or list(smallest_difference)
