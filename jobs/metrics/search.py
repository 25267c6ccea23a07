"""Exact search for the nearest rows, in tiles: the same bits for every tile, every number of ranks, every machine.

A product of two rows is a sum, which rounds otherwise in every order, and a tile's size changes the order. So rows are
rounded first, to steps of 2**-26 of a length near theirs, a little finer than what single precision keeps of a unit
row's entries. Then all that a product adds up is a multiple of 2**-52 of at most 2, which double precision holds
exactly: nothing rounds in any order, equal rows have equal scores, and ties are ties.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.collectives import Group, gather_rows, rank_of, world_of

TILE = 1024
"""Rows of queries and of the corpus that are compared at once: 8 MB of scores."""

STEPS = 2.0**26
"""To a length of 1."""


def top_k(
    queries: Tensor,
    corpus: Tensor,
    k: int,
    *,
    tile: int = TILE,
    ids: Sequence[str] | Sequence[int] | None = None,
    excluded: Tensor | None = None,
    single: bool = False,
    group: Group = None,
) -> tuple[Tensor, Tensor]:
    """Find the k rows of the corpus [m, D] whose product with each query [n, D] is highest; unit rows give cosines.

    ids: of the corpus, [m]; of equal scores the lower id comes first. None: the earlier row. excluded: int64 [e, 2],
    a query and a row of the corpus that is not found for it. single: scores are rounded to single precision before they
    are compared, as trec_eval does, so that what differs by less is a tie. group: every rank has all rows, and searches
    for a share of the queries.

    Returns (scores float64, rows int64), both [n, min(k, m)] and best first, the same on every rank; -inf and -1 where
    a query has fewer rows that are not excluded. Raises ValueError for rows of other widths or that are not finite.
    """
    _refuse(queries, corpus, k)
    order = torch.arange(len(corpus)) if ids is None else torch.from_numpy(np.argsort(np.asarray(ids), kind="stable"))
    order = order.to(corpus.device)
    barred = _Excluded(excluded, order)
    scales = _scale(queries), _scale(corpus)
    rank, world = rank_of(group), world_of(group)
    bounds = [len(queries) * other // world for other in range(world + 1)]
    counts = [high - low for low, high in itertools.pairwise(bounds)]
    width = min(k, len(corpus))
    scores = [torch.empty(0, width, dtype=torch.float64, device=corpus.device)]
    rows = [torch.empty(0, width, dtype=torch.int64, device=corpus.device)]
    for low in range(bounds[rank], bounds[rank + 1], tile):
        high = min(low + tile, bounds[rank + 1])
        asked = _in_steps(queries[low:high], scales[0])
        best, places = asked.new_empty(len(asked), 0), order.new_empty(len(asked), 0)
        for first in range(0, len(corpus), tile):
            known = _in_steps(corpus[order[first : first + tile]], scales[1])
            near = asked @ known.T
            near = barred.without(near.float().double() if single else near, low, first)
            here = torch.arange(first, first + len(known), device=order.device).expand(len(asked), -1)
            best, places = _highest(torch.cat([best, near], 1), torch.cat([places, here], 1), width)
        by_score = best.sort(dim=1, descending=True, stable=True)
        found = order[places.gather(1, by_score.indices)]
        scores.append(by_score.values * (scales[0] * scales[1]))
        rows.append(found.masked_fill(by_score.values == -math.inf, -1))
    return gather_rows(torch.cat(scores), counts, group), gather_rows(torch.cat(rows), counts, group)


def places(queries: Tensor, corpus: Tensor, *, tile: int = TILE, group: Group = None) -> Tensor:
    """Find at which place among all rows of the corpus, from 1, row i comes for query i: int64 [n]. queries, corpus
    [n, D]; of equal scores the earlier row comes first. The same on every rank, and for every tile."""
    _refuse(queries, corpus, 1)
    scales = _scale(queries), _scale(corpus)
    rank, world = rank_of(group), world_of(group)
    bounds = [len(queries) * other // world for other in range(world + 1)]
    counts = [high - low for low, high in itertools.pairwise(bounds)]
    found = [torch.empty(0, dtype=torch.int64, device=corpus.device)]
    for low in range(bounds[rank], bounds[rank + 1], tile):
        high = min(low + tile, bounds[rank + 1])
        asked = _in_steps(queries[low:high], scales[0])
        own = (asked * _in_steps(corpus[low:high], scales[1])).sum(1, keepdim=True)
        rows = torch.arange(low, high, device=corpus.device)[:, None]
        before = torch.zeros(len(asked), dtype=torch.int64, device=corpus.device)
        for first in range(0, len(corpus), tile):
            near = asked @ _in_steps(corpus[first : first + tile], scales[1]).T
            here = torch.arange(first, first + near.shape[1], device=corpus.device)
            before += ((near > own) | ((near == own) & (here < rows))).sum(1)
        found.append(1 + before)
    return gather_rows(torch.cat(found), counts, group)


def each_once(encode: Callable[[Sequence[str]], Tensor], texts: Sequence[str]) -> Tensor:
    """Embed texts [n] to [n, D], equal ones once: in another batch they would differ by rounding, and be no ties."""
    different = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    return encode(list(different))[torch.tensor([different[text] for text in texts], dtype=torch.int64)]


def products(queries: Tensor, corpus: Tensor, pairs: NDArray[np.int64]) -> Tensor:
    """Compute the scores that `top_k` would give these pairs of a query and a row of the corpus, [e, 2]: [e]."""
    scales = _scale(queries), _scale(corpus)
    parts = [queries.new_empty(0, dtype=torch.float64)]
    for some in torch.from_numpy(pairs).to(queries.device).split(TILE):
        parts.append((_in_steps(queries[some[:, 0]], scales[0]) * _in_steps(corpus[some[:, 1]], scales[1])).sum(1))
    return torch.cat(parts) * (scales[0] * scales[1])


def _refuse(queries: Tensor, corpus: Tensor, k: int) -> None:
    """Raise ValueError for what cannot be searched."""
    if k < 1:
        raise ValueError(f"k = {k}; 1 at least")
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} columns, the corpus {corpus.shape[1]}; both are embedded by one encoder"
        )
    for name, rows in (("queries hold", queries), ("the corpus holds", corpus)):
        bad = (~torch.isfinite(rows)).any(1).nonzero()
        if len(bad):
            raise ValueError(f"{name} what is not finite, first in row {int(bad[0])}; has its model diverged?")


def _scale(rows: Tensor) -> float:
    """Return the power of two by which all rows are divided, so that none is longer than 1.25: then no product reaches
    2."""
    longest = max((float(part.double().norm(dim=1).max()) for part in rows.split(TILE) if len(part)), default=1.0)
    return 2.0 ** math.frexp(longest / 1.25)[1] if longest else 1.0


def _in_steps(rows: Tensor, scale: float) -> Tensor:
    """Round rows to multiples of the step, as float64."""
    return (rows.double() * (STEPS / scale)).round() / STEPS


def _highest(scores: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Keep the `count` highest of each row, in their order; of equal ones the first."""
    if scores.shape[1] <= count:
        return scores, places
    least = scores.topk(count, dim=1).values[:, -1:]
    chosen = scores >= least
    beyond = (chosen.sum(1) > count).nonzero().view(-1)
    if len(beyond):  # of these rows alone the last ties are left out
        above, tied = scores[beyond] > least[beyond], scores[beyond] == least[beyond]
        chosen[beyond] = above | (tied & (tied.cumsum(1) <= count - above.sum(1, keepdim=True)))
    return scores[chosen].view(-1, count), places[chosen].view(-1, count)


class _Excluded:
    """Pairs of a query and a row of the corpus that are not found, by query."""

    def __init__(self, excluded: Tensor | None, order: Tensor) -> None:
        pairs = order.new_empty(0, 2) if excluded is None else excluded.to(order)
        pairs = pairs[pairs[:, 0].argsort()]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        self._queries, self._places = pairs[:, 0].contiguous(), place[pairs[:, 1]]

    def without(self, scores: Tensor, query: int, place: int) -> Tensor:
        """Set to -inf what is excluded of the scores of queries from `query` on and places from `place` on."""
        bounds = torch.tensor([query, query + len(scores)], device=self._queries.device)
        low, high = torch.searchsorted(self._queries, bounds).tolist()
        queries, places = self._queries[low:high] - query, self._places[low:high] - place
        here = (places >= 0) & (places < scores.shape[1])
        scores[queries[here], places[here]] = -math.inf
        return scores
