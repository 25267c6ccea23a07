"""How a search went."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.statistics.numbers import Floats, Mode


def best_so_far(values: ArrayLike, *, mode: Mode) -> tuple[Floats, Floats, Floats]:
    """Compute how the best setting improved over the suggestions of a search.

    values [n, s]: suggestion by tune seed, NaN where a trial has no final value; a suggestion counts when all its
    seeds have one. Returns the mean, the lowest and the highest value over the seeds, each [n], of the best setting
    among the first k suggestions; NaN until there is one.
    """
    table = np.asarray(values, dtype=np.float64)
    means = table.mean(axis=1)
    curve = np.full((3, len(table)), np.nan)
    best: int | None = None
    for k, mean in enumerate(means):
        if np.isfinite(mean) and (best is None or (mean > means[best] if mode == "max" else mean < means[best])):
            best = k
        if best is not None:
            curve[:, k] = means[best], table[best].min(), table[best].max()
    return curve[0], curve[1], curve[2]
