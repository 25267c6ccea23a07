"""The open door: any function of the global batch is exact for every W and micro-batch, and knows of none."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import mylab
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jobs.config import JobConfig
from jobs.data import Ids, Views
from jobs.losses import BatchFacts, JobLoss, LossInputs, contrastive_loss
from jobs.models import build
from jobs.train.step import MicroBatch, StepContext, _encode, consecutive, exact_gradients, share

PAIRS, HARD, WIDTH = 12, 2, 8


class Vocabulary:
    """As much of a tokenizer as a model needs to be built."""

    pad_token_id = 0

    def __len__(self) -> int:
        return 50


def job_of(name: str, *, dropout: float = 0.1, learned: bool = True, **sections: Any) -> JobConfig:
    loss = {"name": f"mylab:{name}", "temperature": "learned" if learned else 0.3} | sections.pop("loss", {})
    encoder = {"name": "bert", "width": 16, "layers": 2, "heads": 2, "projection_width": WIDTH, "precision": "fp64"}
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 1},
            "data": {"train": "x", "confirm": "x"},
            "batch": {"size": PAIRS} | sections.pop("batch", {}),
            "loss": loss,
            "model": encoder | {"dropout": dropout},
        }
        | sections
    )


def tokens(rows: int, longest: int, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (rows,), generator=draw)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, 50, (rows, longest), generator=draw) * mask, "attention_mask": mask}


def chunks_of(cuts: list[range], *, hard: bool) -> list[MicroBatch]:
    queries, keys, negatives = tokens(PAIRS, 7, 1), tokens(PAIRS, 9, 2), tokens(PAIRS * HARD, 6, 3)
    chunks = []
    for pairs in cuts:
        index = torch.arange(pairs.start, pairs.stop)
        inner = (index[:, None] * HARD + torch.arange(HARD)).reshape(-1)
        chosen = [{k: v[i] for k, v in t.items()} for t, i in ((queries, index), (keys, index), (negatives, inner))]
        chunks.append(MicroBatch(Views(chosen[0], chosen[1], chosen[2] if hard else None), index))
    return chunks


def gradients(
    job: JobConfig, *, micro: int = PAIRS, keep: int = 0, hard: bool = False, group: Any = None, steps: int = 1
) -> dict[str, Tensor]:
    """Of the last of some steps on this rank, with the state of the loss."""
    model = build(job, tokenizer=Vocabulary())
    loss = JobLoss(job)
    model.take_loss(loss.module, normalised=loss.normalised)
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    mine = share(PAIRS, rank=rank, world=world)
    own = slice(mine.start, mine.stop)
    ids = Ids(torch.arange(PAIRS)[own] % 5, torch.arange(PAIRS)[own] % 7)

    for step in range(1, steps + 1):

        def value(queries: Tensor, keys: Tensor, negatives: Tensor | None, step: int = step) -> Any:
            inputs = LossInputs(queries, keys, negatives, temperature=model.temperature(), **ids.given())
            return loss(inputs, BatchFacts(torch.arange(100, 100 + PAIRS)[own], step, job.seed), group)

        chunks = chunks_of(consecutive(mine, micro), hard=hard)
        result = exact_gradients(model, chunks, StepContext(3, step, group), loss=value, keep_graphs=keep)
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    state = {f"state {name}": x.double() for name, x in model.named_buffers() if name.startswith("loss_module.")}
    numbers = {"loss": result.loss, "norm": result.gradient_norm, "p": result.diagnostics.positive_probability}
    return gradient | state | {key: torch.tensor(number, dtype=torch.float64) for key, number in numbers.items()}


def assert_same(seen: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The whole gradient at once, as a zero gradient has no relative error of its own; numbers one by one."""
    assert seen.keys() == expected.keys()
    numbers = {key for key in seen if key in ("loss", "norm", "p", "log_temperature") or key.startswith("state ")}
    for name in sorted(numbers):
        torch.testing.assert_close(seen[name], expected[name], rtol=1e-10, atol=1e-13)
    flat, exact = (torch.cat([t[k].flatten() for k in sorted(t.keys() - numbers)]) for t in (seen, expected))
    assert float((flat - exact).norm() / exact.norm()) < 1e-12


def by_hand(job: JobConfig, function: Any, *, hard: bool = False) -> dict[str, Tensor]:
    """One process, one graph, the function called as its author would."""
    model = build(job, tokenizer=Vocabulary())
    loss = JobLoss(job)
    model.take_loss(loss.module, normalised=loss.normalised)
    chunk = chunks_of([range(PAIRS)], hard=hard)[0]
    queries, keys, *negatives = _encode(model, chunk, context=StepContext(3, 1))
    value = function(queries, keys, negatives[0] if negatives else None, model)
    value.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": value.detach()}


CASES: dict[str, dict[str, Any]] = {
    "vicreg": {"learned": False, "loss": {"options": {"covariance": 3.0}}},
    "Centred": {"loss": {"options": {"momentum": 0.5}}},
    "everything": {},
    "nested": {"learned": False, "loss": {"options": {"inner": {"scale": 3.0}}}},
    "banded": {"learned": False, "loss": {"options": {"low": 0.4, "high": 0.5}}},
}


def on_rank(cases: list[tuple[str, dict[str, Any], dict[str, Any]]], rank: int) -> list[dict[str, Tensor]]:
    return [gradients(job_of(name, **of_job), group=dist.group.WORLD, **how) for name, of_job, how in cases]


@pytest.mark.parametrize("name", CASES)
def test_the_step_has_the_gradient_of_the_function_called_by_hand(name: str) -> None:
    """Mutant checks: rows made unit for vicreg, or an option that is not passed, fails."""
    job = job_of(name, **CASES[name])

    def function(queries: Tensor, keys: Tensor, negatives: Tensor | None, model: Any) -> Tensor:
        rows = torch.arange(100, 100 + PAIRS)
        is_unit = torch.allclose(queries.norm(dim=1), torch.ones(PAIRS, dtype=queries.dtype))
        assert is_unit == (name != "vicreg")
        if name == "vicreg":
            return mylab.vicreg(queries, keys, covariance=3.0)
        if name == "Centred":
            assert model.loss_module.momentum == 0.5
            return model.loss_module(queries, keys, model.temperature(), rows, 1)  # type: ignore[no-any-return]
        if name == "nested":
            return mylab.nested(queries, keys, weights=(1.0, 0.5), inner=mylab.Inner(scale=3.0))
        if name == "banded":
            return mylab.banded(queries, keys, low=0.4, high=0.5)
        return mylab.everything(queries, keys, None, None, None, None, rows, model.temperature(), 1, noise=0.0)

    of_job = (
        {**CASES[name], "loss": {"options": {"noise": 0.0}, "mask_duplicates": False}} if name == "everything" else {}
    )
    if name == "everything":
        job = job_of(name, **of_job)
        expected = by_hand(job, function)
        model = build(job, tokenizer=Vocabulary())
        loss = JobLoss(job)
        facts = BatchFacts(torch.arange(100, 100 + PAIRS), 1, 0)

        def value(queries: Tensor, keys: Tensor, negatives: Tensor | None) -> Any:
            return loss(LossInputs(queries, keys, temperature=model.temperature()), facts, None)

        exact_gradients(model, chunks_of([range(PAIRS)], hard=False), StepContext(3, 1), loss=value)
        seen = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    else:
        expected, seen = by_hand(job, function), gradients(job)
    for key, gradient in expected.items():
        if key != "loss":
            torch.testing.assert_close(seen[key], gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("world", [2, 3])
def test_every_world_size_and_micro_batch_has_the_gradient_of_one_process(spawn_ranks: Any, world: int) -> None:
    """With dropout, hard negatives, groups of negatives, a parameter, a state and random numbers in the loss. Mutant
    checks: parameters that count on every rank, a state that each rank updates by its own rows, fail."""
    draw = random.Random(world)
    cases = []
    for name, of_job in CASES.items():
        for pool, hard in ((None, False), (None, True), (4, True), (6, False)):
            how = {"micro": draw.randint(1, PAIRS), "keep": draw.randint(0, 2), "hard": hard, "steps": 2}
            sections = {**of_job, "batch": {"pool": pool}, "dropout": draw.choice([0.0, 0.1, 0.5])}
            cases.append((name, sections, how))
    expected = [gradients(job_of(name, **sections), hard=bool(how["hard"]), steps=2) for name, sections, how in cases]
    for results in spawn_ranks(world, partial(on_rank, cases), timeout_s=300):
        for seen, exact in zip(results, expected, strict=True):
            assert_same(seen, exact)


@settings(max_examples=25)
@given(
    name=st.sampled_from([*CASES]),
    micro=st.integers(1, PAIRS),
    keep=st.integers(0, 3),
    dropout=st.sampled_from([0.0, 0.1, 0.5]),
    pool=st.sampled_from([None, 2, 3, 4, 6]),
    hard=st.booleans(),
)
def test_any_micro_batch_gives_the_same(
    name: str, micro: int, keep: int, dropout: float, pool: int | None, hard: bool
) -> None:
    job = job_of(name, **CASES[name], dropout=dropout, batch={"pool": pool})
    assert_same(gradients(job, micro=micro, keep=keep, hard=hard), gradients(job, hard=hard))


def test_a_module_is_called_once_for_each_group_of_negatives() -> None:
    assert gradients(job_of("Centred"), micro=2, steps=3)["state loss_module.calls"] == 3
    assert gradients(job_of("Centred", batch={"pool": 4}), micro=2, steps=3)["state loss_module.calls"] == 9


def test_random_numbers_of_a_loss_are_those_of_its_step() -> None:
    """And leave the process's own generator alone."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (gradients(job_of("everything"), steps=steps)["loss"] for steps in (1, 2))
    assert first != second
    torch.manual_seed(99)
    assert gradients(job_of("everything"))["loss"] == first
    torch.random.set_rng_state(before)


def test_a_module_begins_with_the_seed_of_the_job() -> None:
    modules = [JobLoss(job_of("Centred", seed=seed)).module for seed in (0, 0, 1)]
    scales = [module.scale.detach() for module in modules if isinstance(module, mylab.Centred)]
    assert torch.equal(scales[0], scales[1])
    assert not torch.equal(scales[0], scales[2])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("name", "same"), [("mylab:flat", "flatnce"), ("mylab:focal", "infonce")])
def test_a_function_of_rows_has_all_that_the_built_in_ones_have(name: str, same: str, symmetric: bool) -> None:
    """gamma = 0 is InfoNCE. Of pairs that all say the same, none is left, and nothing pushes."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randn(10, 6, generator=draw, dtype=torch.float64) for _ in range(2)]
    rows = [torch.nn.functional.normalize(x, dim=1) for x in rows]
    hard = torch.nn.functional.normalize(torch.randn(10, 2, 6, generator=draw, dtype=torch.float64), dim=-1)
    results = []
    for chosen in (name, same):
        leaves = [x.clone().requires_grad_() for x in (*rows, torch.tensor(0.2, dtype=torch.float64))]
        value, _ = contrastive_loss(
            leaves[0], leaves[1], name=chosen, temperature=leaves[2], symmetric=symmetric, hard_negatives=hard,
            hard_negative_weight=2.0, pair_ids=torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 5, 5]), margin=0.1, tile=3, pool=4,
            options={"gamma": 0.0} if chosen == "mylab:focal" else None,
        )  # fmt: skip
        results.append([value, *torch.autograd.grad(value, leaves)])
    for seen, exact in zip(*results, strict=True):
        torch.testing.assert_close(seen, exact, rtol=1e-11, atol=1e-13)


def test_the_weight_of_a_function_of_rows_is_its_derivative() -> None:
    """By finite differences of its value in the queries."""
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(6, 4, generator=draw, dtype=torch.float64)

    def value(queries: Tensor) -> Tensor:
        return contrastive_loss(queries, keys, name="mylab:focal", temperature=0.7, options={"gamma": 1.5})[0]

    assert torch.autograd.gradcheck(value, torch.randn(6, 4, generator=draw, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mylab:two_numbers", r"returned \[4\] torch.float64 on cpu; a loss returns one number"),
        ("mylab:detached", "returned a number without a gradient"),
        ("mylab:scored", "asks for scores, which the data do not have"),
    ],
)
def test_what_is_no_loss_is_refused_in_words(name: str, words: str) -> None:
    loss = JobLoss(job_of(name.partition(":")[2]))
    rows = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=words):
        loss(LossInputs(rows, rows), BatchFacts(torch.arange(4), 1, 0), None)


def refuse(rank: int) -> str:
    """Rank 1 alone has no scores."""
    loss = JobLoss(job_of("scored"))
    rows = torch.randn(2 + rank, WIDTH, dtype=torch.float64, requires_grad=True)
    facts = BatchFacts(torch.arange(2 + rank), 1, 0, scores=None if rank else torch.zeros(2))
    try:
        loss(LossInputs(rows, rows), facts, dist.group.WORLD)
    except ValueError as error:
        return str(error)
    return "nothing"


def test_all_ranks_refuse_what_one_refuses(spawn_ranks: Any) -> None:
    told = spawn_ranks(2, refuse)
    assert "rank 1 refused its arguments" in told[0]
    assert told[1].startswith("rank 1: ")
