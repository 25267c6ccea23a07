"""Row 7 of the fault table: a node is lost. Several raylets on this machine, and a driver at $RAY_ADDRESS. Also row 16,
on a node that is not the gang's."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group
from real import SLOT, SWEEP, TRIALS, call, driver, ended, hosts, measured, named, ray_cluster, recovered, wait_for
from test_executor import SHAPE, running
from test_executor import SWEEP as SETTINGS
from test_gang import advance_for_ever, ended_while_eating, job, rank_pids

from jobs.workers import group as gangs
from jobs.workers.group import Gang, GangError
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session import tune_executor

SLOWER = SWEEP.replace("steps = 8", "steps = 120").replace("checkpoint_every = 3", "checkpoint_every = 20")


@pytest.fixture
def two_workers() -> Iterator[Cluster]:
    """A head without CPUs and two nodes that hold one slot each."""
    with ray_cluster() as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        yield cluster


@pytest.mark.soak
def test_row_7_a_lost_node_costs_one_attempt_and_the_trial_goes_on_elsewhere(
    two_workers: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(SLOWER + "[resources]\nconcurrent = 1\n")
    folder = RunFolder(tmp_path / "runs" / "small")
    env = {"RAY_ADDRESS": str(two_workers.address)}
    with driver("launch", "sweep.toml", "--offline", cwd=tmp_path, env=env) as process:
        wait_for(lambda: list(folder.trials.glob("*/checkpoints/step_*/manifest.json")))
        (host,) = hosts()
        assert host.name() == "raylet"
        began = time.monotonic()
        host.kill()
        before = ended(folder)
        wait_for(lambda: ended(folder) > before, what="the next trial's end")
        recovered("7", time.monotonic() - began)
        said, _ = process.communicate(timeout=250)
        assert process.returncode == 0, said
    with contextlib.closing(folder.open()) as ledger:
        assert ledger.counts()["done"] == TRIALS
        lost = [one for one in ledger.attempts() if one.state == "failed"]
        assert [one.failure for one in lost] == ["node_lost"], [one.message for one in lost]
        assert len(ledger.attempts(lost[0].trial)) == 2
    assert len(measured(tmp_path)) == TRIALS
    assert "nobody drives" in call("stop", "small", cwd=tmp_path)


def kill_all(raylet: psutil.Process, *, first: str) -> None:
    """kill -9 a node as the end of a container does: its processes in any order, here the raylet or its workers
    `first`. Ray's agents, whose end ends a raylet in an orderly way, go last."""
    workers = [worker for worker in raylet.children() if worker.name().startswith("ray::")]
    for process in [raylet, *workers] if first == "raylet" else workers:
        process.kill()
    time.sleep(0.3)
    raylet.kill()


def lost(gang: Gang, kill: Callable[[], None]) -> tuple[str, int | None, float]:
    """Class, rank and seconds, of a gang that trains while `kill` happens."""
    times = []

    def later() -> None:
        time.sleep(1.5)
        kill()
        times.append(time.monotonic())

    thread = threading.Thread(target=later)
    thread.start()
    with pytest.raises(GangError) as caught:
        advance_for_ever(gang)
    thread.join()
    return caught.value.failure.kind, caught.value.failure.rank, time.monotonic() - times[0]


@pytest.fixture(scope="module")
def own_network() -> Iterator[Cluster]:
    """A cluster that notices a lost node as late as Ray does by itself, which this process drives from the head."""
    with ray_cluster(notices_soon=False) as cluster:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
        ray.shutdown()


@pytest.fixture
def apart(own_network: Cluster, tmp_path: Path) -> Iterator[Gang]:
    """A gang that trains, with a rank on each of two nodes of its own, neither of them this process's."""
    nodes = [own_network.add_node(num_cpus=1) for _ in range(2)]
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    ray.get(group.ready(), timeout=60)
    made = Gang(group, size=2, cpus=1, gpus=0)
    made.begin(job(budget__steps=100_000, evaluate__times=1), str(tmp_path / "trial"))
    yield made
    made.kill()
    ray.util.remove_placement_group(group)
    for node in nodes:
        with contextlib.suppress(Exception):
            own_network.remove_node(node)


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("first", ["workers", "raylet"])
def test_a_rank_whose_raylet_was_killed_is_node_lost_long_before_the_cluster_says_so(apart: Gang, first: str) -> None:
    """Mutant check: without asking the raylet's port it is `worker_lost` after the workers, and takes the cluster's ten
    seconds and more after the raylet."""
    raylet = psutil.Process(rank_pids(apart)[1]).parent()
    assert raylet.name() == "raylet"
    kind, rank, seconds = lost(apart, lambda: kill_all(raylet, first=first))
    assert (kind, rank) == ("node_lost", 1)
    assert seconds < 6


@pytest.mark.soak
@pytest.mark.slow
def test_a_killed_rank_on_another_node_is_worker_lost_and_costs_no_wait_for_the_cluster(apart: Gang) -> None:
    """Mutant check: waiting for the cluster to say that a node died takes `NODE_S`."""
    pid = rank_pids(apart)[1]
    kind, rank, seconds = lost(apart, psutil.Process(pid).kill)
    assert (kind, rank) == ("worker_lost", 1)
    assert seconds < gangs.NODE_S / 2


@pytest.mark.slow
def test_row_16_a_rank_on_another_node_is_asked_about_there(apart: Gang, tmp_path: Path) -> None:
    """Mutant check: without a task on the rank's node it is `worker_lost`."""
    assert ended_while_eating(apart, tmp_path / "eaten").endswith("; limit of its cgroup 200 MB")


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("first", ["raylet", pytest.param("workers", marks=pytest.mark.soak)])
def test_a_slot_whose_raylet_was_killed_is_node_lost(own_network: Cluster, tmp_path: Path, first: str) -> None:
    """The actor that drives the gang goes with its node, and the cluster does not know yet why. Mutant check: by its
    exception alone it is `worker_lost`."""
    nodes = [own_network.add_node(num_cpus=2) for _ in range(2)]

    def kill() -> None:
        wait_for(lambda: list(tmp_path.glob("trials/*/checkpoints/step_*/manifest.json")))
        kill_all(named(SLOT)[0].parent(), first=first)

    thread = threading.Thread(target=kill)
    thread.start()
    changes = {"job": SETTINGS["job"] | {"budget": {"steps": 120}}, "confirm": {"seeds": 1}}
    with running(tmp_path, changes) as (session, ledger):
        tune_executor.run(session, shape=SHAPE, scratch=tmp_path / "scratch")
        session.close()
        thread.join()
        (failed,) = [attempt for attempt in ledger.attempts() if attempt.state == "failed"]
        assert failed.failure == "node_lost", failed.message
        assert ledger.counts()["done"] == 2
    for node in nodes:
        with contextlib.suppress(Exception):
            own_network.remove_node(node)
