"""Warm gangs on real Ray: the same results as cold ranks, and every way of dying told by its own name."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from jobs.config import COMPUTING, JobConfig
from jobs.gang import Gang, GangError
from jobs.train import Training
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
    return {key: value for key, value in points.items() if not key[0].startswith(COMPUTING)}


def test_a_warm_gang_gives_what_cold_ranks_give_bit_for_bit_whatever_ran_before(gang: Gang, tmp_path: Path) -> None:
    """World sizes alternate: the process group is re-formed, and nothing of the trial before is left."""
    warm = run(gang, job(), tmp_path / "first")
    one = run(gang, job(execution__ranks=1, loss__name="dcl", seed=9), tmp_path / "one")
    again = run(gang, job(), tmp_path / "again")
    assert warm == again
    alone = Training(
        JobConfig.model_validate(job(execution__ranks=1, loss__name="dcl", seed=9)),
        tmp_path / "alone",
        log=lambda _: None,
    )
    while alone.result is None:
        alone.advance(10)
    assert one == {(p.key, p.step): p.value for p in alone.points if not p.key.startswith(COMPUTING)}
    assert "step 6 of 6" in (tmp_path / "first" / "log.rank0.txt").read_text()
    assert (tmp_path / "first" / "log.rank1.txt").exists()


def advance_for_ever(gang: Gang) -> None:
    while True:
        gang.advance()


def rank_pids(gang: Gang) -> list[int]:
    return [ray.get(rank.__ray_call__.remote(lambda _: os.getpid())) for rank in gang._ranks]


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


def test_the_exception_of_the_only_rank_that_raised_is_what_is_seen(gang: Gang, tmp_path: Path) -> None:
    (tmp_path / "log.rank1.txt").mkdir()
    with pytest.raises(GangError) as caught:
        gang.begin(job(), str(tmp_path))
    failure = caught.value.failure
    assert (failure.kind, failure.rank) == ("user_error", 1)
    assert failure.message.startswith("rank 1: IsADirectoryError")
    assert "log.rank1.txt" in failure.trace


def test_a_job_for_more_ranks_than_there_are_is_refused(gang: Gang, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wants 3 ranks, the gang has 2"):
        gang.begin(job(execution__ranks=3), str(tmp_path))


def test_a_saved_gang_continues_where_it_was(gang: Gang, tmp_path: Path) -> None:
    whole = run(gang, job(budget__steps=60), tmp_path / "whole")
    gang.begin(job(budget__steps=60), str(tmp_path / "cut"))
    gang.advance()
    gang.save()
    gang.end()
    assert run(gang, job(budget__steps=60), tmp_path / "cut") == whole
    assert "continues after step" in (tmp_path / "cut" / "log.rank0.txt").read_text()
