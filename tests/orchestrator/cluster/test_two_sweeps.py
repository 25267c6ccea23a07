"""Two drivers on one Ray cluster of two CPUs: both get on, each says what it waits for, no result changes."""

from __future__ import annotations

import contextlib
import itertools
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real import SWEEP, call, crowding, driver, kill, measured, ray_cluster, wait_for

from orchestrator.ledger import Attempt
from orchestrator.run_dir import status as statuses
from orchestrator.run_dir.folder import RunFolder

CONFIRM = SWEEP.partition("[tune]")[0]
TURNS = CONFIRM + "[confirm]\nseeds = 2\n"
"""Four trials of two ranks."""

SIDES = CONFIRM.replace("ranks = 2", "ranks = 1").replace("steps = 8", "steps = 60") + "[confirm]\nseeds = 400\n"
"""More trials of one rank than there is time for."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_cluster() as cluster:
        cluster.add_node(num_cpus=2)
        yield cluster.address


@contextlib.contextmanager
def launched(home: Path, run: str, address: str) -> Iterator[subprocess.Popen[str]]:
    with driver(
        "launch", "sweep.toml", "--offline", "--into", f"runs/{run}", cwd=home, env={"RAY_ADDRESS": address}
    ) as process:
        yield process


def attempts(home: Path, run: str) -> list[Attempt]:
    folder = RunFolder(home / "runs" / run)
    if not folder.exists:
        return []
    with contextlib.closing(folder.open()) as ledger:
        return ledger.attempts()


def running(home: Path, run: str) -> int:
    return sum(one.state == "running" for one in attempts(home, run))


def status(home: Path, run: str) -> statuses.Status:
    with contextlib.closing(RunFolder(home / "runs" / run).open()) as ledger:
        return statuses.status(ledger)


def log(home: Path, run: str) -> str:
    return (home / "runs" / run / "driver.log").read_text()


@pytest.mark.soak
def test_two_sweeps_that_need_the_whole_cluster_alternate_trial_by_trial(tmp_path: Path, address: str) -> None:
    """Mutant checks: with slots that are never given back, the second one begins when the first has ended; with a
    request that is not kept back after one was given, which of them is next is left to chance."""
    (tmp_path / "sweep.toml").write_text(TURNS)
    call("launch", "sweep.toml", "--offline", "--into", "runs/alone", cwd=tmp_path, env={"RAY_ADDRESS": address})
    with launched(tmp_path, "a", address) as first, launched(tmp_path, "b", address) as second:
        found = wait_for(
            lambda: next((run for run in "ab" if attempts(tmp_path, run) and status(tmp_path, run)["waits"]), None),
            what="one that waits, although it has had a turn",
        )
        waiting = status(tmp_path, found)
        for process in (first, second):
            process.wait(200)
        assert (first.returncode, second.returncode) == (0, 0), log(tmp_path, "a") + log(tmp_path, "b")
    other = "b" if found == "a" else "a"
    assert waiting["state"] == "queued"
    assert waiting["counts"]["running"] == 0
    assert waiting["waits"] is not None
    assert "waits for 2 CPUs for a slot of 2 ranks: of the cluster's 2 CPUs 0 are free; held by" in waiting["waits"]
    assert f"sweep small (runs/{other}, driven by " in waiting["waits"]
    assert f"held by sweep small (runs/{other}" in log(tmp_path, found)
    turns = sorted((one.started or 0.0, one.ended or 0.0, run) for run in "ab" for one in attempts(tmp_path, run))
    assert len(turns) == 8
    assert all(run != after for (_, _, run), (_, _, after) in itertools.pairwise(turns)), turns
    assert all(ended <= began for (_, ended, _), (began, _, _) in itertools.pairwise(turns)), "waiting was charged"
    alone = measured(tmp_path, "alone")
    assert measured(tmp_path, "a") == measured(tmp_path, "b") == alone


@pytest.mark.soak
def test_two_sweeps_of_single_ranks_have_a_processor_each_until_one_is_killed(tmp_path: Path, address: str) -> None:
    (tmp_path / "sweep.toml").write_text(SIDES)
    with launched(tmp_path, "a", address):
        wait_for(lambda: running(tmp_path, "a") == 2, what="two slots")
        with launched(tmp_path, "b", address) as second:
            wait_for(lambda: attempts(tmp_path, "b"), what="the second driver's first trial")
            wait_for(
                lambda: (running(tmp_path, "a"), running(tmp_path, "b")) == (1, 1),
                seconds=60 * crowding(),
                what="one each",
            )
            before = {run: len(attempts(tmp_path, run)) for run in "ab"}
            wait_for(lambda: all(len(attempts(tmp_path, run)) > before[run] + 3 for run in "ab"), what="more trials")
            assert max(running(tmp_path, run) for run in "ab") == 1
            assert {status(tmp_path, run)["state"] for run in "ab"} == {"running"}
            kill(second)
        wait_for(lambda: running(tmp_path, "a") == 2, what="the room of the one that was killed")
        take_room(address)
    assert all(one.number == 1 for run in "ab" for one in attempts(tmp_path, run)), (
        "nothing was interrupted or tried again"
    )


def take_room(address: str) -> None:
    """As another job, which knows nothing of sweeps: an actor that takes a CPU gets one."""
    code = f"""
import logging, os, ray
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray.init(address={address!r}, log_to_driver=False, logging_level={logging.ERROR})

@ray.remote(num_cpus=1)
class Other:
    def there(self):
        return True

assert ray.get(Other.remote().there.remote(), timeout=120)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
