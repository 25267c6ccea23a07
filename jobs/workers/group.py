"""One trial on W ranks: warm Ray actors inside a placement group that somebody else owns. The only ray import in jobs.

The ranks live on between trials: imports, tokenised data and the process group stay. A change of W re-forms the group
on a subset of the ranks. Whatever goes wrong on a rank ends the whole gang, and comes back as a `Failure` that names
the rank's own exception; the next trial then gets new ranks.
"""

from __future__ import annotations

import datetime
import gc
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from jobs.core.failures import Failure, GangError, first_line, is_about_peers, kind_of, peak, root_cause
from jobs.core.paths import BASE
from jobs.workers import heartbeat, memory
from jobs.workers.memory import Reading
from jobs.workers.network import is_loopback, listener, listens, use_the_nodes_network
from jobs.workers.report import Report, report_of
from jobs.workers.streams import Streams

POLL_S = 0.5
"""How often a waiting gang looks for a rank that died."""

HEARTBEAT_S = 5.0
"""How often it asks the ranks what they are doing, while they do it."""

ERROR_GRACE_S = 2.0
"""After a first error, how long the other ranks may take to tell theirs: the root cause is not always the first."""

STEP_BUDGET_S = 1.0
"""About how long one call of `advance` trains, so that stopping and pruning never wait long."""

LOADING_S = 3600.0
"""How long data and encoder may take to load before a rank counts as hung."""

SETTLE_S = 120.0
"""How much longer than a step's deadline a collective waits: the gang's verdict, which names the rank, comes first."""

NODE_S = 30.0
"""How long it may take until the cluster knows whether a rank that cannot be reached is gone."""

LEAVING_S = 1.0
"""How long a rank may be gone before its node is: a node that is ended ends its processes in any order."""

RECOUNT_S = 10.0
"""How long another node may take to say whom it has ended for lack of memory."""

JOIN_TIMEOUT_S = 60.0

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from jobs.artifacts.trial_dir import Point
    from jobs.config.json_values import JsonObject
    from jobs.core.device import TrialMemory
    from jobs.train import Training
    from jobs.train.function import FunctionTraining
    from jobs.train.origin import Expected

__all__ = ["Failure", "Gang", "GangError", "Rank", "first_line", "kind_of", "node_is_lost"]


class Rank:
    """One rank: a process that trains its share of a job. A Ray actor; imports torch on first use.

    Ray calls `beat` in a thread of its own, and every other method in one other thread.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.work = heartbeat.PhaseMonitor()
        self._store: Store | None = None
        self._world = 1
        self._training: Training | FunctionTraining | None = None
        self._trial_memory: TrialMemory | None = None
        self._has_imported = False
        self._streams = Streams()

    def open_store(self) -> tuple[str, int]:
        """Open the store where the ranks meet, on rank 0; at a free port, so that gangs on one host never clash."""

        import torch.distributed as dist

        host = ray.util.get_node_ip_address()
        wait = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
        own = listener(host)  # else it would listen on every interface, and asks nobody for a token
        self._store = store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            own.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            timeout=wait,
            master_listen_fd=own.fileno(),
        )
        own.detach()  # the store closes it
        return host, int(store.port)

    def join(self, world: int, store: tuple[str, int], limit_s: float, device: str, apart: bool) -> None:
        """Join a process group of `world` ranks that meet at `store` (host and port), for jobs on `device` (as
        job.execution has it); its collectives wait at most `limit_s` seconds. apart: on several nodes."""
        import torch
        import torch.distributed as dist

        self.leave()
        if self.rank > 0:
            wait = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
            self._store = dist.TCPStore(*store, is_master=False, timeout=wait)  # type: ignore[attr-defined]
        if apart or is_loopback(ray.util.get_node_ip_address()):
            use_the_nodes_network(ray.util.get_node_ip_address())
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
        """Append everything the rank prints from now on, C++ included, to its log of the trial in `folder`."""
        self._streams.append_to(Path(folder) / f"log.rank{self.rank}.txt")

    @heartbeat.working(heartbeat.LOADING)
    def begin(
        self,
        job: JsonObject,
        folder: str,
        attempt: tuple[int, int] | None,
        remote: str | None,
        expected: Expected | None,
    ) -> Report:
        """Load a job, or continue it from its folder. Returns a report of every point so far."""
        import torch.distributed as dist

        from jobs.core import provenance

        provenance.code_digest()  # kept: of what lies on the disk as this process imports it
        from jobs.config import JobConfig
        from jobs.core.device import TrialMemory, device_of
        from jobs.train import Training
        from jobs.train.function import FunctionTraining

        if not self._has_imported:  # which stays, and need not be gone through after every trial
            gc.collect()
            gc.freeze()
            self._has_imported = True
        self._let_go()
        config = JobConfig.model_validate(job)
        if isinstance(directory := (expected or {}).get("directory"), str):
            os.environ[BASE] = directory
        group = dist.group.WORLD if self._world > 1 else None
        self._trial_memory = TrialMemory(device_of(config.execution))
        training = (FunctionTraining if config.is_function else Training)(
            config,
            Path(folder),
            group=group,
            log=self._log,
            attempt=attempt,
            remote=remote,
            phase=self.work.enter,
            expected=expected,
            trial_memory=self._trial_memory,
        )
        self._training = training
        report = self._report(training.points)
        report["remarks"], report["provenance"] = training.remarks, training.provenance
        return report

    @heartbeat.working("step")
    def advance(self, steps: int) -> Report:
        """Train for at most `steps` steps. Returns a report of the new points."""
        assert self._training is not None
        return self._report(self._training.advance(steps))

    @heartbeat.working("checkpoint")
    def save(self) -> None:
        """Commit a checkpoint, unless the job has ended, which commits its own."""
        if self._training is not None and self._training.result is None and self._training.step > 0:
            self._training.save()
            self._training.settle()

    def end(self) -> None:
        """Let go of the job; its log is closed, what it loaded stays."""
        self._let_go()
        self._streams.restore()

    @ray.method(concurrency_group="watch")
    def beat(self) -> heartbeat.Heartbeat:
        """Return what the working thread is doing."""
        return self.work.look(*self.reading())

    def reading(self) -> tuple[float, Reading]:
        """Return the most memory of the trial so far in MB, and what is known of this process's cgroup."""
        return self.peak_mb(), memory.read()

    def peak_mb(self) -> float:
        """Return the most memory of the trial so far, also while it is loaded; 0 without a trial."""
        trial_memory = self._trial_memory
        return 0.0 if trial_memory is None else float(trial_memory.reached() / 2**20)

    def _let_go(self) -> None:
        self._training = self._trial_memory = None

    def _report(self, points: Sequence[Point]) -> Report:
        assert self._training is not None
        report = report_of(self._training, points if self.rank == 0 else ())
        report["reading"] = self.reading()
        return report

    def _log(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


class Gang:
    """The ranks of one placement group, seen from the process that drives them. Any call may raise GangError."""

    def __init__(self, group: PlacementGroup, *, size: int, cpus: float, gpus: float) -> None:
        self._ranks: list[Any] = [  # Ray types no method of an actor's handle
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
        self._heartbeats: dict[int, heartbeat.Heartbeat] = {}
        self._readings: dict[int, tuple[float, Reading]] = {}
        """Newest of each rank, by `Rank.reading`."""
        self._pace = 1.0
        """Steps a second."""
        self._step = 0
        """Of the job, at its newest report."""

    def begin(
        self,
        job: JsonObject,
        folder: str,
        *,
        attempt: tuple[int, int] | None = None,
        remote: str | None = None,
        expected: Mapping[str, object] | None = None,
    ) -> Report:
        """Load a job on as many ranks as it asks for. Returns the report of rank 0.

        attempt: fencing token and number, which keep an older attempt out of the folder; remote, expected: see
        `Training`; relative paths are looked for first in the `directory` of expected, where the run began.
        """
        from jobs.config import Execution

        execution = Execution.model_validate(job["execution"])
        world = execution.ranks
        if world > len(self._ranks):
            raise ValueError(f"the job wants {world} ranks, the gang has {len(self._ranks)}")
        self._pace = 8 / STEP_BUDGET_S
        self._deadline_s = execution.deadline_s
        self._heartbeats.clear()
        self._readings.clear()
        self._note(self._call(world, "reading"))  # before anything that may take much
        wanted = (world, self._deadline_s + SETTLE_S, execution.device)
        if wanted != self._joined:
            for spare in self._ranks[world:]:  # of whose end the next trial that needs them will hear
                spare.leave.remote()
            self._call(world, "leave")
            if world > 1:
                (store,) = self._call(1, "open_store")
                apart = len({self._nodes[rank] for rank in range(world)}) > 1
                self._call(world, "join", world, store, *wanted[1:], apart)
            self._world, self._joined = world, wanted
        self._call(world, "open_log", folder)
        return self._report("begin", job, folder, attempt, remote, expected)

    def advance(self) -> Report:
        """Train for about STEP_BUDGET_S. Returns the report of rank 0."""
        before, began = self._step, time.monotonic()
        report = self._report("advance", max(1, round(self._pace * STEP_BUDGET_S)))
        # An evaluation ends the turn, so fewer steps may be done than were asked for.
        self._pace = max(1.0, (self._step - before) / max(time.monotonic() - began, 1e-3))
        return report

    def save(self) -> None:
        """Commit a checkpoint now."""
        self._call(self._world, "save")

    def end(self) -> None:
        """Let go of the job."""
        self._call(self._world, "end")

    def kill(self, *, but: int | None = None) -> None:
        """End every rank except `but`, which may still be asked about. gloo's peers of a dead rank fail by themselves,
        NCCL's may not."""
        for number, rank in enumerate(self._ranks):
            if number != but:
                ray.kill(rank)

    def _report(self, method: str, *arguments: object) -> Report:
        """Call `method` on every rank and return rank 0's report."""
        reports: list[Report] = self._call(self._world, method, *arguments)
        self._note([report.pop("reading") for report in reports])
        self._step = reports[0]["step"]
        return reports[0]

    def _note(self, readings: list[tuple[float, Reading]]) -> None:
        self._readings |= dict(enumerate(readings))

    def _call(self, world: int, method: str, *arguments: object) -> list[Any]:
        """Call `method` on the first `world` ranks and wait for all of them, for the first that fails, or for one that
        hangs."""
        refs: list[ray.ObjectRef[object]] = [getattr(rank, method).remote(*arguments) for rank in self._ranks[:world]]
        answered = dict.fromkeys(range(world), time.monotonic())
        every = min(HEARTBEAT_S, self._deadline_s / 2)
        look_at = time.monotonic() + every
        waiting = list(refs)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            errors = {refs.index(ref): error for ref in ready if (error := _error_of(ref)) is not None}
            if errors:
                late, _ = ray.wait(waiting, num_returns=len(waiting), timeout=ERROR_GRACE_S) if waiting else ([], [])
                errors |= {refs.index(ref): error for ref in late if (error := _error_of(ref)) is not None}
                failure = self._root_cause(errors, world)
                self.kill(but=failure.rank)
                failure = self._classify_lost_rank(failure, errors)
                self.kill()
                raise GangError(failure)
            if waiting and time.monotonic() >= look_at:
                self._look(world, answered, every)
                look_at = time.monotonic() + every
        return list(ray.get(refs))

    def _look(self, world: int, answered: dict[int, float], wait_s: float) -> None:
        """Ask the ranks what they are doing. Raises GangError when one of them hangs."""
        refs = {rank.beat.remote(): number for number, rank in enumerate(self._ranks[:world])}
        for ref in ray.wait(list(refs), num_returns=world, timeout=wait_s)[0]:
            if _error_of(ref) is None:
                pulse = self._heartbeats[refs[ref]] = ray.get(ref)
                self._readings[refs[ref]] = (pulse.peak_mb, pulse.cgroup or Reading())
                answered[refs[ref]] = time.monotonic()
        silent_s = {rank: time.monotonic() - since for rank, since in answered.items()}
        hung = heartbeat.find_hung_rank(self._heartbeats, silent_s, deadline_s=self._deadline_s, loading_s=LOADING_S)
        if hung is not None:
            rank, what = hung
            self.kill()
            message = f"rank {rank} hangs: {what}; job.execution.deadline_s = {self._deadline_s:g} allows no more"
            raise GangError(Failure("hung", rank, message, f"{message}\n\n{heartbeat.stacks(self._heartbeats)}"))

    def _root_cause(self, errors: dict[int, Exception], world: int) -> Failure:
        """Find the root cause of the errors so far; a rank that cannot be heard because its node is lost is the cause
        of what its peers say of their connections to it."""
        failure = root_cause(errors)
        if all(is_about_peers(error) for error in errors.values()):
            for rank in set(range(world)) - set(errors):
                if node_is_lost(self._nodes.get(rank, "")):
                    return self._node_lost(rank, failure.trace)
        return failure

    def _classify_lost_rank(self, failure: Failure, errors: dict[int, Exception]) -> Failure:
        """Decide why a rank vanished: because of its node, because of its memory, or by itself."""
        rank = failure.rank
        if rank is None or failure.kind not in ("worker_lost", "out_of_memory"):
            return failure
        peak_mb = max((megabytes for megabytes, _ in self._readings.values()), default=0.0)
        reached = f"; {peak(peak_mb)}" if peak_mb else ""
        if failure.kind == "out_of_memory":
            known = "" if "peak memory" in failure.message else reached
            return Failure(failure.kind, rank, failure.message + known, failure.trace)
        node = self._nodes.get(rank, "")
        if node_is_lost(node):
            return self._node_lost(rank, failure.trace)
        _, before = self._readings.get(rank, (0.0, Reading()))
        limit = memory.verdict(before, _recount(node, before))
        if limit is not None:
            message = f"rank {rank} was killed by the system because memory ran out{reached}"
            message += f"; {limit}" if limit else ""
            return Failure("out_of_memory", rank, message, failure.trace)
        if self._loses_its_node(rank, node, unavailable=isinstance(errors.get(rank), ActorUnavailableError)):
            return self._node_lost(rank, failure.trace)
        return failure

    def _node_lost(self, rank: int, trace: str) -> Failure:
        return Failure("node_lost", rank, f"rank {rank}: its node {self._nodes.get(rank, '')[:12]} died", trace)

    def _loses_its_node(self, rank: int, node: str, *, unavailable: bool) -> bool:
        """Return whether the node of a rank that is gone goes too. unavailable: the rank's end is not sure yet."""
        deadline = time.monotonic() + NODE_S
        while unavailable and time.monotonic() < deadline:
            asked = self._ranks[rank].beat.remote()
            ray.wait([asked], timeout=POLL_S)
            unavailable = isinstance(_error_of(asked), ActorUnavailableError | GetTimeoutError)
            if node_is_lost(node):
                return True
            time.sleep(POLL_S / 5)
        return node_is_lost(node, within_s=LEAVING_S)


def node_is_lost(node: str, *, within_s: float = 0.0) -> bool:
    """Return whether a node of the connected cluster, by its id, is gone, or will be within `within_s` seconds. The
    cluster notices that after many seconds of silence; that nobody listens where its raylet did is known at once."""
    deadline = time.monotonic() + within_s
    while True:
        known = next((entry for entry in ray.nodes() if entry["NodeID"] == node), None)
        if known is None:
            return False
        if not known["Alive"] or not listens(known["NodeManagerAddress"], known["NodeManagerPort"]):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S / 5)


def _recount(node: str, before: Reading) -> dict[str, int] | None:
    """Run `memory.recount` on a node and return its answer; None if the node does not answer in time."""
    if node == ray.get_runtime_context().get_node_id():
        return memory.recount(before)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    recount = ray.remote(num_cpus=0, max_retries=0)(memory.recount)
    answer = recount.options(scheduling_strategy=there).remote(before)
    ready, late = ray.wait([answer], timeout=RECOUNT_S)
    for ref in late:
        ray.cancel(ref, force=True)
    return ray.get(ready[0]) if ready and _error_of(ready[0]) is None else None


def _error_of(ref: ray.ObjectRef[object]) -> Exception | None:
    try:
        ray.get(ref, timeout=0)
    except Exception as error:  # noqa: BLE001 - whatever the rank raised is the answer
        return error
    return None
