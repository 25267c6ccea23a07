"""The loss is exact: against float64 autograd on the whole batch, however the batch is split, streamed and rounded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import SpawnRanks
from oracles import Answer, Batch, error, oracle
from torch import Tensor

from jobs.losses import Diagnostics, contrastive_loss

LOSSES = ("infonce", "infonce_ce", "infonce_matched", "dcl", "flatnce", "siglip")
TAU = 0.125
"""A power of two, so that it is the same number in every dtype."""

BARS = {torch.float64: 1e-12, torch.float32: 2e-6 * max(1, 0.2 / TAU), torch.bfloat16: 2**-8}
"""Norm-relative error of a gradient. bfloat16: inputs are exact, the result is rounded to 8 bits."""

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"symmetric": True},
    {"symmetric": True, "same_side": True, "margin": 0.1},
    {"symmetric": True, "hard": 3, "hard_negative_weight": 2.5},
    {"symmetric": True, "ids": True},
    {"pool": 4, "ids": True, "hard": 2, "hard_negative_weight": 0.5},
    {"pool": 5, "same_side": True, "margin": 0.2, "ids": True},
)


@dataclass(frozen=True)
class How:
    """How a case is computed: never changes the answer."""

    counts: tuple[int, ...]
    exchange: str = "gather"
    tile: int | None = None
    dtype: torch.dtype = torch.float64


def batch(
    b: int, *, width: int = 8, hard: int = 0, ids: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64,
    temperature: float = TAU, **options: Any,
) -> Batch:  # fmt: skip
    """Unit rows that `dtype` can hold, keys near their queries; ids repeat, far apart in the batch too."""
    g = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)

    q = unit(b, width)
    k = F.normalize(q + 0.7 * unit(b, width), dim=-1)
    n = unit(b, hard, width).to(dtype).double() if hard else None
    labels = torch.randint(0, max(2, b // 2), (b,), generator=g) * 2**40 if ids else None
    if options.get("name") == "siglip":
        options.setdefault("bias", -1.5)
    return Batch(q.to(dtype).double(), k.to(dtype).double(), n, labels, temperature, options)


def variant(name: str, number: int) -> dict[str, Any]:
    options = {"name": name, **VARIANTS[number % len(VARIANTS)]}
    if name == "siglip":
        options.pop("same_side", None)
    return options


def answer(case: Batch, how: How, rank: int = 0, group: dist.ProcessGroup | None = None) -> Answer:
    """What one rank computes from its rows of the batch."""
    mine = slice(sum(how.counts[:rank]), sum(how.counts[: rank + 1]))
    cut = dataclasses.replace(
        case, queries=case.queries[mine], keys=case.keys[mine], hard=None if case.hard is None else case.hard[mine]
    )
    q, k, n = cut.leaves(how.dtype)
    options = dict(case.options)
    bias = torch.tensor(options.pop("bias", 0.0), dtype=torch.float64, requires_grad=True)
    if options["name"] == "siglip":
        options["bias"] = bias
    tau = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    loss, _ = contrastive_loss(
        q, k, temperature=tau, hard_negatives=n, pair_ids=None if case.ids is None else case.ids[mine],
        group=group, tile=how.tile, exchange=how.exchange, **options,
    )  # fmt: skip
    loss.backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    assert k.grad is not None
    return Answer(float(loss.detach()), q.grad, k.grad, None if n is None else n.grad, tau.grad, bias.grad)


def answers(cases: Sequence[tuple[Batch, How]], rank: int) -> list[Answer]:
    return [answer(case, how, rank, dist.group.WORLD) for case, how in cases]


def joined(parts: Sequence[Answer]) -> Answer:
    """The whole batch's answer: rows below one another, parameters' gradients summed."""

    def over_ranks(name: str, join: Any) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else join(found)

    assert len({part.loss for part in parts}) == 1, "the loss is the same number on every rank"
    rows = [over_ranks(name, torch.cat) for name in ("queries", "keys", "hard")]
    totals = [over_ranks(name, lambda found: torch.stack(found).sum(0)) for name in ("temperature", "bias")]
    return Answer(parts[0].loss, *rows, *totals)


def check(found: Answer, expected: Answer, bar: float) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=min(bar, 1e-6), abs=1e-12)
    mine = found.gradients()
    for name, gradient in expected.gradients().items():
        assert error(mine[name], gradient) <= bar, f"gradient of {name}"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_split_stream_and_exchange_gives_the_whole_batchs_gradient(spawn_ranks: SpawnRanks, world: int) -> None:
    splits = {1: [(13,)], 2: [(6, 7), (13, 0)], 3: [(4, 0, 9), (5, 4, 4)]}[world]
    exchanges = ["gather", "ring"] if world > 1 else ["gather"]
    dtypes = list(BARS)
    cases, expected = [], []
    for number, (name, exchange, tile, dtype) in enumerate(itertools.product(LOSSES, exchanges, [None, 1, 5], dtypes)):
        for offset in (0, 3) if world > 1 else range(len(VARIANTS)):
            case = batch(13, seed=number, dtype=dtype, **variant(name, number + offset))
            cases.append((case, How(splits[(number + offset) % len(splits)], exchange, tile, dtype)))
            expected.append(oracle(case))
    if world == 1:
        parts = [[answer(case, how) for case, how in cases]]
    else:
        parts = spawn_ranks(world, partial(answers, cases))
    for (case, how), whole, *ranks in zip(cases, expected, *parts, strict=True):
        try:
            check(joined(ranks), whole, BARS[how.dtype])
        except AssertionError as failure:
            failure.add_note(f"{case.options}, {how}")
            raise
