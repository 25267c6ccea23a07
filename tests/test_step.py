"""The gradient contract: ranks, chunks and kept graphs change how a gradient is computed, never what it is."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config import JobConfig
from jobs.data import Views
from jobs.losses import contrastive_loss
from jobs.models import ContrastiveModel, build
from jobs.step import Chunk, exact_gradients, share

PAIRS, HARD = 12, 2


def sentence_job(dropout: float, **loss: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 1},
            "data": {"train": "x", "confirm": "x"},
            "batch": {"size": PAIRS},
            "loss": {"temperature": "learned"} | loss,
            "model": {
                "name": "bert",
                "width": 16,
                "layers": 2,
                "heads": 2,
                "projection_width": 8,
                "dropout": dropout,
                "precision": "fp64",
            },
        }
    )


class Vocabulary:
    """As much of a tokenizer as a model needs to be built."""

    pad_token_id = 0

    def __len__(self) -> int:
        return 50


def tokens(rows: int, longest: int, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (rows,), generator=draw)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, 50, (rows, longest), generator=draw) * mask, "attention_mask": mask}


def chunks_of(pairs: range, micro: int, hard: bool) -> list[Chunk]:
    queries, keys, negatives = tokens(PAIRS, 7, 1), tokens(PAIRS, 9, 2), tokens(PAIRS * HARD, 6, 3)
    found = []
    for start in range(pairs.start, pairs.stop, micro):
        index = torch.arange(start, min(start + micro, pairs.stop))
        inner = (index[:, None] * HARD + torch.arange(HARD)).reshape(-1)
        pick = [{k: v[i] for k, v in t.items()} for t, i in ((queries, index), (keys, index), (negatives, inner))]
        found.append(Chunk(Views(pick[0], pick[1], pick[2] if hard else None), index))
    return found


def gradients(
    *,
    dropout: float = 0.1,
    micro: int = PAIRS,
    keep: int = 0,
    hard: bool = False,
    group: Any = None,
    clip: Any = None,
    **loss: Any,
) -> dict[str, torch.Tensor]:
    job = sentence_job(dropout)
    model: ContrastiveModel = build(job, tokenizer=Vocabulary(), image_shape=None)
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def value(queries: torch.Tensor, keys: torch.Tensor, negatives: torch.Tensor | None) -> Any:
        return contrastive_loss(
            queries, keys, hard_negatives=negatives, temperature=model.temperature(), group=group, **loss
        )

    chunks = chunks_of(share(PAIRS, rank=rank, world=world), micro, hard)
    result = exact_gradients(model, chunks, loss=value, seed=3, step=5, keep_graphs=keep, clip=clip, group=group)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": torch.tensor(result.loss), "norm": torch.tensor(result.gradient_norm)}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Norm-relative, float64; the whole gradient at once, as a zero gradient has no relative error of its own."""
    assert found.keys() == expected.keys()
    assert "log_temperature" in found
    for name in ("log_temperature", "loss", "norm"):
        torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=1e-11, atol=0)
    flat, exact = (torch.cat([t[k].flatten().double() for k in sorted(t)]) for t in (found, expected))
    assert float((flat - exact).norm() / exact.norm()) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("micro", "keep"), [(1, 0), (5, 0), (6, 1), (3, 2), (5, 99)])
def test_accumulation_is_exact_with_dropout_and_a_learned_temperature(dropout: float, micro: int, keep: int) -> None:
    """5 does not divide 12. Mutant check: encoding again without dropout_keys, or slicing the wrong chunk, fails."""
    assert_same(gradients(dropout=dropout, micro=micro, keep=keep), gradients(dropout=dropout))


def test_dropout_is_on_so_that_the_tests_of_its_replay_are_not_vacuous() -> None:
    with_, without = gradients(dropout=0.1), gradients(dropout=0.0)
    assert abs(float(with_["loss"] - without["loss"])) > 1e-6


@pytest.mark.parametrize("name", ["infonce", "infonce_ce", "infonce_matched", "dcl", "flatnce", "siglip"])
def test_every_loss_accumulates_exactly_with_hard_negatives(name: str) -> None:
    assert_same(gradients(name=name, hard=True, micro=5), gradients(name=name, hard=True))


@settings(max_examples=10, deadline=None)
@given(micro=st.integers(1, 13), keep=st.integers(0, 13), pool=st.sampled_from([2, 3, 4, 6, 12]))
def test_pools_do_not_depend_on_chunks(micro: int, keep: int, pool: int) -> None:
    assert_same(gradients(micro=micro, keep=keep, pool=pool), gradients(pool=pool))


def rank_gradients(options: list[dict[str, Any]], rank: int) -> list[dict[str, torch.Tensor]]:
    return [gradients(group=dist.group.WORLD, **one) for one in options]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_gradient_does_not_depend_on_the_number_of_ranks(spawn_ranks: Any, world: int) -> None:
    """5 ranks do not divide 12 pairs. Mutant check: a mean in place of the sum over ranks fails every case."""
    options: list[dict[str, Any]] = [
        {},
        {"micro": 2, "exchange": "ring", "dropout": 0.5},
        {"micro": 2, "keep": 1, "hard": True, "symmetric": True},
        {"name": "flatnce", "pool": 4, "micro": 3},
        {"name": "infonce_matched", "clip": 1e-3},
    ]
    for per_rank in spawn_ranks(world, partial(rank_gradients, options)):
        for one, found in zip(options, per_rank, strict=True):
            alone = {key: value for key, value in one.items() if key not in ("micro", "keep", "exchange")}
            assert_same(found, gradients(**alone))


def count_collectives(micro: int, rank: int) -> dict[str, int]:
    counted = {"parameters": 0, "all": 0}
    real = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counted["all"] += 1
        counted["parameters"] += tensor.numel() > 1000
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counting
    gradients(group=dist.group.WORLD, micro=micro)
    return counted


def test_one_all_reduce_of_the_gradient_however_many_chunks(spawn_ranks: Any) -> None:
    """Mutant check: summing gradients after every chunk makes twelve of it."""
    whole, chunked = (spawn_ranks(2, partial(count_collectives, micro)) for micro in (6, 1))
    assert [one["parameters"] for one in chunked] == [1, 1]
    assert whole == chunked


def test_clipping_looks_at_the_whole_gradient() -> None:
    free, clipped = gradients(), gradients(clip=1e-3)
    assert float(free["norm"]) == pytest.approx(float(clipped["norm"])) != pytest.approx(1e-3)
    norm = torch.cat([v.flatten() for k, v in clipped.items() if k not in ("loss", "norm")]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@given(size=st.integers(1, 100), world=st.integers(1, 9))
def test_shares_are_consecutive_and_differ_by_one_pair_at_most(size: int, world: int) -> None:
    shares = [share(size, rank=rank, world=world) for rank in range(world)]
    assert [pair for one in shares for pair in one] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
