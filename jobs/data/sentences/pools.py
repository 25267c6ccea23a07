"""Texts that a row chooses from: lists of positives and of hard negatives, of which each step draws some; and the texts
that hard negatives are mined of.

A draw is a function of (seed, step, pair), so that ranks, micro-batches and kills change none. It is without
replacement: a row with fewer texts than are drawn gives them all, and the places that are left stay empty.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.sentences.texts import is_list_of_texts
from jobs.data.sources import Rows, numbered

EMPTY = -1
"""Place of a text that is not there."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Texts, and which of them each row chooses from."""

    texts: pa.ChunkedArray
    members: NDArray[np.int64]
    """Places in `texts`, those of row 0 first."""
    ends: NDArray[np.int64]
    """[n + 1]: row i has members[ends[i] : ends[i + 1]]."""

    def counts(self) -> NDArray[np.int64]:
        """Count each row's texts, [n]."""
        return np.diff(self.ends)

    def draw(
        self, rows: NDArray[np.int64], count: int, *, seed: int, step: int, pairs: NDArray[np.int64], side: int
    ) -> NDArray[np.int64]:
        """Draw `count` different texts of each row, int64 [c, count], places in `texts`: all that it has, in a random
        order, and then EMPTY. pairs [c]: their places in the batch. side: 1 for positives, 2 for hard negatives."""
        import torch

        from jobs.core.randomness import DRAWN, mix

        first, have = self.ends[rows], self.ends[rows + 1] - self.ends[rows]
        most = max(int(have.max(initial=0)), count, 1)
        numbers = np.arange(most)
        keys = mix(DRAWN, seed, step, torch.from_numpy(np.asarray(pairs, np.int64))[:, None], side, torch.arange(most))
        order = np.where(numbers < have[:, None], keys.numpy(), 2**32 + numbers).argsort(axis=1, kind="stable")
        chosen = order[:, :count]
        is_there = chosen < have[:, None]
        if not len(self.members):
            return np.full(chosen.shape, EMPTY)
        return np.where(is_there, self.members[np.where(is_there, first[:, None] + chosen, 0)], EMPTY)


@functools.lru_cache(maxsize=8)
def pool_of(rows: Rows, names: tuple[str, ...]) -> Pool:
    """Gather what these columns, of texts or of lists, have for each row; a text that a row has twice counts once."""
    parts, owners = [], []
    for name in names:
        for at, chunk in zip(_starts(rows.table[name]), rows.table[name].chunks, strict=True):
            texts, owner = _flat(chunk)
            parts.append(texts.cast(pa.large_string()))
            owners.append(owner + at)
    texts = pa.chunked_array(parts, pa.large_string())
    owner = np.concatenate([np.empty(0, np.int64), *owners])
    said = numbered(pc.utf8_trim_whitespace(texts))
    there = np.flatnonzero(said >= 0)
    there = there[np.argsort(owner[there], kind="stable")]
    _, first = np.unique(np.stack([owner[there], said[there]]), axis=1, return_index=True)
    members = there[np.sort(first)]
    ends = np.concatenate([[0], np.cumsum(np.bincount(owner[members], minlength=len(rows)))])
    return Pool(texts, members, ends)


@functools.lru_cache(maxsize=8)
def first_texts(rows: Rows) -> Rows:
    """Return the rows with columns of text alone: in the place of a list of positives its first text, and no lists of
    hard negatives."""
    table = rows.table
    for name in table.column_names[1:]:
        at = table.schema.get_field_index(name)
        if at == 1 and is_list_of_texts(table[name].type):
            table = table.set_column(at, name, pc.list_element(table[name], 0))
        elif is_list_of_texts(table[name].type) or table[name].null_count:
            table = table.drop_columns([name])
    return rows if table is rows.table else dataclasses.replace(rows, table=table)


def flat_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the texts of a column of texts or of lists, one after another."""
    if not is_list_of_texts(column.type):
        return column.drop_null() if column.null_count else column
    return pa.chunked_array([_flat(chunk)[0] for chunk in column.chunks], column.type.value_type)


def _flat(chunk: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return a chunk's texts one after another, and the row in the chunk that each is of."""
    if not is_list_of_texts(chunk.type):
        return chunk, np.arange(len(chunk))
    counts = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return chunk.flatten(), np.repeat(np.arange(len(chunk)), counts)


def _starts(column: pa.ChunkedArray) -> list[int]:
    return [0, *np.cumsum([len(chunk) for chunk in column.chunks]).tolist()][: column.num_chunks]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts [m], different anchors [q], and what each row has of either. Texts that differ in blanks around them are
    one."""

    texts: pa.ChunkedArray
    """[m], in the order of the rows."""

    anchors: pa.ChunkedArray
    """[q], likewise."""

    anchor_of: NDArray[np.int64]
    """[n]: row -> place in `anchors`."""

    positives: Pool
    """Row -> places in `texts`. Of single sentences, the sentence."""

    barred: NDArray[np.int64]
    """[e, 2]: an anchor, and a text that is no negative of it: the anchor itself, or a positive of any row with it."""


@functools.lru_cache(maxsize=2)
def corpus_of(rows: Rows) -> Corpus:
    """Gather the anchors and the positives of rows whose columns are checked."""
    names = rows.table.column_names
    pools = [pool_of(rows, (names[0],)), pool_of(rows, (names[min(1, len(names) - 1)],))]
    trimmed = [pc.utf8_trim_whitespace(chunk) for pool in pools for chunk in pool.texts.chunks]
    said = numbered(pa.chunked_array(trimmed, pa.large_string()))
    of_anchors, of_texts = said[: len(pools[0].texts)], said[len(pools[0].texts) :]
    anchors, anchor_of = _each_once(of_anchors[pools[0].members])
    texts, text_of = _each_once(of_texts[pools[1].members])
    owner = np.repeat(np.arange(len(rows)), pools[1].counts())
    barred = np.stack([anchor_of[owner], text_of], 1)
    codes = of_texts[pools[1].members][texts]
    own = of_anchors[pools[0].members][anchors]
    place = np.searchsorted(codes, own, sorter=np.argsort(codes))
    place = np.argsort(codes)[place.clip(max=len(codes) - 1)]
    itself = np.flatnonzero(codes[place] == own)
    barred = np.unique(np.concatenate([barred, np.stack([itself, place[itself]], 1)]), axis=0)
    return Corpus(
        pools[1].texts.take(pa.array(pools[1].members[texts])),
        pools[0].texts.take(pa.array(pools[0].members[anchors])),
        anchor_of,
        Pool(pools[1].texts, text_of, pools[1].ends),
        barred,
    )


def _each_once(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each value comes first, in that order, and for every place which of these it has."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse]
