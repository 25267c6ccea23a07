"""Row 7 of the fault table: a node is lost. Several raylets on this machine, and a driver at $RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from real import SWEEP, TRIALS, call, driver, ended, hosts, measured, ray_cluster, recovered, wait_for

from orchestrator.runs import RunFolder

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
