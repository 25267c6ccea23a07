"""One trial on W ranks: warm Ray actors inside a placement group that somebody else owns. The only ray import in jobs.

The ranks live on between trials: imports, tokenised data and the process group stay. A change of W re-forms the group
on a subset of the ranks. Whatever goes wrong on a rank ends the whole gang, and comes back as a `Failure` that names
the rank's own exception; the next trial then gets new ranks.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import ActorUnavailableError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs import watch
from jobs.failures import Failure, first_line, kind_of, peak, picklable, root_cause
from jobs.paths import BASE

POLL_S = 0.5
"""How often a waiting gang looks for a rank that died."""

PULSE_S = 5.0
"""How often it asks the ranks what they are doing, while they do it."""

BLAME_S = 2.0
"""After a first error, how long the other ranks may take to tell theirs: the root cause is not always the first."""

TURN_S = 1.0
"""About how long one call of `advance` trains, so that stopping and pruning never wait long."""

LOADING_S = 3600.0
"""How long data and encoder may take to load before a rank counts as hung."""

SETTLE_S = 120.0
"""How much longer than a step's deadline a collective waits: the gang's verdict, which names the rank, comes first."""

NODE_S = 30.0
"""How long it may take until the cluster knows whether a rank is gone because its node is."""

JOIN_TIMEOUT_S = 60.0

CGROUP = Path("/sys/fs/cgroup/memory.events")
"""Where Linux counts the processes that it ended for want of memory."""

__all__ = ["Failure", "Gang", "GangError", "Rank", "first_line", "kind_of"]

T = TypeVar("T")
P = ParamSpec("P")


class GangError(Exception):
    """A rank failed; the gang is gone."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failure,), self.__dict__


def _working(
    phase: str,
) -> Callable[[Callable[Concatenate[Rank, P], T]], Callable[Concatenate[Rank, P], T]]:
    """A method that works in `phase`: others can see it do so, and an exception of it is in the rank's log too."""

    def decorate(method: Callable[Concatenate[Rank, P], T]) -> Callable[Concatenate[Rank, P], T]:
        @wraps(method)
        def work(self: Rank, /, *arguments: P.args, **keywords: P.kwargs) -> T:
            self.work.enter(phase)
            try:
                return method(self, *arguments, **keywords)
            except Exception as error:
                if kind_of(error) == "out_of_memory":
                    error.add_note(peak(self.peak_mb()))
                traceback.print_exc()
                sys.stderr.flush()
                if (sent := picklable(error)) is not error:
                    raise sent from error
                raise
            finally:
                self.work.enter(watch.IDLE)

        return work

    return decorate


class Rank:
    """One rank: a process that trains its share of a job. A Ray actor; imports torch on first use.

    Ray calls `pulse` in a thread of its own, and every other method in one other thread.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.work = watch.Work()
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

    def join(self, world: int, store: tuple[str, int], limit_s: float, device: str, apart: bool) -> None:
        """Form a process group of `world` ranks, which meet at `store` (host and port), for jobs on `device` (as
        job.execution has it), whose collectives wait at most `limit_s` seconds; apart: on several nodes."""
        import torch
        import torch.distributed as dist

        self.leave()
        if self.rank > 0:
            wait = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
            self._store = dist.TCPStore(*store, is_master=False, timeout=wait)  # type: ignore[attr-defined]
        if apart:
            _use_the_nodes_network(ray.util.get_node_ip_address())
        backend = "nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
        limit = datetime.timedelta(seconds=limit_s)
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=world, timeout=limit)
        self._world = world

    def leave(self) -> None:
        """Leave the process group, if there is one."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
        self._world = 1

    def open_log(self, folder: str) -> None:
        """Everything the rank prints from now on, C++ included, belongs to the trial in `folder`."""
        path = Path(folder) / f"log.rank{self.rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number in (1, 2):
            os.dup2(file, number)
        os.close(file)

    @_working(watch.LOADING)
    def begin(
        self,
        job: dict[str, Any],
        folder: str,
        attempt: tuple[int, int] | None,
        remote: str | None,
        expected: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Load a job, or continue it from its folder. Returns a report of every point so far."""
        import torch.distributed as dist

        from jobs.config import JobConfig
        from jobs.train import Training

        self._training = None
        if (directory := (expected or {}).get("directory")) is not None:
            os.environ[BASE] = directory
        group = dist.group.WORLD if self._world > 1 else None
        self._training = Training(
            JobConfig.model_validate(job),
            Path(folder),
            group=group,
            log=self._log,
            attempt=attempt,
            remote=remote,
            phase=self.work.enter,
            expected=expected,
        )
        news = {"remarks": self._training.remarks, "provenance": self._training.provenance}
        return self._report(self._training.points) | news

    @_working("step")
    def advance(self, steps: int) -> dict[str, Any]:
        """Train for at most `steps` steps. Returns a report of the new points."""
        return self._report(self._training.advance(steps))

    @_working("checkpoint")
    def save(self) -> None:
        """Commit a checkpoint, unless the job has ended, which commits its own."""
        if self._training is not None and self._training.result is None and self._training.step > 0:
            self._training.save()
            self._training.settle()

    def end(self) -> None:
        """Let go of the job; its log is closed, what it loaded stays."""
        self._training = None
        for number, stream in enumerate(self._streams, 1):
            os.dup2(stream, number)

    @ray.method(concurrency_group="watch")
    def pulse(self) -> watch.Pulse:
        """What the working thread is doing."""
        return self.work.look(self.peak_mb())

    def peak_mb(self) -> float:
        """Most memory of the trial so far; 0 while nothing is loaded."""
        training = self._training
        if training is None:
            return 0.0
        from jobs.device import peak_memory_bytes

        return peak_memory_bytes(training.device) / 2**20

    def _report(self, points: list[Any]) -> dict[str, Any]:
        told = [asdict(point) for point in points] if self.rank == 0 else []
        return {"points": told, "step": self._training.step, "result": self._training.result}

    def _log(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


class Gang:
    """The ranks of one placement group, seen from the process that drives them. Any call may raise GangError."""

    def __init__(self, group: PlacementGroup, *, size: int, cpus: float, gpus: float) -> None:
        self._ranks: list[Any] = [
            ray.remote(concurrency_groups={"watch": 1})(Rank)  # type: ignore[call-overload]
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            )
            .remote(index)
            for index in range(size)
        ]
        self._nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
        self._world = 0
        self._joined: tuple[int, float, str] | None = None
        """Ranks of the process group, how long its collectives wait, and the device of its jobs."""
        self._deadline_s = LOADING_S
        self._pulses: dict[int, watch.Pulse] = {}
        self._killed_before = _killed_for_memory()
        self._pace = 1.0
        """Steps a second."""

    def begin(
        self,
        job: dict[str, Any],
        folder: str,
        *,
        attempt: tuple[int, int] | None = None,
        remote: str | None = None,
        expected: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Load a job on as many ranks as it asks for. Returns the report of rank 0.

        attempt: fencing token and number, which keep an older attempt out of the folder; remote: see `Training`, as for
        expected, whose `directory` is the folder where the run began: there relative paths are looked for first.
        """
        world = job["execution"]["ranks"]
        if world > len(self._ranks):
            raise ValueError(f"the job wants {world} ranks, the gang has {len(self._ranks)}")
        self._pace = 8 / TURN_S
        self._deadline_s = job["execution"]["deadline_s"]
        self._pulses.clear()
        wanted = (world, self._deadline_s + SETTLE_S, job["execution"]["device"])
        if wanted != self._joined:
            self._call(len(self._ranks), "leave")
            if world > 1:
                (store,) = self._call(1, "open_store")
                apart = len({self._nodes[rank] for rank in range(world)}) > 1
                self._call(world, "join", world, store, *wanted[1:], apart)
            self._world, self._joined = world, wanted
        self._call(world, "open_log", folder)
        report: dict[str, Any] = self._call(world, "begin", job, folder, attempt, remote, expected)[0]
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
        """Call `method` on the first `world` ranks and wait for all of them, for the first that fails, or for one that
        hangs."""
        refs = [getattr(rank, method).remote(*arguments) for rank in self._ranks[:world]]
        answered = dict.fromkeys(range(world), time.monotonic())
        every = min(PULSE_S, self._deadline_s / 2)
        look_at = time.monotonic() + every
        waiting = list(refs)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            errors = {refs.index(ref): error for ref in ready if (error := _error_of(ref)) is not None}
            if errors:
                late, _ = ray.wait(waiting, num_returns=len(waiting), timeout=BLAME_S) if waiting else ([], [])
                errors |= {refs.index(ref): error for ref in late if (error := _error_of(ref)) is not None}
                failure = self._told_apart(root_cause(errors), errors)
                self.kill()
                raise GangError(failure)
            if waiting and time.monotonic() >= look_at:
                self._look(world, answered, every)
                look_at = time.monotonic() + every
        return list(ray.get(refs))

    def _look(self, world: int, answered: dict[int, float], wait_s: float) -> None:
        """Ask the ranks what they are doing. Raises GangError when one of them hangs."""
        refs = {rank.pulse.remote(): number for number, rank in enumerate(self._ranks[:world])}
        for ref in ray.wait(list(refs), num_returns=world, timeout=wait_s)[0]:
            if _error_of(ref) is None:
                self._pulses[refs[ref]] = ray.get(ref)
                answered[refs[ref]] = time.monotonic()
        silent_s = {rank: time.monotonic() - since for rank, since in answered.items()}
        found = watch.hung(self._pulses, silent_s, deadline_s=self._deadline_s, loading_s=LOADING_S)
        if found is not None:
            rank, what = found
            self.kill()
            message = f"rank {rank} hangs: {what}; job.execution.deadline_s = {self._deadline_s:g} allows no more"
            raise GangError(Failure("hung", rank, message, f"{message}\n\n{watch.stacks(self._pulses)}"))

    def _told_apart(self, failure: Failure, errors: dict[int, Exception]) -> Failure:
        """A rank that vanished: because of its memory, because of its node, or by itself?"""
        if failure.rank is None or failure.kind not in ("worker_lost", "out_of_memory"):
            return failure
        peak_mb = max((pulse.peak_mb for pulse in self._pulses.values()), default=0.0)
        if failure.kind == "worker_lost" and _killed_for_memory() > self._killed_before:
            message = f"rank {failure.rank} was ended by the system for want of memory; {peak(peak_mb)}"
            return Failure("out_of_memory", failure.rank, message, failure.trace)
        if failure.kind == "out_of_memory":
            known = "" if "peak memory" in failure.message else f"; {peak(peak_mb)}"
            return Failure(failure.kind, failure.rank, failure.message + known, failure.trace)
        node = self._nodes.get(failure.rank, "")
        if isinstance(errors[failure.rank], ActorUnavailableError) and _node_is_dead(node, wait_s=NODE_S):
            message = f"rank {failure.rank}: its node {node[:12]} died"
            return Failure("node_lost", failure.rank, message, failure.trace)
        return failure


def _use_the_nodes_network(address: str) -> None:
    """Have gloo and NCCL meet on the interface by which the cluster knows this node, unless the user has named another.

    gloo takes the one that the host's name resolves to, which often is loopback, and NCCL the first that is up, which
    may be a bridge of containers: no other node reaches either.
    """
    import psutil

    for name, found in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # by itself it is the beginning of a name
            return


def _killed_for_memory() -> int:
    """How many processes Linux has ended in this control group for want of memory; 0 where it does not say."""
    try:
        words = CGROUP.read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return 0


def _node_is_dead(node: str, *, wait_s: float) -> bool:
    """Whether a node is gone. A cluster notices that only after some seconds of silence."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if any(one["NodeID"] == node and not one["Alive"] for one in ray.nodes()):
            return True
        time.sleep(POLL_S)
    return False


def _error_of(ref: Any) -> Exception | None:
    try:
        ray.get(ref, timeout=0)
    except Exception as error:  # noqa: BLE001 - whatever the rank raised is the answer
        return error
    return None
