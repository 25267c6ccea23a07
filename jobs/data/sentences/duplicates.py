"""What texts that come again leave of a batch: pairs that share one are not negatives of each other.

The rule is that of `contrastive_loss`. What it takes of a batch on average is noted of a data set before anything is
trained; what it took of a batch, when that was a good part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.config import JobConfig, components
from jobs.data.batches import Ids, content_ids
from jobs.data.formats import DataError
from jobs.data.sentences.pools import first_texts, pool_of
from jobs.data.sentences.tokens import texts_of
from jobs.data.sources import Rows, numbered

if TYPE_CHECKING:
    from torch import Tensor

LOOKED_AT = 100_000
"""Rows compared with each other, evenly spaced: hashing them is what takes the time."""

WORTH_SAYING = 0.05
"""Share of a batch's negatives from which on a data set's repeats are noted."""

RARE = 1e-3
"""Batches of a trial, on average, of which nothing would be left: from here on they are noted before it begins."""

MANY = 1000
"""Texts, the commonest, by which that is reckoned."""

QUOTED = 60
"""Characters of a text that are quoted."""


def text_ids(rows: Rows, at: NDArray[np.int64]) -> Ids:
    """Compute ids of what these rows say, column by column: equal for equal texts, but for blanks around them."""
    parts = [ids_of_texts(column, at) for column in rows.table.columns]
    import torch

    negatives = torch.stack(parts[2:], 1) if len(parts) > 2 else None
    return Ids(parts[0], parts[1] if len(parts) > 1 else None, negatives)


def ids_of_texts(column: pa.ChunkedArray, at: NDArray[np.int64]) -> Tensor:
    """Compute ids of the texts at these places, int64 [c]: equal for equal texts, but for blanks around them."""
    return content_ids(text.strip().encode() for text in texts_of(column, at))


@functools.lru_cache(maxsize=4)
def text_numbers(rows: Rows) -> NDArray[np.int64]:
    """Number the texts of anchors and positives, int64 [n, k]: equal for equal texts, but for blanks around them. A row
    with fewer positives than others has its anchor's number again."""
    pools = [pool_of(rows, (name,)) for name in rows.table.column_names[:2]]
    said = numbered(pa.chunked_array([pc.utf8_trim_whitespace(chunk) for pool in pools for chunk in pool.texts.chunks]))
    width = [int(pool.counts().max(initial=1)) for pool in pools]
    numbers = np.repeat(said[pools[0].members][:, None], sum(width), axis=1)
    for pool, first, before in zip(pools, (0, width[0]), (0, len(pools[0].texts)), strict=False):
        owner = np.repeat(np.arange(len(rows)), pool.counts())
        numbers[owner, first + np.arange(len(owner)) - pool.ends[owner]] = said[before + pool.members]
    return numbers


def _has_negatives(job: JobConfig) -> bool:
    """Return whether the loss leaves out what says the same: one that asks for no ids of pairs has no negatives, or
    treats all pairs alike."""
    asked = components.loss_asks_for(job.loss.name)
    return asked is None or not asked.isdisjoint(("ids", "key_ids"))


def _has_others(job: JobConfig) -> bool:
    """Return whether the loss has negatives of earlier batches, too."""
    return "momentum_keys" in (components.loss_asks_for(job.loss.name) or ())


def negatives_in_a_batch(job: JobConfig, *, hard: int) -> int:
    """Count the candidates of all queries of a global batch: other pairs' keys of their pools, and these pools' hard
    negatives, `hard` of each pair."""
    return job.batch.size * (job.negatives_group - 1 + job.negatives_group * hard)


def note_on_batch(job: JobConfig, rows: NDArray[np.int64], *, step: int, masked: int, hard: int) -> str | None:
    """Return what to say of a batch where more than half of the negatives were left out; None where fewer were.

    rows: of the batch. masked: how many were left out, of `negatives_in_a_batch`. Raises DataError where nothing is
    left, unless that is because the batch holds a row twice, as it may where an epoch ends within it.
    """
    whole = negatives_in_a_batch(job, hard=hard)
    if 2 * masked <= whole or not _has_negatives(job):
        return None
    what = "images" if job.task == "image" else "texts"
    if masked >= whole and _has_others(job):
        return (
            f"step {step}: all of the batch's {whole} negatives are left out, as they are {what} that the anchor or "
            f"its positive has too (loss.mask_duplicates), and only those are left that loss.name = '{job.loss.name}' "
            "has from batches before"
        )
    if masked >= whole:
        if len(np.unique(rows)) < len(rows):
            return (
                f"step {step}: an epoch ends within the batch, which has a row twice, and all of its {whole} negatives "
                "are left out (loss.mask_duplicates), so this step learns nothing from them; a larger batch.size "
                "would leave some"
            )
        raise DataError(
            f"has nothing to tell apart in the batch of step {step}: all of its {whole} negatives are {what} that the "
            "anchor or its positive has too, so all are left out (loss.mask_duplicates) and no pair would be told from "
            f"another; leave rows with the same {what} out of data.train, set batch.size above {job.batch.size}, or "
            f"loss.mask_duplicates = false, by which equal {what} are negatives of each other",
            file=job.data.train,
        )
    return (
        f"step {step}: {masked} of the batch's {whole} negatives are left out, as they are {what} that the anchor or "
        f"its positive has too (loss.mask_duplicates); with fewer rows of the same {what} in data.train more would be "
        "learned from a batch"
    )


def repeats(job: JobConfig, rows: Rows) -> Iterator[str]:
    """Yield a warning where rows with equal texts will take a good part of the negatives of every batch of a sentence
    job. Raises DataError where they take all of them."""
    if not job.loss.mask_duplicates or not _has_negatives(job):
        return
    rows = first_texts(rows)
    repeated = _repeated(rows)
    share = repeated.share(job.negatives_group)
    if repeated.all_alike and repeated.looked_at == len(rows):
        raise rows.fault(
            f"has nothing to tell apart: every two of its {len(rows)} rows share a text{repeated.commonest()}, and "
            "texts are not negatives of themselves (loss.mask_duplicates), so no pair would be told from another; give "
            "rows with other texts as well"
        )
    yield from _doomed(job, rows, repeated)
    if repeated.hard and repeated.own:
        own = round(repeated.own * repeated.looked_at * repeated.hard)
        yield (
            f"{own} of {repeated.looked_at * repeated.hard} hard negatives in data.train are the anchor or the "
            "positive of their own row, and are left out; see loss.mask_duplicates"
        )
    if share >= WORTH_SAYING:
        yield (
            f"about {share:.0%} of the negatives in a batch of data.train are left out, because their rows and the "
            f"anchor's share a text{repeated.commonest()}; see loss.mask_duplicates"
        )


def _doomed(job: JobConfig, rows: Rows, repeated: _Repeated) -> Iterator[str]:
    """Yield a warning where some batch may consist of rows that all share a text, which ends its trial. Raises
    DataError where most trials would meet such a batch."""
    if _has_others(job):
        return
    steps = job.budget.steps or (-(-job.budget.samples // job.batch.size) if job.budget.samples else None)
    chance = repeated.chance_of_a_batch(job.batch.size, job.negatives_group)
    expected = chance * (steps or 1000)
    if expected < RARE:
        return
    what = (
        f"about 1 batch in {max(round(1 / chance), 1):,} of data.train holds nothing but rows that share a text"
        f"{repeated.commonest()}, so that none of its negatives is left (loss.mask_duplicates), and the trial ends "
        "there as an error"
    )
    remedy = (
        f"set batch.size above {job.batch.size}, leave out rows that share a text, or set loss.mask_duplicates = false "
        "(equal texts are then negatives of each other)"
    )
    if steps is not None and expected >= 1:
        raise rows.fault(f"cannot be trained on for {steps:,} steps: {what}; {remedy}")
    yield f"{what}; {remedy}"


@dataclass(frozen=True)
class _Repeated:
    """How often two rows share a text, and how often a hard negative is one of a row's."""

    looked_at: int
    pairs: float
    """Share of the pairs of different rows."""
    own: float
    """Share of the hard negatives, their own row asked; 1 where there are none, as of `others`."""
    others: float
    """The same, another row asked."""
    hard: int
    text: str
    """In most rows, and in how many of them."""
    count: int
    counts: tuple[int, ...]
    """Rows of each text that is in at least two, the commonest first."""
    both: tuple[int, ...]
    """The same of each two texts of a row."""

    def chance_of_a_batch(self, size: int, pool: int) -> float:
        """Compute the chance that all rows of each pool of a batch share a text, and their hard negatives with them."""
        if self.own < 1 or self.others < 1:
            return 0.0
        alike = self._chance_of_a_pool(self.counts, pool) - self._chance_of_a_pool(self.both, pool)
        return float(min(max(alike, 0.0), 1.0) ** (size // pool))

    def _chance_of_a_pool(self, counts: tuple[int, ...], pool: int) -> float:
        return sum(
            math.exp(_log_draws(count, pool) - _log_draws(self.looked_at, pool)) for count in counts if count >= pool
        )

    @property
    def all_alike(self) -> bool:
        return self.pairs == self.own == self.others == 1

    def share(self, pool: int) -> float:
        """Compute the share of an anchor's negatives in a pool that is left out, on average."""
        taken = (pool - 1) * self.pairs + self.hard * (self.own + (pool - 1) * self.others)
        return taken / (pool - 1 + pool * self.hard)

    def commonest(self) -> str:
        if self.count < 2:
            return ""
        text = self.text if len(self.text) <= QUOTED else f"{self.text[:QUOTED]}..."
        return f" ({text!r} is in {self.count} of {self.looked_at} rows)"


@functools.lru_cache(maxsize=8)
def _repeated(rows: Rows) -> _Repeated:
    taken = min(len(rows), LOOKED_AT)
    at = np.arange(taken, dtype=np.int64) * len(rows) // taken
    ids, n = text_ids(rows, at), len(at)
    texts = np.stack([column.numpy() for column in (ids.pair_ids, ids.key_ids) if column is not None], axis=1)
    known, coded = np.unique(texts, return_inverse=True)
    coded = np.sort(coded.reshape(texts.shape), axis=1)
    once = np.ones(coded.shape, bool)
    once[:, 1:] = coded[:, 1:] > coded[:, :-1]
    counts = np.bincount(coded[once], minlength=len(known))
    # Two rows that share both of their texts are counted twice among those that share one.
    both = np.unique(coded[once.all(1)], axis=0, return_counts=True)[1] if coded.shape[1] > 1 else counts[:0]
    own = others = 1.0
    hard = 0 if ids.negative_ids is None else ids.negative_ids.shape[1]
    if ids.negative_ids is not None:
        negatives = ids.negative_ids.numpy()
        index = np.searchsorted(known, negatives).clip(max=len(known) - 1)
        meetings = np.where(known[index] == negatives, counts[index], 0).sum()
        mine = (negatives[:, :, None] == texts[:, None, :]).any(2).sum()
        own, others = float(mine / negatives.size), float((meetings - mine) / (negatives.size * (n - 1)))
    most = int(np.argmax(counts))
    row, column = np.argwhere(texts == known[most])[0]
    (text,) = texts_of(rows.table.columns[column], [at[row]])
    pairs = (_two(counts) - _two(both)) / _two(np.array([n]))
    return _Repeated(n, pairs, own, others, hard, text, int(counts[most]), _common(counts), _common(both))


def _common(counts: NDArray[np.integer]) -> tuple[int, ...]:
    """Choose the sizes that decide how likely a whole batch is alike: others are too small to matter."""
    return tuple(sorted(counts[counts > 1].tolist(), reverse=True)[:MANY])


def _log_draws(n: int, taken: int) -> float:
    """Compute the logarithm of how many ordered draws of `taken` out of n there are."""
    return math.lgamma(n + 1) - math.lgamma(n - taken + 1)


def _two(counts: NDArray[np.integer]) -> float:
    """Count the pairs of different members, in groups of these sizes."""
    return float((counts * (counts - 1.0) / 2).sum())
