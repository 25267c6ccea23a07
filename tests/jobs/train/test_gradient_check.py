"""The gradient check: silent where the step is exact, loud where it is not, and without a trace in training."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from test_train import job, sentence_job, trained, values, weights
from torch import Tensor

from jobs import data
from jobs.config import JobConfig, Loss
from jobs.core.collectives import gather_rows, sum_gradients
from jobs.data import Ids
from jobs.losses import JobLoss, LossInputs, contrastive_loss
from jobs.models import dropout_keys
from jobs.train import Training, gradient_check, step
from jobs.train.gradient_check import GradientMismatch, Tolerance, compare, dense_loss, tolerance

EXACT = {"model__precision": "fp64", "model__dropout": 0.1, "loss__temperature": "learned", "execution__verify": True}


# The dense losses


@pytest.mark.parametrize("name", ["infonce", "infonce_ce", "infonce_matched", "dcl", "flatnce", "siglip"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": True, "margin": 0.2},
        {"same_side": True, "symmetric": True},
        {"hard": 2, "hard_negative_weight": 1.7, "symmetric": True},
        {"hard": 1, "pool": 4, "ids": True},
        {"bias": -3.0, "ids": True},
        {"hard": 2, "pool": 4, "ids": True, "texts": True},
        {"symmetric": True, "hard": 2, "ids": True, "texts": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_the_dense_loss_has_the_gradient_of_the_streamed_one(name: str, options: dict[str, Any]) -> None:
    """Two computations with nothing in common. Mutant checks: any option left out of the dense one fails."""
    if (name == "siglip" and "same_side" in options) or (name != "siglip" and "bias" in options):
        return
    draw = torch.Generator().manual_seed(1)
    hard = options.get("hard", 0)
    shapes = [(10, 6), (10, 6)] + ([(10, hard, 6)] if hard else [])
    sides = [F.normalize(torch.randn(*s, generator=draw, dtype=torch.float64), dim=-1) for s in shapes]
    ids = Ids(torch.tensor([0, 1, 2, 1, 4, 5, 5, 5, 8, 9])) if "ids" in options else None
    if "texts" in options:
        drawn = torch.randint(0, 20, (10, 1 + hard), generator=draw)
        ids = Ids(torch.tensor([0, 1, 2, 1, 4, 5, 5, 5, 8, 9]), drawn[:, 0], drawn[:, 1:])
    pool = options.get("pool")
    loss = Loss(name=name, **{k: v for k, v in options.items() if k not in ("hard", "pool", "ids", "texts")})
    tau = torch.tensor(0.3, dtype=torch.float64)
    given: dict[str, Any] = {} if ids is None else dict(ids.given())
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for gradients in (found, expected):
        leaves = [x.clone().requires_grad_() for x in (*sides, tau)]
        q, k, *rest = leaves[:-1]
        h = rest[0] if rest else None
        if gradients is found:
            value = dense_loss(loss, q, k, h, ids=ids, pool=pool or 10, temperature=leaves[-1])
        else:
            value, _ = contrastive_loss(
                q, k, name=name, temperature=leaves[-1], hard_negatives=h, pool=pool, bias=loss.bias,
                margin=loss.margin, symmetric=loss.symmetric, same_side=loss.same_side,
                hard_negative_weight=loss.hard_negative_weight, **given,
            )  # fmt: skip
        gradients += list(torch.autograd.grad(value, leaves))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# Silence


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", ["infonce", "infonce_ce", "infonce_matched", "flatnce", "siglip"])
def test_it_is_silent_where_the_step_is_exact(tmp_path: Path, precision: str, name: str) -> None:
    settings = {"loss__name": name, "model__precision": precision, "model__dropout": 0.1, "execution__micro": 5}
    training = Training(job(execution__verify=True, **settings), tmp_path, log=lambda _: None)
    training.advance(1)
    assert training.step == 1


SILENT: list[dict[str, Any]] = [
    {},
    {"execution__micro": 2, "execution__exchange": "ring", "loss__symmetric": True},
    {"loss__name": "infonce_matched", "batch__pool": 4, "execution__micro": 3, "execution__keep_graphs": 1},
]


def verified(settings: list[dict[str, Any]], folder: Path, rank: int) -> list[str]:
    said: list[str] = []
    for number, one in enumerate(settings):
        config = job(**EXACT | one | {"execution__ranks": dist.get_world_size()})
        Training(config, folder / str(number), group=dist.group.WORLD, log=said.append).advance(1)
    return [line for line in said if "gradient check" in line]


@pytest.mark.soak
@pytest.mark.parametrize("world", [2, 3])
def test_it_is_silent_on_ranks_that_are_exact(tmp_path: Path, spawn_ranks: Any, world: int) -> None:
    for said in spawn_ranks(world, partial(verified, SILENT, tmp_path)):
        assert len(said) == len(SILENT)


def test_it_covers_sentences_hard_negatives_token_budgets_and_the_auxiliary_loss(tmp_path: Path) -> None:
    settings = {"loss__mlm_weight": 0.2, "execution__micro_tokens": 80, "execution__verify": True}
    config = sentence_job(tmp_path, hard=True, **settings)
    said: list[str] = []
    Training(config, tmp_path / "trial", log=said.append).advance(1)
    assert any("gradient check" in line for line in said)


def test_pairs_that_all_share_a_text_are_compared_all_the_same(tmp_path: Path) -> None:
    """Of the few that are compared nothing may be left where something is of the batch: 0 is 0 on any ranks."""
    rows = [{"anchor": f"say {k}", "positive": "one" if k < 60 else f"other {k}"} for k in range(64)]
    config = sentence_job(tmp_path, hard=False, batch__size=64, execution__verify=True)
    (tmp_path / "alike.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": str(tmp_path / "alike.jsonl")})})
    for seed in range(99):  # until the first 32 of the batch are among the 60
        order = data.batch_rows(64, size=64, seed=seed, step=1)
        if (order[:32] < 60).all():
            break
    said: list[str] = []
    Training(config.model_copy(update={"seed": seed}), tmp_path / "trial", log=said.append).advance(1)
    (line,) = [line for line in said if line.startswith("gradient check")]
    assert "by 0 of" not in line


def test_training_with_it_is_bit_for_bit_training_without(tmp_path: Path) -> None:
    """Batch norm's statistics and torch's generator included. Mutant checks: not putting the buffers back fails, and
    so does a step in place of the gradients."""
    settings = {"model__norm": "batch", "optimizer__name": "sgd", "budget__steps": 3}
    torch.manual_seed(5)
    without = trained(job(**settings), tmp_path / "without")
    state = torch.get_rng_state()
    torch.manual_seed(5)
    with_ = trained(job(**settings, execution__verify=True), tmp_path / "with")
    assert torch.equal(torch.get_rng_state(), state)
    assert values(with_.points) == values(without.points)
    plain = weights(tmp_path / "without")
    assert all(torch.equal(value, plain[name]) for name, value in weights(tmp_path / "with").items())


# Noise


def averaged(parameters: Any, group: Any) -> None:
    parameters = list(parameters)
    sum_gradients(parameters, group)
    for parameter in parameters:
        parameter.grad /= dist.get_world_size(group)


class LocalLoss(JobLoss):
    """Own queries against everybody's keys, which come without their gradient: OpenCLIP's local loss, gathered so."""

    def __call__(self, inputs: LossInputs, *_: Any, **__: Any) -> Any:
        queries, keys = inputs.queries, inputs.keys
        rank, world = dist.get_rank(), dist.get_world_size()
        counts = [len(step.share(16, rank=r, world=world)) for r in range(world)]
        whole = gather_rows(keys, counts, dist.group.WORLD).detach().clone()
        first = sum(counts[:rank])
        whole[first : first + len(keys)] = keys
        value = F.cross_entropy(queries @ whole.T / 0.1, torch.arange(first, first + len(keys)), reduction="sum") / 16
        diagnostics = contrastive_loss(queries.detach(), keys.detach(), group=dist.group.WORLD)[1]
        return value, diagnostics


def stale_dropout() -> Callable[..., Any]:
    """Other masks at every encoding."""
    calls = itertools.count()
    return lambda *, seed, step, rows: dropout_keys(seed=seed + next(calls), step=step, rows=rows)


def refused(folder: Path, rank: int) -> dict[str, tuple[str, bool]]:
    """What each mutant is told, and whether it trained all the same."""
    told: dict[str, tuple[str, bool]] = {}
    cases: dict[str, dict[str, Any]] = {
        "sound": {},
        "averaged": {},
        "local": {"loss__temperature": 0.1},
        "one rank": {},
    }
    for name, settings in cases.items():
        config = job(**EXACT | {"execution__ranks": dist.get_world_size()} | settings)
        training = Training(config, folder / name, group=dist.group.WORLD, log=lambda _: None)
        before = [p.detach().clone() for p in training.model.parameters()]
        with pytest.MonkeyPatch.context() as patch:
            if name == "averaged":
                patch.setattr(step, "sum_gradients", averaged)
            if name == "local":
                patch.setattr(training, "loss", LocalLoss(training.job))
            if name == "one rank" and rank == 1:
                patch.setattr(gradient_check, "compare", lambda *_: {"encoder.stem.weight": 0.5})
            try:
                training.advance(1)
                text = ""
            except GradientMismatch as error:
                text = str(error)
        same = all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))
        told[name] = (text, not same)
    return told


@pytest.mark.few(1)
@pytest.mark.parametrize("world", [2, 3])
def test_averaging_over_ranks_and_gathering_without_gradient_are_refused(
    tmp_path: Path, spawn_ranks: Any, world: int
) -> None:
    """These are the mutants. An error on one rank ends all of them."""
    for rank, told in enumerate(spawn_ranks(world, partial(refused, tmp_path))):
        assert told["sound"] == ("", True)
        assert f"by {1 - 1 / world:.2g} of its norm" in told["averaged"][0]
        assert f"ranks = {world}" in told["averaged"][0]
        assert "is not the one of a single process" in told["local"][0]
        blamed = "that of encoder.stem.weight differs by 0.5" if rank == 1 else "rank 1 found"
        assert blamed in told["one rank"][0]
        assert not any(trained for name, (_, trained) in told.items() if name != "sound")


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_dropout_that_is_not_replayed_is_refused(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "dropout_keys", stale_dropout())
    settings = {"model__precision": precision, "model__dropout": 0.1, "execution__micro": 4}
    training = Training(job(execution__verify=True, **settings), tmp_path, log=lambda _: None)
    with pytest.raises(GradientMismatch, match=r"micro = 4.*execution.verify = false"):
        training.advance(1)


def test_a_chunk_that_is_left_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = step.exact_gradients
    monkeypatch.setattr(
        "jobs.train.loop.exact_gradients", lambda model, chunks, *c, **o: real(model, chunks[:-1], *c, **o)
    )
    training = Training(
        job(execution__verify=True, execution__micro=4, loss__mask_duplicates=False), tmp_path, log=lambda _: None
    )
    with pytest.raises(GradientMismatch):
        training.advance(1)


# The measure


def test_a_zero_gradient_is_measured_by_the_whole_and_a_missing_one_counts_as_zero() -> None:
    allowed = Tolerance(relative=1e-4, floor=0.1)
    large, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    expected: dict[str, Tensor | None] = {"a": large, "b": zero, "c": None, "d": large * 0}
    found: dict[str, Tensor | None] = {"a": large * 1.1, "b": zero + 1e-3, "c": None, "d": None}
    errors = compare(found, expected, allowed)
    assert errors == pytest.approx({"a": 0.1, "b": 1e-3 * 2**0.5 / 0.5, "c": 0.0, "d": 0.0})
    assert compare({"a": None}, {"a": large}, allowed) == {"a": 1.0}
    assert compare({"a": large}, {"a": None}, allowed) == {"a": float("inf")}
    assert not compare({"a": large * torch.nan}, {"a": large}, allowed)["a"] <= 1


@pytest.mark.parametrize("temperature", [0.001, 0.05, 1.0])
def test_no_tolerance_lets_two_averaged_ranks_pass(temperature: float) -> None:
    for precision in ("fp64", "fp32", "bf16"):
        assert tolerance(job(model__precision=precision), temperature).relative < 0.5


@pytest.mark.parametrize(
    ("size", "world", "largest", "micro", "expected"),
    [
        (256, 1, 256, None, 32),
        (256, 2, 8, 8, 8),
        (256, 16, 4, 4, 32),
        (256, 64, 4, None, 64),
        (16, 2, 8, None, 16),
        (256, 1, 1, 1, 2),
    ],
)
def test_as_many_pairs_are_compared_as_fit(
    size: int, world: int, largest: int, micro: int | None, expected: int
) -> None:
    config = JobConfig.model_validate(
        job().model_dump() | {"batch": {"size": size}, "execution": {"micro": micro, "ranks": world}}
    )
    assert gradient_check.pairs(config, world=world, largest=largest) == expected
