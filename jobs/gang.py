"""One trial on W ranks: warm Ray actors inside a placement group that somebody else owns. The only ray import in jobs.

The ranks live on between trials: imports, tokenised data and the process group stay. A change of W re-forms the group
on a subset of the ranks. Whatever goes wrong on a rank ends the whole gang, and comes back as a `Failure` that names
the rank's own exception; the next trial then gets new ranks.
"""

from __future__ import annotations

import datetime
import errno
import os
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

POLL_S = 0.5
"""How often a waiting gang looks for a rank that died."""

BLAME_S = 2.0
"""After a first error, how long the other ranks may take to tell theirs: the root cause is not always the first."""

TURN_S = 1.0
"""About how long one call of `advance` trains, so that stopping and pruning never wait long."""

JOIN_TIMEOUT_S = 60.0
COLLECTIVE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended, in the words of the rank that caused it."""

    kind: str
    """One of the failure classes of the ledger: worker_lost, node_lost, out_of_memory, storage_full, user_error."""

    rank: int | None
    message: str
    """First line of the real exception."""

    trace: str


class GangError(Exception):
    """A rank failed; the gang is gone."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


class Rank:
    """One rank: a process that trains its share of a job. A Ray actor; imports torch on first use."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._store: Any = None
        self._world = 1
        self._training: Any = None
        self._streams = [os.dup(1), os.dup(2)]

    def open_store(self) -> tuple[str, int]:
        """Rank 0 opens the store at which the ranks meet; a free port, so that gangs on one host never clash."""

        import torch.distributed as dist

        host = ray.util.get_node_ip_address()
        wait = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, is_master=True, wait_for_workers=False, timeout=wait
        )
        return host, self._store.port

    def join(self, world: int, host: str, port: int) -> None:
        """Form a process group of `world` ranks."""
        import torch
        import torch.distributed as dist

        self.leave()
        if self.rank > 0:
            wait = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
            self._store = dist.TCPStore(host, port, is_master=False, timeout=wait)  # type: ignore[attr-defined]
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        limit = datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S)
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=world, timeout=limit)
        self._world = world

    def leave(self) -> None:
        """Leave the process group, if there is one."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
        self._world = 1

    def begin(self, job: dict[str, Any], folder: str) -> dict[str, Any]:
        """Load a job, or continue it from its folder. Returns a report of every point so far."""
        import torch.distributed as dist

        from jobs.config import JobConfig
        from jobs.train import Training

        self._training = None
        self._log_to(Path(folder) / f"log.rank{self.rank}.txt")
        group = dist.group.WORLD if self._world > 1 else None
        self._training = Training(JobConfig.model_validate(job), Path(folder), group=group, log=self._log)
        return self._report(self._training.points)

    def advance(self, steps: int) -> dict[str, Any]:
        """Train for at most `steps` steps. Returns a report of the new points."""
        return self._report(self._training.advance(steps))

    def save(self) -> None:
        """Commit a checkpoint, unless the job has ended, which commits its own."""
        if self._training is not None and self._training.result is None and self._training.step > 0:
            self._training.save()

    def end(self) -> None:
        """Let go of the job; its log is closed, what it loaded stays."""
        self._training = None
        for number, stream in enumerate(self._streams, 1):
            os.dup2(stream, number)

    def _report(self, points: list[Any]) -> dict[str, Any]:
        told = [asdict(point) for point in points] if self.rank == 0 else []
        return {"points": told, "step": self._training.step, "result": self._training.result}

    def _log_to(self, path: Path) -> None:
        """Everything the rank prints, C++ included, belongs to the trial."""
        path.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number in (1, 2):
            os.dup2(file, number)
        os.close(file)

    def _log(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


class Gang:
    """The ranks of one placement group, seen from the process that drives them. Any call may raise GangError."""

    def __init__(self, group: PlacementGroup, *, size: int, cpus: float, gpus: float) -> None:
        self._ranks: list[Any] = [
            ray.remote(Rank)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            )
            .remote(index)
            for index in range(size)
        ]
        self._world = 0
        self._pace = 1.0
        """Steps a second."""

    def begin(self, job: dict[str, Any], folder: str) -> dict[str, Any]:
        """Load a job on as many ranks as it asks for. Returns the report of rank 0."""
        world = job["execution"]["ranks"]
        if world > len(self._ranks):
            raise ValueError(f"the job wants {world} ranks, the gang has {len(self._ranks)}")
        self._pace = 8 / TURN_S
        if world != self._world:
            self._call(len(self._ranks), "leave")
            if world > 1:
                (address, *_) = self._call(1, "open_store")
                self._call(world, "join", world, *address)
            self._world = world
        report: dict[str, Any] = self._call(world, "begin", job, folder)[0]
        return report

    def advance(self) -> dict[str, Any]:
        """Train for about TURN_S. Returns the report of rank 0."""
        steps = max(1, round(self._pace * TURN_S))
        began = time.monotonic()
        report: dict[str, Any] = self._call(self._world, "advance", steps)[0]
        self._pace = max(1.0, steps / max(time.monotonic() - began, 1e-3))
        return report

    def save(self) -> None:
        """Commit a checkpoint now."""
        self._call(self._world, "save")

    def end(self) -> None:
        """Let go of the job."""
        self._call(self._world, "end")

    def kill(self) -> None:
        """End every rank. gloo's peers of a dead rank fail by themselves, NCCL's may not."""
        for rank in self._ranks:
            ray.kill(rank)

    def _call(self, world: int, method: str, *arguments: Any) -> list[Any]:
        """Call `method` on the first `world` ranks and wait for all of them, or for the first that fails."""
        refs = [getattr(rank, method).remote(*arguments) for rank in self._ranks[:world]]
        waiting = list(refs)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            errors = {refs.index(ref): error for ref in ready if (error := _error_of(ref)) is not None}
            if errors:
                late, _ = ray.wait(waiting, num_returns=len(waiting), timeout=BLAME_S) if waiting else ([], [])
                errors |= {refs.index(ref): error for ref in late if (error := _error_of(ref)) is not None}
                self.kill()
                raise GangError(root_cause(errors))
        return list(ray.get(refs))


def root_cause(errors: dict[int, Exception]) -> Failure:
    """Of the errors of several ranks, the one that caused the others: a death, else an exception that is not about
    the network between ranks, else the first."""

    def order(item: tuple[int, Exception]) -> tuple[bool, bool, int]:
        rank, error = item
        died = isinstance(error, ActorDiedError | OutOfMemoryError | NodeDiedError)
        return (not died, _is_about_peers(error), rank)

    rank, error = min(errors.items(), key=order)
    cause = error.cause if isinstance(error, RayTaskError) else error
    trace = str(error) if isinstance(error, RayTaskError) else "".join(traceback.format_exception(error))
    first = str(cause).strip().splitlines()[0] if str(cause).strip() else ""
    return Failure(kind_of(cause), rank, f"rank {rank}: {type(cause).__name__}: {first}", trace)


def kind_of(error: BaseException) -> str:
    """The failure class of an exception."""
    if isinstance(error, OutOfMemoryError | MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory"
    if isinstance(error, NodeDiedError):
        return "node_lost"
    if isinstance(error, ActorDiedError | ActorUnavailableError):
        return "worker_lost"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "storage_full"
    if isinstance(error, ConnectionError | socket.gaierror):
        return "infrastructure"
    return "user_error"


def _is_about_peers(error: Exception) -> bool:
    text = str(error)
    return any(
        word in text for word in ("Connection closed by peer", "Connection reset", "gloo", "NCCL", "DistBackend")
    )


def _error_of(ref: Any) -> Exception | None:
    try:
        ray.get(ref, timeout=0)
    except Exception as error:  # noqa: BLE001 - whatever the rank raised is the answer
        return error
    return None
