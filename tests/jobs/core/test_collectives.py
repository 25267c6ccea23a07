"""Collectives move rows bit for bit, sum once, and end with a named error when ranks do not agree."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankDiedError, SpawnRanks
from torch import Tensor, nn

from jobs.core.collectives import (
    agree,
    broadcast,
    gather_rows,
    rank_of,
    ring,
    sum_gradients,
    sum_rows,
    world_of,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)
COUNTS = ([2, 3], [0, 4], [3, 0], [0, 0], [1, 1])


def rows(rank: int, count: int, dtype: torch.dtype) -> Tensor:
    """Rows that say whose they are, NaN among them where the dtype has one."""
    x = (torch.arange(count * 3).reshape(count, 3) + 100 * rank) % 251
    filled = x.to(dtype)
    if dtype.is_floating_point and count:
        filled[0, 0] = torch.nan
    return filled


def gather_everything(rank: int) -> list[Tensor]:
    return [gather_rows(rows(rank, c[rank], d), c, dist.group.WORLD) for c in COUNTS for d in DTYPES]


def test_gather_joins_uneven_and_empty_ranks_in_order_bit_for_bit(spawn_ranks: SpawnRanks) -> None:
    """Mutant checks: without padding the counts [2, 3] fail; without cutting it off again they fail too."""
    expected = [torch.cat([rows(rank, n, d) for rank, n in enumerate(c)]) for c in COUNTS for d in DTYPES]
    for gathered in spawn_ranks(2, gather_everything):
        for found, wanted in zip(gathered, expected, strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def visit_everybody(rank: int) -> list[tuple[int, Tensor, Tensor]]:
    counts = [2, 0, 3]
    own = [rows(rank, counts[rank], torch.bfloat16), torch.full((counts[rank],), rank)]
    return [(source, x.clone(), ids.clone()) for source, (x, ids) in ring(own, counts, dist.group.WORLD)]


def test_the_ring_brings_every_ranks_rows_once_own_first(spawn_ranks: SpawnRanks) -> None:
    """Mutant check: passing the own rows on at every hop, in place of the held ones, fails this."""
    for rank, visits in enumerate(spawn_ranks(3, visit_everybody)):
        assert [source for source, _, _ in visits] == [rank, (rank - 1) % 3, (rank - 2) % 3]
        for source, x, ids in visits:
            count = [2, 0, 3][source]
            torch.testing.assert_close(x, rows(source, count, torch.bfloat16), rtol=0, atol=0, equal_nan=True)
            assert ids.tolist() == [source] * count


def gradients(rank: int) -> tuple[list[Tensor | None], list[int]]:
    """Gradients after the sum, and the elements of every all_reduce."""
    zeros = [torch.zeros(2, 3), torch.zeros(()), torch.zeros(4), torch.zeros(5, dtype=torch.float64)]
    parameters = [*map(nn.Parameter, zeros), nn.Parameter(torch.zeros(7), requires_grad=False)]
    parameters[0].grad = torch.full((2, 3), 1.0 + rank)
    parameters[1].grad = torch.tensor(10.0) if rank == 1 else None
    parameters[3].grad = torch.full((5,), 0.5, dtype=torch.float64)
    reduced: list[int] = []
    real = dist.all_reduce

    def counting(x: Tensor, **kwargs: Any) -> Any:
        reduced.append(x.numel())
        return real(x, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counting)
        sum_gradients(parameters, dist.group.WORLD)
    return [p.grad for p in parameters], reduced


def test_gradients_are_summed_by_one_all_reduce_per_dtype(spawn_ranks: SpawnRanks) -> None:
    """None on one rank counts as 0; None on every rank stays None. Mutant check: a mean in place of a sum fails."""
    for (first, scalar, unused, double, frozen), reduced in spawn_ranks(2, gradients):
        assert torch.equal(first, torch.full((2, 3), 3.0))
        assert float(scalar) == 10.0
        assert unused is None
        assert frozen is None
        assert torch.equal(double, torch.ones(5, dtype=torch.float64))
        assert len(reduced) == 2


def sums(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.tensor([1.0, 2.0]) * (rank + 1)
    return sum_rows(x, dist.group.WORLD), broadcast(x, dist.group.WORLD, source=1), x


def test_sum_and_broadcast_leave_their_input_alone(spawn_ranks: SpawnRanks) -> None:
    for rank, (total, sent, x) in enumerate(spawn_ranks(2, sums)):
        assert total.tolist() == [3.0, 6.0]
        assert sent.tolist() == [2.0, 4.0]
        assert x.tolist() == [1.0 * (rank + 1), 2.0 * (rank + 1)]


def headers(rank: int) -> list[list[int]]:
    return agree([rank, -(2**62), 2**62], dist.group.WORLD, what="a place")


def test_agreement_gives_every_header_in_rank_order(spawn_ranks: SpawnRanks) -> None:
    for found in spawn_ranks(3, headers):
        assert found == [[rank, -(2**62), 2**62] for rank in range(3)]


def wander(rank: int) -> str:
    try:
        agree([1] * (rank + 1), dist.group.WORLD, what=["the loss", "the evaluation"][rank])
    except RuntimeError as error:
        return str(error)
    return "met"


def test_ranks_that_meet_from_different_places_are_all_told(spawn_ranks: SpawnRanks) -> None:
    for told in spawn_ranks(2, wander):
        assert "rank 0 at 'the loss', rank 1 at 'the evaluation'" in told


def die(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gather_rows(torch.ones(2, 2), [2, 2], dist.group.WORLD)


def test_a_killed_rank_is_reported_within_seconds(spawn_ranks: SpawnRanks) -> None:
    began = time.monotonic()
    with pytest.raises((RankDiedError, RuntimeError), match=r"rank 1 died|Connection|closed|reset"):
        spawn_ranks(2, die)
    assert time.monotonic() - began < 10


def fail(rank: int) -> None:
    if rank == 1:
        raise ZeroDivisionError("mine")
    gather_rows(torch.ones(2, 2), [2, 2], dist.group.WORLD)


def test_the_ranks_own_exception_is_what_is_raised(spawn_ranks: SpawnRanks) -> None:
    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        spawn_ranks(2, fail)
    assert "on rank 1:" in raised.value.__notes__[0]


def test_alone_everything_is_the_identity() -> None:
    x = torch.arange(6.0).reshape(2, 3).requires_grad_()
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    sum_gradients([parameter], None)
    assert (rank_of(None), world_of(None)) == (0, 1)
    assert agree([1, 2], None, what="here") == [[1, 2]]
    assert torch.equal(gather_rows(x, [2], None), x)
    assert torch.equal(sum_rows(x, None), x)
    assert torch.equal(broadcast(x, None), x)
    assert not any(made.requires_grad for made in (gather_rows(x, [2], None), sum_rows(x, None), broadcast(x, None)))
    assert [(rank, len(rows)) for rank, (rows,) in ring([x], [2], None)] == [(0, 2)]
    assert parameter.grad.tolist() == [1, 1]


@pytest.mark.soak
def test_no_rank_outlives_a_start_that_ran_out_of_time(spawn_ranks: SpawnRanks, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="no word from rank 0, 1"):
        spawn_ranks(2, partial(_note_pid_and_sleep, str(tmp_path)), timeout_s=5)
    pids = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _note_pid_and_sleep(folder: str, rank: int) -> None:
    Path(folder, f"pid{rank}").write_text(str(os.getpid()), "utf-8")
    time.sleep(1000)
