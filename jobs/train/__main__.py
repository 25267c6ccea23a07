"""One job without ray: what `python -m jobs.train job.toml --into DIR` does, by itself or under torchrun.

python -m jobs.train job.toml --into runs/one
torchrun --nproc-per-node 2 -m jobs.train job.toml --into runs/two     the same result, beyond rounding
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch.distributed as dist

from jobs.artifacts import bucket, trial_dir
from jobs.config import ConfigError, JobConfig, identity, load_job
from jobs.core.collectives import agree
from jobs.core.device import device_of
from jobs.core.failures import is_about_peers
from jobs.core.plain import visible_lines

STEPS_BETWEEN_SIGNALS = 20
"""How often the ranks ask one another whether any of them got a signal to stop."""

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Train one job to its end, or to a signal; then exit 0, or 130 if it can be continued by the same command."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description="Train one job.")
    parser.add_argument("job", type=Path, help="a job as TOML, or a trial's job.json")
    parser.add_argument("--into", type=Path, required=True, help="trial folder; an unfinished one is continued")
    parser.add_argument("--remote", metavar="URI", help="where the trial's files are kept, such as s3://bucket/one")
    options = parser.parse_args(arguments)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        loaded = load_job(options.job)
        job, written = _on_ranks(loaded, world), _written(loaded)
    except ConfigError as error:
        _tell(f"error: {error}")
        sys.exit(2)
    from jobs.data import check
    from jobs.train import Training
    from jobs.train.function import FunctionTraining

    rank = int(os.environ.get("RANK", "0"))
    stop = _Stop()
    with _in_words(rank, opening=True):
        given = job
        if rank == 0:
            job = _as_begun(job, options.into, options.remote, written=written)
            for warning in check(job):
                _tell(f"note: {warning}")
        group = _join(world, job)
        job = _of_rank_0(job, group)
        log = _say if rank == 0 else lambda _: None
        if job != given:
            log(
                f"goes on as it began, with model.pooling = '{job.model.pooling}' and data.max_tokens = "
                f"{job.data.max_tokens}, the defaults of then"
            )
        training = (FunctionTraining if job.is_function else Training)(
            job, options.into, group=group, log=log, remote=options.remote
        )
    with _in_words(rank, opening=False):
        while training.result is None:
            training.advance(STEPS_BETWEEN_SIGNALS)
            if (
                any(asked for (asked,) in agree([int(stop.asked)], training.control, what="signals"))
                and training.result is None
            ):
                training.save()
                training.settle()
                sys.exit(INTERRUPTED)
    if rank == 0:
        print(json.dumps(training.result, indent=1))
    if group is not None:
        dist.destroy_process_group()


@contextlib.contextmanager
def _in_words(rank: int, *, opening: bool) -> Iterator[None]:
    """End the process with 2 for what is wrong with the job or its data, with 1 for what is wrong around it. opening: a
    ValueError is about the job, and not an error in our code."""
    from jobs.data import DataError
    from jobs.train.gradient_check import GradientMismatch

    try:
        yield
    except (GradientMismatch, OSError) as error:
        _tell(f"error: {error}")
        sys.exit(1)
    except ValueError as error:
        if not opening and not isinstance(error, DataError):  # of a row that nobody had read before
            raise
        _tell(f"error: {error}")
        sys.exit(2)
    except RuntimeError as error:
        if not is_about_peers(error):
            raise
        _tell(f"error: rank {rank} waited for another rank, which has ended: see what that one says")
        sys.exit(1)


def _say(line: str) -> None:
    print(visible_lines(line))


def _tell(text: str) -> None:
    print(visible_lines(text), file=sys.stderr)


def _on_ranks(job: JobConfig, world: int) -> JobConfig:
    """Return the job as it is run here: torchrun decides on the ranks, which do not change the result."""
    execution = job.execution.model_copy(update={"ranks": world})
    return JobConfig.model_validate(job.model_dump() | {"execution": execution.model_dump()})


def _written(job: JobConfig) -> set[str]:
    """Return the keys that a job's file gives, among those with a changed default."""
    given = {"model": job.model.model_fields_set, "data": job.data.model_fields_set}
    return {key for key in identity.FORMER if key.partition(".")[2] in given[key.partition(".")[0]]}


def _as_begun(job: JobConfig, folder: Path, remote: str | None, *, written: Collection[str] = ()) -> JobConfig:
    """Return the job with defaults of an earlier version, where its folder was begun with them and the job leaves them
    to today's: what a file does not say goes on as it began. written: keys that the file gives."""
    try:
        there = trial_dir.read_job(bucket.at(folder, remote))
    except (OSError, ValueError, RecursionError):  # `Training` says what is wrong with it
        there = None
    if there is None:
        return job
    before = identity.as_begun(job.model_dump(mode="json"), there.model_dump(mode="json"), written=written)
    return JobConfig.model_validate(before)


def _of_rank_0(job: JobConfig, group: dist.ProcessGroup | None) -> JobConfig:
    held: list[Any] = [job]
    if group is not None:
        dist.broadcast_object_list(held, group=group, group_src=0)
    return cast("JobConfig", held[0])


def _join(world: int, job: JobConfig) -> dist.ProcessGroup | None:
    if world == 1:
        return None
    backend = "nccl" if device_of(job.execution).type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=10))
    return dist.group.WORLD


class _Stop:
    """Remembers a SIGTERM or SIGINT; the loop looks between steps."""

    def __init__(self) -> None:
        self.asked = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._tell)

    def _tell(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


if __name__ == "__main__":
    main()
