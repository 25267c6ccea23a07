"""Hard negatives of sentences, mined by an encoder: for each row the texts nearest to its anchor that are no positives.

Every text that is a positive of some row is ranked by its cosine to the anchor, exactly, ties by the order of the rows
(jobs/metrics/search.py). Left out are the anchor itself and what is a positive of any row with the same anchor; ranks
outside the window; and texts that are nearly as near as the row's own positive, which are likely none (Xiong et al.
2021, arXiv:2007.00808, mine by the model in training; Moreira et al. 2024, arXiv:2407.15831, by the positive's score).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from jobs.config import Mine
from jobs.data.sentences.pools import Pool
from jobs.metrics.search import products, top_k

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.core.collectives import Group
    from jobs.data.sentences.pools import Corpus

ROWS = 1 << 16
"""Rows that are looked at at once."""


@dataclass(frozen=True, eq=False)
class Mined:
    """The hard negatives of all rows: row i has members[ends[i] : ends[i + 1]], places in the corpus, the nearest
    first."""

    members: NDArray[np.int64]
    ends: NDArray[np.int64]

    def pool(self, corpus: Corpus) -> Pool:
        """Return what each row chooses from."""
        return Pool(corpus.texts, self.members, self.ends)

    def few(self, wanted: int) -> int:
        """Count the rows that have fewer than are wanted."""
        return int((np.diff(self.ends) < wanted).sum())


def mined(corpus: Corpus, anchors: Tensor, texts: Tensor, rule: Mine, *, group: Group = None) -> Mined:
    """Choose hard negatives of each row by embeddings of its corpus: anchors [q, D] and texts [m, D], of any length.

    group: ranks that all call this with the same; they share the search. Raises ValueError for embeddings that are not
    finite.
    """
    anchors, texts = (F.normalize(rows.double(), dim=-1) for rows in (anchors, texts))
    first, last = rule.window
    scores, places = top_k(anchors, texts, last, excluded=torch.from_numpy(corpus.barred), group=group)
    owner = np.repeat(np.arange(len(corpus.anchor_of)), corpus.positives.counts())
    of_positives = products(anchors, texts, np.stack([corpus.anchor_of[owner], corpus.positives.members], 1))
    lowest = np.minimum.reduceat(of_positives.cpu().numpy(), corpus.positives.ends[:-1])
    near, found = scores.cpu().numpy(), places.cpu().numpy()
    parts, counts = [np.empty(0, np.int64)], [np.zeros(1, np.int64)]
    for low in range(0, len(lowest), ROWS):
        own = slice(low, low + ROWS)
        cosines, texts_of = near[corpus.anchor_of[own]], found[corpus.anchor_of[own]]
        kept = (texts_of >= 0) & (np.arange(texts_of.shape[1]) >= first)
        bound = lowest[own, None]
        if rule.margin is not None:
            kept &= cosines <= bound - rule.margin
        if rule.share is not None:
            kept &= cosines <= bound * rule.share
        kept &= kept.cumsum(1) <= (rule.kept or rule.negatives)
        parts.append(texts_of[kept])
        counts.append(kept.sum(1))
    return Mined(np.concatenate(parts), np.cumsum(np.concatenate(counts)))
