"""Exact search: what whole numbers of any size say, bit for bit, whatever the tile and the number of ranks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks
from torch import Tensor

from jobs.metrics.search import top_k


def oracle(
    queries: Tensor, corpus: Tensor, k: int, ids: list[str], excluded: set[tuple[int, int]]
) -> list[list[tuple[float, int]]]:
    """By the rule, in Python's whole numbers, which never round: unit rows in steps of 2**-26, ties by id."""
    left, right = ([[round(x * 2**26) for x in row] for row in rows.double().tolist()] for rows in (queries, corpus))
    found = []
    for number, query in enumerate(left):
        scored = [
            (-sum(a * b for a, b in zip(query, row, strict=True)), ids[at], at)
            for at, row in enumerate(right)
            if (number, at) not in excluded
        ]
        found.append([(-score / 2**52, at) for score, _, at in sorted(scored)[:k]])
    return found


def rows_of(seed: int, count: int, width: int = 5) -> Tensor:
    """Unit rows, of which many are equal."""
    draw = np.random.default_rng(seed)
    few = F.normalize(torch.from_numpy(draw.normal(size=(max(count // 2, 1), width))), dim=-1)
    return few[torch.from_numpy(draw.integers(len(few), size=count))]


@settings(max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(1, 7),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 14),
    st.sets(st.tuples(st.integers(0, 6), st.integers(0, 11)), max_size=12),
)
def test_it_finds_what_whole_numbers_say_for_every_tile(
    seed: int, asked: int, known: int, k: int, tile: int, excluded: set[tuple[int, int]]
) -> None:
    """Mutant checks: ties by the place in the corpus, or a tile whose equals push out earlier ones, fail this."""
    queries, corpus = rows_of(seed, asked), rows_of(seed + 1, known)
    ids = [f"p{(7 * at + seed) % 13}" for at in range(known)]
    excluded = {(query, row) for query, row in excluded if query < asked and row < known}
    pairs = torch.tensor(sorted(excluded)).reshape(-1, 2)
    scores, rows = top_k(queries, corpus, k, tile=tile, ids=ids, excluded=pairs)
    assert scores.shape == rows.shape == (asked, min(k, known))
    for number, wanted in enumerate(oracle(queries, corpus, k, ids, excluded)):
        found = [(score, row) for score, row in zip(scores[number].tolist(), rows[number].tolist(), strict=True)]
        assert found[: len(wanted)] == wanted
        assert found[len(wanted) :] == [(-np.inf, -1)] * (len(found) - len(wanted))


def many(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(4)
    queries, corpus = (F.normalize(torch.randn(n, 48, generator=draw), dim=-1).to(dtype) for n in (37, 501))
    return queries, torch.cat([corpus, corpus[::5]])  # a fifth is there twice


def on_a_rank(dtype: torch.dtype, rank: int) -> tuple[Tensor, Tensor]:
    return top_k(*many(dtype), 20, tile=64, group=dist.group.WORLD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_depend_neither_on_ranks_nor_on_tiles_nor_on_threads(spawn_ranks: SpawnRanks, dtype: torch.dtype) -> None:
    """Mutant check: plain products in double precision, which tiles of other sizes round otherwise, fail this."""
    threads = torch.get_num_threads()
    scores, rows = top_k(*many(dtype), 20)
    for tile in (13, 100, 4096):
        torch.set_num_threads(2 if tile == 13 else 1)
        again = top_k(*many(dtype), 20, tile=tile)
        torch.set_num_threads(threads)
        assert torch.equal(again[0], scores)
        assert torch.equal(again[1], rows)
    for world in (2, 3):
        for found in spawn_ranks(world, partial(on_a_rank, dtype)):
            assert torch.equal(found[0], scores)
            assert torch.equal(found[1], rows)
    exact = many(dtype)[0].double() @ many(dtype)[1].double().T
    torch.testing.assert_close(scores, exact.gather(1, rows), rtol=0, atol=1e-7)
    assert (scores[:, :-1] == scores[:, 1:]).any(), "no ties, so this would be vacuous"


def test_rows_of_any_length_are_ranked_by_their_products() -> None:
    queries, corpus = many(torch.float64)
    long = 1000 * (1 + torch.arange(len(corpus), dtype=torch.float64))[:, None] * corpus
    scores, rows = top_k(queries * 0.003, long, 9)
    exact = queries * 0.003 @ long.T
    assert torch.equal(rows, exact.topk(9).indices)
    torch.testing.assert_close(scores, exact.topk(9).values, rtol=1e-6, atol=0)


def test_of_nothing_nothing_is_found() -> None:
    """No query, and no corpus: as shapes say."""
    queries, corpus = many(torch.float32)
    for asked, known, shape in ((queries, corpus[:0], (len(queries), 0)), (queries[:0], corpus, (0, 3))):
        scores, rows = top_k(asked, known, 3)
        assert (tuple(scores.shape), tuple(rows.shape)) == (shape, shape)


def test_what_cannot_be_searched_is_refused() -> None:
    queries, corpus = many(torch.float32)
    with pytest.raises(ValueError, match=r"queries have 48 columns, the corpus 3; both are embedded by one encoder"):
        top_k(queries, corpus[:, :3], 2)
    corpus[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"the corpus holds what is not finite, first in row 3"):
        top_k(queries, corpus, 2)
    with pytest.raises(ValueError, match=r"k = 0; 1 at least"):
        top_k(queries, queries, 0)
