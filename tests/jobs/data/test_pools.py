"""Lists of positives and of hard negatives: what is drawn of them, and that a place without one counts nowhere."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks
from torch import Tensor

from jobs import data
from jobs.config import JobConfig
from jobs.core.ids import ABSENT
from jobs.data import DataError
from jobs.data.sentences.pools import EMPTY, Pool
from jobs.data.validate import check
from jobs.losses import contrastive_loss
from jobs.losses.builtin.weighted.hardness_weighted import hardness_weighted
from jobs.losses.generic import asked_for
from jobs.train import Training

WORDS = ["ash", "bay", "cliff", "dune", "elm", "fern", "grove", "hill", "isle", "jetty", "knoll", "lake"]


def row(number: int) -> dict[str, Any]:
    """From none to four hard negatives, the first a positive of the next row; one or two positives."""
    word = WORDS[number % 12]
    return {
        "query": f"where is the {word} {number}",
        "pos": [f"the {word} is at {number}", f"at {number} there is a {word}"][: 1 + number % 2],
        "neg": [
            f"the {WORDS[(number + 1) % 12]} is at {number + 1}" if k == 0 else f"no {WORDS[k]} of {number} {k}"
            for k in range(number % 5)
        ],
    }


def job(folder: Path, file: str = "rows.jsonl", **sections: Any) -> JobConfig:
    judged = [{"sentence1": f"a {n} b", "sentence2": f"a {n + 1} c", "score": n} for n in range(6)]
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, judged)))
    keys = {
        "train": str(folder / file),
        "confirm": str(folder / "judged.jsonl"),
        "columns": ["query", "pos", "neg"],
        "hard_negatives": 2,
        "max_tokens": 12,
    }
    encoder = {"name": "bert", "width": 8, "layers": 1, "heads": 1, "projection": "none", "vocabulary": 100}
    whole: dict[str, Any] = {
        "task": "sentence",
        "budget": {"steps": 4},
        "data": keys | sections.pop("data", {}),
        "model": encoder | {"precision": "fp64"},
        "batch": {"size": 8},
        "evaluate": {"times": 1},
    }
    return JobConfig.model_validate(whole | sections)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row(number) for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path


# What is drawn


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(1, 5), st.integers(0, 3), st.integers(1, 4))
def test_a_draw_has_no_text_twice_and_what_a_row_lacks_stays_empty(
    counts: list[int], drawn: int, seed: int, step: int
) -> None:
    """Whatever rows it is made beside. Mutant check: drawing with replacement fails this."""
    ends = np.cumsum([0, *counts])
    members = np.random.default_rng(seed).permutation(int(ends[-1]))
    pool = Pool(pa.chunked_array([pa.array([str(n) for n in range(ends[-1])])]), members, ends)
    rows, pairs = np.arange(len(counts)), 10 + np.arange(len(counts))
    whole = pool.draw(rows, drawn, seed=seed, step=step, pairs=pairs, side=2)
    for at, count in enumerate(counts):
        own = [int(place) for place in whole[at] if place != EMPTY]
        assert len(own) == len({*own}) == min(count, drawn)
        assert {*own} <= {*members[ends[at] : ends[at + 1]].tolist()}
        assert whole[at, len(own) :].tolist() == [EMPTY] * (drawn - len(own))
        alone = pool.draw(rows[at : at + 1], drawn, seed=seed, step=step, pairs=pairs[at : at + 1], side=2)
        assert alone[0].tolist() == whole[at].tolist()


def test_every_text_of_a_list_is_drawn_as_often_as_any_other() -> None:
    """Within six standard deviations. Mutant check: the first of each list fails this."""
    pool = Pool(pa.chunked_array([pa.array(list("abcde"))]), np.arange(5), np.array([0, 5]))
    drawn = [
        pool.draw(np.zeros(1, np.int64), 2, seed=3, step=step, pairs=np.array([7]), side=2)[0]
        for step in range(1, 1001)
    ]
    counts = np.bincount(np.concatenate(drawn), minlength=5)
    assert abs(counts - 400).max() < 6 * (1000 * 0.4 * 0.6) ** 0.5


@pytest.mark.parametrize("file", ["rows.jsonl", "rows.parquet"])
def test_views_and_ids_are_of_the_same_texts(folder: Path, file: str) -> None:
    config = job(folder, file)
    examples = data.train_examples(config)
    assert isinstance(examples, data.SentenceExamples)
    rows, pairs = np.arange(4, 12), np.arange(4, 12)
    draw = data.Draw(0, 3, pairs)
    views, ids = examples.views(rows, seed=0, step=3, pairs=pairs), examples.ids(rows, draw)
    assert views.negatives is not None
    assert ids.negative_ids is not None
    assert examples.hard_negatives == 2
    assert ids.negative_ids.shape == (8, 2)
    texts = [examples.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in views.negatives["input_ids"]]
    for at, number in enumerate(rows.tolist()):
        own = texts[2 * at : 2 * at + 2]
        there = (ids.negative_ids[at] != ABSENT).tolist()
        assert there == [number % 5 > 0, number % 5 > 1]
        assert len({*own}) == 2 or number % 5 == 0
        assert {text for text, is_there in zip(own, there, strict=True) if is_there} <= {*row(number)["neg"]}
        key = examples.tokenizer.decode(views.keys["input_ids"][at], skip_special_tokens=True)
        assert key in row(number)["pos"]
    masks = [side["attention_mask"].sum(1) for side in (views.queries, views.keys, views.negatives)]
    longest = torch.cat([masks[0][:, None], masks[1][:, None], masks[2].unflatten(0, (8, 2))], 1).amax(1)
    assert examples.lengths(rows, draw).tolist() == longest.tolist()


def test_columns_of_texts_are_drawn_from_as_well_and_may_lack_some(folder: Path) -> None:
    rows = [
        {"anchor": f"q {n}", "positive": f"p {n}", "negative_1": f"a {n}", "negative_2": None if n % 2 else f"b {n}"}
        for n in range(12)
    ]
    (folder / "columns.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = job(folder, "columns.jsonl", data={"columns": None})
    ids = data.train_examples(config).ids(np.arange(12)).negative_ids
    assert ids is not None
    assert (ids == ABSENT).sum(1).tolist() == [0, 1] * 6
    assert "6 rows of data.train have fewer than data.hard_negatives = 2 hard negatives" in "\n".join(check(config))
    with pytest.raises(DataError, match=r"is null or missing"):
        check(job(folder, "columns.jsonl", data={"columns": None, "hard_negatives": None}))


def test_what_is_no_list_of_texts_is_refused(folder: Path) -> None:
    for changes, message in (
        ({"pos": []}, r"column 'pos'.*has no positive; remove the row or give it one"),
        ({"neg": ["x", " "]}, r"column 'neg'.*has a text that is null or empty; leave it out of the list"),
        ({"query": ["a"]}, r"column 'query'.*holds lists"),
        ({"neg": [{"text": "a"}]}, r"column 'neg'"),
    ):
        rows = [row(number) | changes for number in range(12)]
        (folder / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError, match=message):
            check(job(folder, "bad.jsonl"))
    with pytest.raises(DataError, match=r"has no hard negatives that data.hard_negatives = 2 could be drawn of"):
        check(job(folder, data={"columns": ["query", "pos"]}))


# A place without one counts nowhere


def oracle(queries: Tensor, keys: Tensor, hard: list[Tensor], *, temperature: float, weight: float) -> Tensor:
    """InfoNCE written out: hard[i] [m_i, D] are the hard negatives that pair i has; every anchor sees them all."""
    total = queries.new_zeros(())
    for i in range(len(queries)):
        terms = [queries[i] @ keys[j] / temperature for j in range(len(keys)) if j != i]
        for j, own in enumerate(hard):
            terms += [
                queries[i] @ negative / temperature + (torch.tensor(weight).double().log() if i == j else 0.0)
                for negative in own
            ]
        positive = queries[i] @ keys[i] / temperature
        total = total + F.softplus(torch.stack(terms).logsumexp(0) - positive)
    return total / len(queries)


COUNTS = [2, 0, 1, 2, 0, 1]


def rows_of_a_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    q, k, h = (
        F.normalize(torch.randn(*shape, 5, generator=draw, dtype=torch.float64), dim=-1)
        for shape in ((6,), (6,), (6, 2))
    )
    ids = torch.tensor([[7 * i + j if j < count else ABSENT for j in range(2)] for i, count in enumerate(COUNTS)])
    return q, k, h, ids


def gradients(rank: int, world: int = 1, tile: int | None = None, exchange: str = "gather") -> list[Tensor]:
    own = slice(6 * rank // world, 6 * (rank + 1) // world)
    sides = [side[own].clone().requires_grad_() for side in rows_of_a_batch()[:3]]
    value, diagnostics = contrastive_loss(
        sides[0], sides[1], hard_negatives=sides[2], negative_ids=rows_of_a_batch()[3][own],
        pair_ids=100 + torch.arange(6)[own], temperature=0.3, hard_negative_weight=2.0, tile=tile,
        exchange=exchange, group=dist.group.WORLD if world > 1 else None,  # type: ignore[arg-type]
    )  # fmt: skip
    value.backward()
    assert diagnostics.duplicates_masked == 0
    return [value.detach(), *(side.grad for side in sides if side.grad is not None)]


def test_an_absent_hard_negative_is_one_of_nobody_on_any_ranks(spawn_ranks: SpawnRanks) -> None:
    """Mutant checks: leaving it to the ids, which are equal to no pair's, and leaving out the own anchor's alone."""
    q, k, h, _ = (side.clone() for side in rows_of_a_batch())
    for side in (q, k, h):
        side.requires_grad_()
    wanted = oracle(q, k, [h[i, :count] for i, count in enumerate(COUNTS)], temperature=0.3, weight=2.0)
    expected = [wanted.detach(), *torch.autograd.grad(wanted, (q, k, h))]
    assert expected[3][1].abs().max() == 0, "a place without one has a gradient"
    for tile in (None, 1, 4):
        for found, exact in zip(gradients(0, tile=tile), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    for world, exchange in ((2, "gather"), (3, "ring")):
        ranks = spawn_ranks(world, partial(gradients, world=world, exchange=exchange))
        for part in range(1, 4):
            torch.testing.assert_close(torch.cat([own[part] for own in ranks]), expected[part], rtol=1e-12, atol=1e-12)


def test_losses_of_whole_batches_leave_it_out_too() -> None:
    q, k, h, ids = rows_of_a_batch()
    asked = asked_for(hardness_weighted)
    given: dict[str, Any] = {
        "queries": q, "keys": k, "ids": torch.arange(6), "key_ids": None, "temperature": 0.3,
    }  # fmt: skip
    moved = torch.where((ids == ABSENT)[..., None], -h, h)
    values = [
        hardness_weighted(**{n: v for n, v in (given | {"negatives": n_, "negative_ids": ids}).items() if n in asked})
        for n_ in (h, moved)
    ]
    assert torch.equal(values[0], values[1])
    there = hardness_weighted(
        **{n: v for n, v in (given | {"negatives": h, "negative_ids": ids.clamp(min=0) + 50}).items() if n in asked}
    )
    assert not torch.equal(there, values[0])


# A training


def trained(folder: Path, config: JobConfig, into: str, steps: int = 4, group: Any = None) -> dict[str, Tensor]:
    training = Training(config, folder / into, group=group, log=lambda _: None)
    while training.result is None and training.step < steps:
        training.advance(1)
    if training.result is None:
        training.save()
    training.settle()
    return {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}


def on_a_rank(folder: Path, rank: int) -> dict[str, Tensor]:  # pickled
    config = job(folder, execution={"ranks": 2, "micro": 3, "verify": True})
    assert rank < 2
    return trained(folder, config, "ranks", group=dist.group.WORLD)


@pytest.mark.parametrize("masked", [True, False])
def test_a_training_is_the_same_on_two_ranks_in_micro_batches_and_after_a_stop(
    folder: Path, spawn_ranks: SpawnRanks, masked: bool
) -> None:
    """The gradient check has its own way to leave out what is not there. Mutant check: a draw by the place within the
    rank's share fails this."""
    loss = {"mask_duplicates": masked}
    whole = trained(folder, job(folder, execution={"verify": True}, loss=loss), "whole")
    tokens = job(folder, execution={"micro_tokens": 40, "verify": True}, loss=loss)
    for found in [trained(folder, tokens, "tokens"), *(spawn_ranks(2, partial(on_a_rank, folder)) if masked else [])]:
        for name, weight in whole.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-11)
    config = job(folder, loss=loss)
    trained(folder, config, "stopped", steps=2)
    for name, weight in trained(folder, config, "stopped").items():
        assert torch.equal(weight, whole[name])


def test_none_drawn_is_a_training_without_them(folder: Path) -> None:
    """So an arm may draw none, others some."""
    config = job(folder, data={"hard_negatives": 0})
    examples = data.train_examples(config)
    assert examples.hard_negatives == 0
    assert examples.ids(np.arange(3)).negative_ids is None
    assert examples.views(np.arange(3), seed=0, step=1, pairs=np.arange(3)).negatives is None
