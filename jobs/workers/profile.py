"""`python -m jobs.workers.profile JOB...`: what loading, an evaluation and a step take on this machine. Leaves nothing.

Trains each job (TOML or JSON) for a few steps on its ranks, which are processes of this machine without ray, and prints
one line of JSON for each:

    load_s  evaluate_s  evaluate_final_s (with the linear probe)  first_step_s  step_s  samples_per_second
    peak_memory_mb (of the rank that takes most)  start_s (until the ranks were warm; null for all jobs but the first)

All are of warm ranks, as a sweep has them after its first trial, but for start_s. The first step is given apart, for it
may compile. Ends with 0; with 2 when a job or its data are wrong, with 1 when it cannot be trained here, and then says
why. This process only watches and imports no torch, so that what ends a rank for lack of memory leaves somebody to say
so.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypeAlias, TypedDict

from jobs.config import ConfigError, JobConfig, load_job
from jobs.core.failures import PEERS, first_line, kind_of
from jobs.core.plain import visible_lines
from jobs.workers.network import use_the_nodes_network

if TYPE_CHECKING:
    import torch.distributed as dist

    from jobs.train import Training

WARM_UP = 2
"""Steps before those that are timed; allocators and caches settle in them."""

MOST_STEPS, LEAST_STEPS, ENOUGH_S = 20, 2, 5.0
"""Steps are timed until there are so many, or so many seconds of them."""

AGAIN_S = 10.0
"""Loading and evaluation are measured on warm ranks, by doing them twice, unless they take this long: then what the
first time adds hardly counts."""

ERROR_GRACE_S = 2.0
"""After a first error, how long the other ranks may take to tell theirs."""

BAD_JOB, FAILED = 2, 1


class Measures(TypedDict):
    """What one job takes, as the module's text has it."""

    load_s: float
    evaluate_s: float
    evaluate_final_s: float
    first_step_s: float
    step_s: float
    steps: int
    samples_per_second: float
    peak_memory_mb: float
    ready: NotRequired[float]
    """Unix seconds at which it could first have been trained. Not printed."""

    start_s: NotRequired[float | None]


Answer: TypeAlias = (
    tuple[Literal["result"], list[Measures]]
    | tuple[Literal["error"], tuple[str, int, bool]]
    | tuple[Literal["gone"], int | None]
)
"""What became of a rank: its measures; text, status, and whether it is for lack of memory; or its exit code."""


class _RankFailed(Exception):
    """Why a job cannot be probed, in the words of the rank that caused it, and the exit status."""

    def __init__(self, text: str, status: int) -> None:
        self.status = status
        super().__init__(text)

    def __reduce__(self) -> tuple[type[_RankFailed], tuple[str, int], dict[str, object]]:
        return type(self), (str(self), self.status), self.__dict__


def main(arguments: list[str]) -> int:
    """Run with these command-line arguments and return the exit status."""
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write(
            "usage: python -m jobs.workers.profile JOB...    where a JOB is a job in TOML or a trial's job.json\n"
        )
        return 0 if arguments in (["-h"], ["--help"]) else BAD_JOB
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts behind without one
    try:
        jobs = [load_job(Path(path)) for path in arguments]
        if len({job.execution.ranks for job in jobs}) > 1:
            raise _RankFailed("the jobs differ in execution.ranks; probe them one by one", BAD_JOB)
        with tempfile.TemporaryDirectory(prefix="probe-") as scratch:
            measures = _on_ranks(jobs, Path(scratch))
    except ConfigError as error:
        sys.stderr.write(visible_lines(f"error: {error}\n"))
        return BAD_JOB
    except _RankFailed as error:
        sys.stderr.write(visible_lines(f"error: {error}\n"))
        return error.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    sys.stdout.writelines(json.dumps(of_job) + "\n" for of_job in measures)
    return 0


def _on_ranks(jobs: Sequence[JobConfig], scratch: Path) -> list[Measures]:
    """Measure each job on its ranks and return rank 0's measures. Raises _RankFailed; no rank outlives the call."""
    context = multiprocessing.get_context("spawn")
    world, began = jobs[0].execution.ranks, time.time()
    pipes, ranks = [], []
    try:
        for rank in range(world):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, jobs, str(scratch), began, sender), daemon=True)
            process.start()
            sender.close()
            pipes.append(receiver)
            ranks.append(process)
        answers = _heard(dict(enumerate(pipes)), time_left_s=None)
        if len(answers) == world and all(kind == "result" for kind, _ in answers.values()):
            of_rank_0 = answers[0]
            assert of_rank_0[0] == "result"
            return of_rank_0[1]
        late = {rank: pipe for rank, pipe in enumerate(pipes) if rank not in answers}
        answers |= _heard(late, time_left_s=ERROR_GRACE_S)
        for rank, (kind, _) in list(answers.items()):
            if kind == "gone":
                ranks[rank].join()
                answers[rank] = ("gone", ranks[rank].exitcode)
        raise _cause(answers, jobs[0])
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _heard(pipes: Mapping[int, Connection], *, time_left_s: float | None) -> dict[int, Answer]:
    """Collect the ranks' answers until all are there or one has failed; or for `time_left_s`, whatever they answer."""
    answers: dict[int, Answer] = {}
    until = None if time_left_s is None else time.monotonic() + time_left_s
    while len(answers) < len(pipes) and (until is not None or all(kind == "result" for kind, _ in answers.values())):
        open_ = {pipe: rank for rank, pipe in pipes.items() if rank not in answers}
        ready = wait(list(open_), None if until is None else max(0.0, until - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                answers[open_[pipe]] = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from our own child
            except EOFError:
                answers[open_[pipe]] = ("gone", None)
    return answers


def _cause(answers: Mapping[int, Answer], job: JobConfig) -> _RankFailed:
    """Find in the ranks' answers the error that caused the others: a death, else an error not about the network."""

    def order(item: tuple[int, Answer]) -> tuple[bool, bool, int]:
        rank, answer = item
        return (answer[0] != "gone", answer[0] == "error" and any(word in answer[1][0] for word in PEERS), rank)

    failed = {rank: answer for rank, answer in answers.items() if answer[0] != "result"}
    rank, answer = min(failed.items(), key=order)
    if answer[0] == "error":
        text, status, memory = answer[1]
        return _RankFailed(f"rank {rank}: {text}{_less_memory(job) if memory else ''}", status)
    code = answer[1]
    assert isinstance(code, int), "a rank that is gone has been waited for"
    killed = code == -signal.SIGKILL
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    why = f", most likely because memory ran out{_less_memory(job)}" if killed else ""
    return _RankFailed(f"rank {rank} ended with {how}{why}", FAILED)


def _less_memory(job: JobConfig) -> str:
    key, now = "micro_tokens", job.execution.micro_tokens
    if now is None:
        key, now = "micro", job.execution.micro or -(-job.batch.size // job.execution.ranks)
    return f"; encode fewer pairs at once, for example execution.{key} = {now // 2}" if now > 1 else ""


def _rank(rank: int, jobs: Sequence[JobConfig], scratch: str, began: float, sender: Connection) -> None:
    """Run one rank: measure all jobs, send back ("result", what) or ("error", (text, status, for lack of memory))."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that watches ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {"LOCAL_RANK": str(rank), "TMPDIR": scratch}  # torch leaves folders there
    answer: Answer
    try:
        answer = ("result", _measured(rank, jobs, Path(scratch), began))
    except Exception as error:  # noqa: BLE001 - whatever it is, a person must see it
        status = BAD_JOB if isinstance(error, ValueError) else FAILED
        text = str(error) if isinstance(error, ValueError) else first_line(error)
        answer = ("error", (text, status, kind_of(error) == "out_of_memory"))
    with contextlib.suppress(OSError):
        sender.send_bytes(pickle.dumps(answer))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measured(rank: int, jobs: Sequence[JobConfig], scratch: Path, began: float) -> list[Measures]:
    import torch.distributed as dist

    from jobs.core.device import device_of

    world, group = jobs[0].execution.ranks, None
    if world > 1:
        backend = "nccl" if device_of(jobs[0].execution).type == "cuda" else "gloo"
        limit = datetime.timedelta(minutes=10)
        store = f"file://{scratch / 'store'}"
        use_the_nodes_network("127.0.0.1")  # they are all here, and ask nobody who connects
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=world, timeout=limit)
        group = dist.group.WORLD
    measures = [measure(job, scratch / str(number), group) for number, job in enumerate(jobs)]
    first, *others = measures
    ready_s = first.pop("ready") - began
    for other in others:
        other.pop("ready")
        other["start_s"] = None
    first["start_s"] = max(0.0, ready_s - first["load_s"] - first["evaluate_final_s"])
    if group is not None:
        dist.destroy_process_group()
    return measures


def measure(job: JobConfig, folder: Path, group: dist.ProcessGroup | None) -> Measures:
    """Measure what one job takes, on every rank of `group`; `ready`: unix seconds when it could first be trained.

    Raises what Training does, and ValueError for a job that diverges at once.
    """
    from jobs.core.collectives import agree
    from jobs.metrics import evaluate

    def most(seconds: float) -> float:
        """Return the most of all ranks, so that they decide alike."""
        return max(taken for (taken,) in agree([int(seconds * 1e6)], group, what="probe")) / 1e6

    job = _endless(job)
    training, took = _begin(job, folder / "cold", group)
    ready = time.time()
    if most(took["loading"] + took["evaluation"]) < AGAIN_S:
        del training
        training, took = _begin(job, folder / "warm", group)
    evaluate_s = took["evaluation"]
    if job.task == "image" and job.evaluate.probe:
        before = time.perf_counter()
        evaluate.evaluate(
            training.model, training.evaluation, job=job, tokenizer=training.tokenizer, group=group,
            device=training.device,
        )  # fmt: skip
        evaluate_s = time.perf_counter() - before
    first_step_s = _step(training)
    for _ in range(WARM_UP - 1):
        _step(training)
    steps, seconds = 0, 0.0
    while steps < LEAST_STEPS or (steps < MOST_STEPS and most(seconds) < ENOUGH_S):
        seconds += _step(training)
        steps += 1
    step_s = most(seconds) / steps
    peak = max(needed for (needed,) in agree([training.trial_memory.needed()], group, what="peak memory"))
    return {
        "load_s": most(took["loading"]),
        "evaluate_s": most(evaluate_s),
        "evaluate_final_s": most(took["evaluation"]),
        "first_step_s": most(first_step_s),
        "step_s": step_s,
        "steps": steps,
        "samples_per_second": job.batch.size / step_s,
        "peak_memory_mb": peak / 2**20,
        "ready": ready,
    }


def _endless(job: JobConfig) -> JobConfig:
    """Return the job without an end, a checkpoint or an evaluation within the steps that are probed; its rate warms up
    slowly, so that it does not diverge meanwhile."""
    execution = job.execution.model_dump() | {"checkpoint_every": 10**9, "verify": False}
    evaluate = job.evaluate.model_dump() | {"times": 1}
    changed = {"budget": {"steps": 10**9}, "execution": execution, "evaluate": evaluate}
    return JobConfig.model_validate(job.model_dump() | changed)


def _begin(job: JobConfig, folder: Path, group: dist.ProcessGroup | None) -> tuple[Training, Mapping[str, float]]:
    """Start a training, up to its first step, and return it with the seconds of its phases: "loading", "evaluation"."""
    from jobs.train import Training

    entered = [("loading", time.perf_counter())]
    training = Training(
        job, folder, group=group, log=lambda _: None, phase=lambda name: entered.append((name, time.perf_counter()))
    )
    entered.append(("", time.perf_counter()))
    took = dict.fromkeys(("loading", "evaluation"), 0.0)
    for (name, since), (_, until) in itertools.pairwise(entered):
        took[name] = took.get(name, 0.0) + until - since
    return training, took


def _step(training: Training) -> float:
    """Train for one optimizer step and return its seconds."""
    before = training.seconds
    training.advance(1)
    if training.result is not None:
        raise ValueError(f"the job diverges at step {training.step + 1}: {training.result['why']}")
    return training.seconds - before


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
