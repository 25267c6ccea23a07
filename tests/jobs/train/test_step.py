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
from jobs.models.mlm import Masking
from jobs.train.step import MicroBatch, StepContext, _SavedBytes, consecutive, exact_gradients, share, within_tokens

PAIRS, HARD = 12, 2


def sentence_job(dropout: float, width: int = 16, **loss: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 1},
            "data": {"train": "x", "confirm": "x"},
            "batch": {"size": PAIRS},
            "loss": {"temperature": "learned"} | loss,
            "model": {
                "name": "bert",
                "width": width,
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


ABSENT = torch.tensor([at % 5 in (1, 2) for at in range(PAIRS * HARD)])
"""Places of hard negatives that are not there, in batches that lack some: both of pair 3, one of most others."""


def chunks_of(cuts: list[range], hard: bool, *, lacking: bool = False) -> list[MicroBatch]:
    queries, keys, negatives = tokens(PAIRS, 7, 1), tokens(PAIRS, 9, 2), tokens(PAIRS * HARD, 6, 3)
    found = []
    for pairs in cuts:
        index = torch.arange(pairs.start, pairs.stop)
        inner = (index[:, None] * HARD + torch.arange(HARD)).reshape(-1)
        pick = [{k: v[i] for k, v in t.items()} for t, i in ((queries, index), (keys, index), (negatives, inner))]
        absent = ABSENT[inner] if lacking else None
        found.append(MicroBatch(Views(pick[0], pick[1], pick[2] if hard else None, absent), index))
    return found


def gradients(
    *,
    dropout: float = 0.1,
    micro: int = PAIRS,
    keep: int = 0,
    memory_mb: int | None = None,
    budget: int | None = None,
    hard: bool = False,
    lacking: bool = False,
    masking: Masking | None = None,
    group: Any = None,
    clip: Any = None,
    width: int = 16,
    **loss: Any,
) -> dict[str, torch.Tensor]:
    """Of one step on this rank. micro: pairs of a chunk, or budget: tokens of one."""
    job = sentence_job(dropout, width=width, mlm_weight=masking.weight if masking else 0.0)
    model: ContrastiveModel = build(job, tokenizer=Vocabulary(), image_shape=None)
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    def value(queries: torch.Tensor, keys: torch.Tensor, negatives: torch.Tensor | None) -> Any:
        return contrastive_loss(
            queries, keys, hard_negatives=negatives, temperature=model.temperature(), group=group, **loss
        )

    mine = share(PAIRS, rank=rank, world=world)
    cuts = consecutive(mine, micro)
    if budget is not None:
        longest = [int(max(a, b)) for a, b in zip(lengths(7, 1), lengths(9, 2), strict=True)]
        cuts = within_tokens(mine, longest[mine.start : mine.stop], sentences=2, budget=budget)
        assert 1 < len(cuts) < len(mine)
    result = exact_gradients(
        model, chunks_of(cuts, hard, lacking=lacking), StepContext(3, 5, group), loss=value, keep_graphs=keep,
        graph_memory_mb=memory_mb, masking=masking, clip=clip,
    )  # fmt: skip
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    numbers = {"loss": result.loss, "norm": result.gradient_norm, "mlm_loss": result.mlm_loss}
    return found | {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items() if v is not None}


def lengths(longest: int, seed: int) -> list[int]:
    return tokens(PAIRS, longest, seed)["attention_mask"].sum(1).tolist()


NUMBERS = ("log_temperature", "loss", "norm", "mlm_loss")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Norm-relative, float64; the whole gradient at once, as a zero gradient has no relative error of its own."""
    assert found.keys() == expected.keys()
    assert "log_temperature" in found
    for name in found.keys() & NUMBERS:
        torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=1e-11, atol=0)
    flat, exact = (torch.cat([t[k].flatten().double() for k in sorted(t)]) for t in (found, expected))
    assert float((flat - exact).norm() / exact.norm()) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("micro", "keep"), [(1, 0), (5, 0), (6, 1), (3, 2), (5, 99)])
def test_accumulation_is_exact_with_dropout_and_a_learned_temperature(dropout: float, micro: int, keep: int) -> None:
    """5 does not divide 12. Mutant check: encoding again without dropout_keys, or slicing the wrong chunk, fails."""
    assert_same(gradients(dropout=dropout, micro=micro, keep=keep), gradients(dropout=dropout))


@pytest.mark.parametrize("budget", [30, 60, 100])
def test_chunks_of_a_token_budget_are_exact(budget: int) -> None:
    assert_same(gradients(budget=budget), gradients())


@given(lengths=st.lists(st.integers(1, 9), max_size=20), sentences=st.integers(2, 4), budget=st.integers(1, 90))
def test_a_token_budget_is_filled_greedily_and_never_exceeded(lengths: list[int], sentences: int, budget: int) -> None:
    """But by a single pair. Mutant checks: counting tokens without their padding fails, so does > in place of >=."""

    def padded(pairs: range) -> int:
        return len(pairs) * sentences * max(lengths[pair - 7] for pair in pairs)

    cuts = within_tokens(range(7, 7 + len(lengths)), lengths, sentences=sentences, budget=budget)
    assert [pair for one in cuts for pair in one] == list(range(7, 7 + len(lengths)))
    assert all(len(one) == 1 or (one and padded(one) <= budget) for one in cuts)
    assert all(padded(range(one.start, one.stop + 1)) > budget for one in cuts[:-1])


@pytest.mark.parametrize("options", [{"keep": 1}, {"keep": 99}, {"memory_mb": 1}, {"memory_mb": 99}])
def test_kept_graphs_change_not_one_bit(options: dict[str, Any]) -> None:
    """Mutant check: pushing the kept chunks through last fails this."""
    found, expected = gradients(micro=2, dropout=0.5, **options), gradients(micro=2, dropout=0.5)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("width", "micro", "memory_mb", "kept"),
    [(16, 1, 1, "some"), (16, 1, 99, "all"), (64, 6, 1, "none")],
)
def test_a_memory_budget_keeps_the_first_graphs_that_fit(
    monkeypatch: pytest.MonkeyPatch, width: int, micro: int, memory_mb: int, kept: str
) -> None:
    """Mutant check: without adding up what is held, or without dropping the one that does not fit, these fail."""
    graphed: list[bool] = []
    held: list[int] = []
    embed = ContrastiveModel.embed

    def counting(model: ContrastiveModel, inputs: Any) -> torch.Tensor:
        with (saved := _SavedBytes(model)):
            embedded = embed(model, inputs)
        held.append(saved.count)
        return embedded

    def watched(model: ContrastiveModel, inputs: Any) -> torch.Tensor:
        graphed.append(torch.is_grad_enabled())
        return embed(model, inputs)

    monkeypatch.setattr(ContrastiveModel, "embed", counting)
    gradients(micro=micro, keep=PAIRS, width=width)
    monkeypatch.setattr(ContrastiveModel, "embed", watched)
    gradients(micro=micro, memory_mb=memory_mb, width=width)
    chunks = len(held)
    again = len(graphed) - chunks
    assert {"all": again == 0, "some": 0 < again < chunks, "none": again == chunks}[kept]
    limit, largest = memory_mb * 2**20, max(held)
    assert sum(held[: chunks - again]) <= limit
    assert again == 0 or sum(held[: chunks - again]) + largest > limit
    tried = sum(graphed[:chunks])
    assert all(sum(held[:n]) + max(held[:n], default=0) <= limit for n in range(tried)), "tried what could not fit"


def test_saved_bytes_count_each_memory_once_and_parameters_not() -> None:
    """Mutant checks: counting parameters, or a tensor as often as it is saved, fails this."""
    weight = torch.nn.Linear(3, 5, bias=False, dtype=torch.float64)
    x = torch.ones(7, 3, dtype=torch.float64, requires_grad=True)
    with (saved := _SavedBytes(weight)):
        y = weight(x).exp()
        (y * y.T.T).sum().backward()
    assert saved.count == x.nbytes + y.nbytes


def test_a_graph_that_was_changed_in_place_is_an_error_with_a_memory_budget_too() -> None:
    x = torch.ones(3, requires_grad=True)
    with _SavedBytes(torch.nn.Identity()):
        y = x.exp()
    y.detach().mul_(2)
    with pytest.raises(RuntimeError, match="changes in place"):
        y.sum().backward()


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


@pytest.mark.parametrize("world", [2, 3, pytest.param(5, marks=pytest.mark.soak)])
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


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ({"micro": 4, "micro_tokens": 64}, "both say how large a micro-batch is"),
        ({"keep_graphs": 1, "graph_memory_mb": 64}, "both say how many graphs are kept"),
    ],
)
def test_two_settings_of_one_thing_are_refused(execution: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        JobConfig.model_validate(sentence_job(0.1).model_dump() | {"execution": execution})
