"""Warm gangs on real Ray: the same results as cold ranks, and every way of dying told by its own name."""

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cgroups import MB, limited

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from jobs.config import EXECUTION_METRICS, JobConfig
from jobs.train import Training
from jobs.workers.group import Gang, GangError
from orchestrator.sweep import merged

JOB: dict[str, Any] = {
    "task": "image",
    "seed": 1,
    "budget": {"steps": 6},
    "data": {"train": "digits[:300]", "confirm": "digits[300:400]"},
    "model": {"name": "resnet", "width": 8, "layers": 1},
    "batch": {"size": 16},
    "evaluate": {"times": 2, "probe": False, "references": 300},
    "execution": {"ranks": 2},
}


def job(**settings: Any) -> dict[str, Any]:
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    return JobConfig.model_validate(merged(JOB, settings)).model_dump(mode="json")


@pytest.fixture(scope="module")
def slot() -> Iterator[Any]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    group = placement_group([{"CPU": 1}] * 2, strategy="PACK")
    ray.get(group.ready(), timeout=60)
    yield group
    remove_placement_group(group)
    ray.shutdown()


@pytest.fixture
def gang(slot: Any) -> Iterator[Gang]:
    made = Gang(slot, size=2, cpus=1, gpus=0)
    yield made
    made.kill()


def run(gang: Gang, config: dict[str, Any], folder: Path) -> dict[tuple[str, int], float]:
    report = gang.begin(config, str(folder))
    points = {(p["key"], p["step"]): p["value"] for p in report["points"]}
    while report["result"] is None:
        report = gang.advance()
        points |= {(p["key"], p["step"]): p["value"] for p in report["points"]}
    gang.end()
    return {key: value for key, value in points.items() if not key[0].startswith(EXECUTION_METRICS)}


def test_a_warm_gang_gives_what_cold_ranks_give_bit_for_bit_whatever_ran_before(gang: Gang, tmp_path: Path) -> None:
    """World sizes alternate: the process group is re-formed, and nothing of the trial before is left, of which nothing
    is spared when garbage is collected, as what was imported is, once: a second time would spare 40,000 more."""
    warm = run(gang, job(), tmp_path / "first")
    spared = never_collected(gang)
    assert min(spared) > 100_000
    one = run(gang, job(execution__ranks=1, loss__name="dcl", seed=9), tmp_path / "one")
    again = run(gang, job(), tmp_path / "again")
    assert warm == again
    assert never_collected(gang) == pytest.approx(spared, abs=1000)
    alone = Training(
        JobConfig.model_validate(job(execution__ranks=1, loss__name="dcl", seed=9)),
        tmp_path / "alone",
        log=lambda _: None,
    )
    while alone.result is None:
        alone.advance(10)
    assert one == {(p.key, p.step): p.value for p in alone.points if not p.key.startswith(EXECUTION_METRICS)}
    assert "step 6 of 6" in (tmp_path / "first" / "log.rank0.txt").read_text()
    assert (tmp_path / "first" / "log.rank1.txt").exists()


def never_collected(gang: Gang) -> list[int]:
    """How many objects each rank spares."""
    return [ray.get(rank.__ray_call__.remote(lambda _: gc.get_freeze_count())) for rank in gang._ranks]


def advance_for_ever(gang: Gang) -> None:
    while True:
        gang.advance()


def rank_pids(gang: Gang) -> list[int]:
    return [ray.get(rank.__ray_call__.remote(lambda _: os.getpid())) for rank in gang._ranks]


@pytest.mark.soak
def test_a_job_that_is_evaluated_after_every_step_is_asked_for_no_more_steps_than_it_takes_a_turn_to_do(
    gang: Gang, tmp_path: Path
) -> None:
    """A turn ends with an evaluation, however many steps were asked for. Mutant check: a pace of the steps asked for
    doubles until no float holds it, and some two hundred evaluations later the trial is lost."""
    gang.begin(job(budget__steps=12, evaluate__times=12), str(tmp_path))
    paces = [gang._pace for _ in range(12) if gang.advance()]
    assert max(paces) < 1000
    gang.end()


@pytest.mark.soak
def test_a_killed_rank_ends_the_gang_within_seconds(gang: Gang, tmp_path: Path) -> None:
    """Rank 0 waits in a collective for rank 1; what the user sees is rank 1's death, not rank 0's broken pipe."""
    gang.begin(job(budget__steps=100_000, evaluate__times=1), str(tmp_path))
    pids = rank_pids(gang)
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        os.kill(pids[1], signal.SIGKILL)

    threading.Timer(1.5, kill).start()
    with pytest.raises(GangError) as caught:
        advance_for_ever(gang)
    assert time.monotonic() - killed_at[0] < 10
    assert (caught.value.failure.kind, caught.value.failure.rank) == ("worker_lost", 1)
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived its gang"
        time.sleep(0.05)


@pytest.mark.soak
def test_a_rank_that_is_gone_fails_no_trial_that_does_without_it_and_the_first_that_needs_it(
    gang: Gang, tmp_path: Path
) -> None:
    """Also where the process group that it was in is left. Mutant check: asking every rank of the gang at the beginning
    of a trial, or waiting until every rank has left, is `worker_lost`."""
    run(gang, job(), tmp_path / "both")
    os.kill(rank_pids(gang)[1], signal.SIGKILL)
    one = job(execution__ranks=1)
    assert run(gang, one, tmp_path / "one") == run(gang, one, tmp_path / "again")
    with pytest.raises(GangError) as caught:
        gang.begin(job(), str(tmp_path / "needs it"))
    assert (caught.value.failure.kind, caught.value.failure.rank) == ("worker_lost", 1)


def test_the_exception_of_the_only_rank_that_raised_is_what_is_seen(gang: Gang, tmp_path: Path) -> None:
    (tmp_path / "log.rank1.txt").symlink_to(tmp_path / "no folder" / "log")
    with pytest.raises(GangError) as caught:
        gang.begin(job(), str(tmp_path))
    failure = caught.value.failure
    assert (failure.kind, failure.rank) == ("user_error", 1)
    assert failure.message.startswith("rank 1: FileNotFoundError")
    assert "log.rank1.txt" in failure.trace


def test_a_job_for_more_ranks_than_there_are_is_refused(gang: Gang, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wants 3 ranks, the gang has 2"):
        gang.begin(job(execution__ranks=3), str(tmp_path))


@pytest.mark.soak
def test_a_saved_gang_continues_where_it_was(gang: Gang, tmp_path: Path) -> None:
    whole = run(gang, job(budget__steps=60), tmp_path / "whole")
    gang.begin(job(budget__steps=60), str(tmp_path / "cut"))
    gang.advance()
    gang.save()
    gang.end()
    assert run(gang, job(budget__steps=60), tmp_path / "cut") == whole
    assert "continues after step" in (tmp_path / "cut" / "log.rank0.txt").read_text()


# Memory


def ended_while_eating(gang: Gang, folder: Path) -> str:
    """The message of a gang whose rank 1 takes more than 200 MB in a cgroup that holds no more."""
    gang.begin(job(budget__steps=100_000, evaluate__times=1), str(folder))
    pid = rank_pids(gang)[1]
    with limited(200 * MB) as cgroup:
        cgroup.take(pid)
        gang.advance()
        gang._ranks[1].__ray_call__.remote(lambda _: [bytes([1]) * 2**24 for _ in range(64)])  # not all of a machine
        with pytest.raises(GangError) as caught:
            advance_for_ever(gang)
    failure = caught.value.failure
    assert (failure.kind, failure.rank) == ("out_of_memory", 1), failure.message
    return failure.message


@pytest.mark.soak
def test_a_rank_that_linux_ends_for_want_of_memory_is_out_of_memory(gang: Gang, tmp_path: Path) -> None:
    """Mutant check: with the counters of the gang's own cgroup in place of the rank's it is `worker_lost`."""
    message = ended_while_eating(gang, tmp_path)
    assert re.fullmatch(
        r"rank 1 was killed by the system because memory ran out; peak memory of the trial [1-9][\d,]* MB; "
        r"limit of its cgroup 200 MB",
        message,
    )


@pytest.mark.soak
def test_a_killed_rank_in_a_tight_cgroup_is_no_victim_of_it_whatever_the_machine_ends_meanwhile(
    gang: Gang, tmp_path: Path
) -> None:
    """Mutant check: a verdict from the machine's counter is `out_of_memory`."""
    gang.begin(job(budget__steps=100_000, evaluate__times=1), str(tmp_path))
    pid = rank_pids(gang)[1]
    with limited(300 * MB) as its, limited(100 * MB) as another:
        its.take(pid)
        gang.advance()
        code = "import sys; sys.stdin.read(1); x = [b'x' * 2**24 for _ in range(40)]"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as victim:
            another.take(victim.pid)
            assert victim.stdin is not None
            victim.stdin.write(b"!")
        assert victim.returncode == -signal.SIGKILL
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(GangError) as caught:
            advance_for_ever(gang)
    assert (caught.value.failure.kind, caught.value.failure.rank) == ("worker_lost", 1)


def failing() -> Callable[[Any], None]:
    """What makes a rank's training raise from now on, in a way that no other process can be sent."""

    class TheirError(Exception):
        def __init__(self, *, step: int) -> None:
            super().__init__(f"step {step} is wrong")

    class Broken:
        def __getattr__(self, _name: str) -> Any:
            raise TheirError(step=7)

    def fail(rank: Any) -> None:
        rank._training = Broken()

    return fail


@pytest.mark.soak
def test_an_exception_that_cannot_be_sent_is_still_the_reason_with_its_traceback(gang: Gang, tmp_path: Path) -> None:
    gang.begin(job(budget__steps=100_000, evaluate__times=1), str(tmp_path))
    ray.get(gang._ranks[0].__ray_call__.remote(failing()))
    with pytest.raises(GangError) as caught:
        advance_for_ever(gang)
    failure = caught.value.failure
    assert (failure.kind, failure.message) == ("user_error", "rank 0: TheirError: step 7 is wrong")
    assert "raise TheirError(step=7)" in failure.trace
    assert "UnserializableException" not in failure.trace
