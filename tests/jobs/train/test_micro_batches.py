"""A rank's share of a batch: its own pairs, all of them, and the data of no others."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import data
from jobs.config import JobConfig
from jobs.data.sentences.tokens import TokenColumn
from jobs.train.microbatches import Batches

ROWS = 50


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job on triplets of sentences that are from one to nine words long."""
    folder = tmp_path_factory.mktemp("sentences")
    draw = np.random.default_rng(1)

    def sentence() -> str:
        return " ".join(f"w{word}" for word in draw.integers(0, 20, draw.integers(1, 10)))

    train = [{name: sentence() for name in ("anchor", "positive", "negative")} for _ in range(ROWS)]
    judged = [{"sentence1": sentence(), "sentence2": sentence(), "score": row} for row in range(5)]
    for name, rows in (("train", train), ("judged", judged)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "sentence",
        "budget": {"steps": 20},
        "data": {name: str(folder / f"{use}.jsonl") for name, use in FILES.items()},
    }


FILES = {"train": "train", "confirm": "judged"}


@given(
    size=st.integers(2, 2 * ROWS),
    ranks=st.integers(1, 5),
    step=st.integers(1, 20),
    cut=st.one_of(
        st.just({}),
        st.fixed_dictionaries({"micro": st.integers(1, 30)}),
        st.fixed_dictionaries({"micro_tokens": st.integers(40, 400)}),
    ),
)
def test_ranks_compute_with_every_pair_once_and_read_the_rows_of_their_own_pairs_alone(
    base: dict[str, Any], size: int, ranks: int, step: int, cut: dict[str, int]
) -> None:
    """Mutant checks: lengths of the whole batch, or places that count from the rank's first pair on."""
    ranks = min(ranks, size)
    job = JobConfig.model_validate(base | {"batch": {"size": size}, "execution": cut | {"ranks": ranks}})
    examples = data.train_examples(job, data.tokenizer_for(job))
    assert isinstance(examples, data.SentenceExamples)
    together: list[int] = []
    for rank in range(ranks):
        columns = [TokenColumn(column, examples.tokenizer, 32) for column in examples.rows.table.columns]
        read = [dataclasses.replace(side, tokens=own) for side, own in itertools.zip_longest(examples.columns, columns)]
        fresh = dataclasses.replace(examples, columns=tuple(read))
        batches = Batches(fresh, job, rank=rank, world=ranks)
        rows = batches.rows(step)
        cuts, largest = batches.spans(rows), batches.largest(step)
        chunks = [batches.micro_batch(step, rows, pairs) for pairs in cuts]
        own = sorted({int(rows[place]) for pairs in cuts for place in pairs})
        assert [np.flatnonzero(column._lengths).tolist() for column in columns] == [own] * 3
        longest = [max(int(one["input_ids"].shape[1]) for one in sides(chunk.views)) for chunk in chunks]
        assert largest == max(len(pairs) * tokens for pairs, tokens in zip(cuts, longest, strict=True))
        assert [chunk.pairs.tolist() for chunk in chunks] == [list(pairs) for pairs in cuts]
        together += [place for pairs in cuts for place in pairs]
    assert together == list(range(size))


def sides(views: data.Views) -> list[data.Inputs]:
    assert views.negatives is not None
    return [views.queries, views.keys, views.negatives]
