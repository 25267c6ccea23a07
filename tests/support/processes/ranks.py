"""Ranks for tests: processes joined by gloo over a file, ended with the test whatever happens in it."""

from __future__ import annotations

import contextlib
import datetime
import gc
import itertools
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SpawnRanks = Callable[..., list[Any]]


class RankDiedError(RuntimeError):
    """A rank ended without saying why."""


@contextlib.contextmanager
def rank_starter(forkserver: ForkServerContext, folder: Path) -> Iterator[SpawnRanks]:
    """`start(world, function, timeout_s=60)` runs `function(rank)` on `world` ranks; their results in rank order.

    The function and what it returns are pickled, so it is a module's function or a partial of one; inside it
    `torch.distributed.group.WORLD` is the ranks' gloo group. The first exception of a rank is raised here as it is,
    with the rank and its traceback as a note; a rank that dies without one raises RankDiedError. No process outlives
    the call. A start costs some 0.1 s, so run many cases inside one function.
    """
    numbers = itertools.count()

    def start(world: int, function: Callable[[int], Any], *, timeout_s: float = 60) -> list[Any]:
        store, job = folder / f"store{next(numbers)}", pickle.dumps(function)
        started: list[BaseProcess] = []
        pipes: list[Connection] = []
        try:
            for rank in range(world):
                receiver, sender = forkserver.Pipe(duplex=False)
                process = forkserver.Process(
                    target=rank_main, args=(rank, world, str(store), job, sender, timeout_s), daemon=True
                )
                process.start()
                sender.close()
                started.append(process)
                pipes.append(receiver)
            return _collect(started, pipes, time.monotonic() + timeout_s)
        finally:
            _end(started)
            for pipe in pipes:
                pipe.close()

    yield start


def rank_main(rank: int, world: int, store: str, job: bytes, sender: Connection, timeout_s: float) -> None:
    """One rank: join the others, run the job, send back ("result" | "error", what)."""
    import torch
    import torch.distributed as dist

    gc.freeze()  # what it was forked with: each training collects garbage first
    torch.set_num_threads(1)
    try:
        timeout = datetime.timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timeout)
        dist.barrier()  # one that has nothing to ask the others would leave before all have met
        answer = ("result", pickle.loads(job)(rank))
    except Exception as error:  # noqa: BLE001 - whatever it is, the test must see it
        error.add_note(f"on rank {rank}:\n{traceback.format_exc()}")
        answer = ("error", error)
    try:
        message = pickle.dumps(answer)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        message = pickle.dumps(("error", RuntimeError(f"rank {rank} cannot send {answer!r}: {error}")))
    sender.send_bytes(message)
    if answer[0] == "result" and dist.is_initialized():
        dist.destroy_process_group()


def _collect(ranks: list[BaseProcess], pipes: list[Connection], deadline: float) -> list[Any]:
    """Every rank's result, or the first failure."""
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"no word from rank {', '.join(map(str, waiting.values()))} in time")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting[pipe]
            try:
                kind, what = pickle.loads(pipe.recv_bytes())
            except EOFError:
                ranks[rank].join(5)
                raise RankDiedError(f"rank {rank} died with exit code {ranks[rank].exitcode}") from None
            if kind == "error":
                raise what
            results[rank] = what
    return [results[rank] for rank in range(len(ranks))]


def _end(processes: list[BaseProcess]) -> None:
    """Let finished ranks leave, end the others, and leave none behind."""
    deadline = time.monotonic() + 1
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
