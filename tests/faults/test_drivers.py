"""Rows 4-6, 8, 11, 12, 15, 22-24 of the fault table: the driver, its head, its disk and its signals.

Whole sweeps by the command line, in processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from real import (
    LONG,
    RANK,
    TRIALS,
    call,
    children,
    driver,
    end,
    ended,
    kill_at_random,
    measured,
    named,
    proven,
    recovered,
    status,
    wait_for,
)

from orchestrator.run_dir.folder import RunFolder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(megabytes)` mounts a tmpfs of that size."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk needs the right to mount: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fault(folder: Path, at: str, do: str = "kill", **where: Any) -> dict[str, str]:
    """The environment in which a fault happens once."""
    plan = folder / "fault.json"
    plan.write_text(json.dumps({"at": at, "do": do, "times": 1} | where))
    return {"PYTHONPATH": str(Path(__file__).parent / "inject"), "ORCHESTRATOR_FAULT": str(plan)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.few(1)
@pytest.mark.parametrize("kills", [1, 3])
def test_row_4_kills_at_random_times_lose_nothing_and_repeat_nothing(
    home: Path, undisturbed: dict[str, float], kills: int
) -> None:
    seed = int(os.environ.get("ORCHESTRATOR_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}: ORCHESTRATOR_SEED={seed} repeats this test")
    kill_at_random(home, kills=kills, moments=random.Random(seed), between_s=(2.0, 14.0))
    began = time.time()
    call("launch", "sweep.toml", cwd=home)
    with contextlib.closing(RunFolder(home / "runs" / "small").open()) as ledger:
        if fresh := [point.time for point in ledger.points() if point.time > began]:
            recovered("4", min(fresh) - began)
    assert measured(home) == undisturbed
    proven(home)


@pytest.mark.soak
def test_row_5_an_mlflow_run_that_the_ledger_does_not_know_is_adopted(
    home: Path, undisturbed: dict[str, float]
) -> None:
    """The driver is killed between making the run in MLflow and recording it."""
    with driver("launch", "sweep.toml", cwd=home, env=fault(home, "set_mlflow_run")) as process:
        assert process.wait(120) == -signal.SIGKILL
    call("launch", "sweep.toml", cwd=home)
    assert measured(home) == undisturbed
    proven(home)


@pytest.mark.soak
def test_row_6_a_driver_killed_between_the_last_checkpoint_and_done_trains_nothing_again(
    home: Path, undisturbed: dict[str, float]
) -> None:
    with driver("launch", "sweep.toml", cwd=home, env=fault(home, "finish_attempt")) as process:
        assert process.wait(120) == -signal.SIGKILL
        left = children(process) if process.poll() is None else []
    end(left)
    trials = home / "runs" / "small" / "trials"
    wait_for(lambda: list(trials.glob("*/result.json")), seconds=10)
    (result,) = trials.glob("*/result.json")
    weights = {path: path.stat().st_mtime_ns for path in result.parent.glob("checkpoints/*/*")}
    call("launch", "sweep.toml", cwd=home)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert measured(home) == undisturbed
    proven(home)


@pytest.mark.soak
@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_row_8_a_dead_head_ends_the_driver_with_75_and_the_run_continues(
    home: Path, undisturbed: dict[str, float], part: str
) -> None:
    folder = RunFolder(home / "runs" / "small")
    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        wait_for(lambda: ended(folder) >= 1)
        family = children(process)
        (victim,) = [one for one in family if one.name() == part]
        victim.kill()
        began = time.monotonic()
        assert process.wait(60) == 75
        assert time.monotonic() - began < 30
        recovered(f"8, {part}", time.monotonic() - began)
        said, _ = process.communicate()
        assert "the Ray cluster died under the driver" in said
        assert part in said
        assert not psutil.wait_procs(family, timeout=10)[1], "something of the cluster outlived the driver"
    assert status(home)["driver"] is None
    call("launch", "sweep.toml", "--offline", cwd=home)
    assert measured(home) == undisturbed


@pytest.mark.soak
def test_row_11_a_full_disk_stops_the_sweep_with_4_and_names_path_and_bytes(
    home: Path, small_disk: Callable[[int], Path], undisturbed: dict[str, float]
) -> None:
    """Room for the ledger, which lies elsewhere here, but not for all checkpoints."""
    disk = small_disk(2)
    env = {"ORCHESTRATOR_LEDGER": f"sqlite:///{home / 'ledger.db'}"}
    into = str(disk / "small")
    filler = disk / "filler"
    with driver("launch", "sweep.toml", "--offline", "--into", into, cwd=home, env=env) as process:
        wait_for(lambda: list(disk.glob("small/trials/*/checkpoints/step_000003/manifest.json")))
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 4, said
    assert "storage_full" in said
    assert "bytes in" in said
    assert str(disk) in said
    stood = json.loads(call("status", into, "--json", cwd=home, env=env))
    assert stood["state"] == "stopped"
    assert stood["counts"]["running"] == 0
    assert "storage_full" in {trial["failure"] for trial in stood["trials"]}
    assert sum(trial["attempts"] for trial in stood["trials"]) == stood["counts"]["done"] + 1, "nothing more was begun"
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    call("launch", "sweep.toml", "--offline", "--into", into, cwd=home, env=env)
    again = json.loads(call("status", into, "--json", cwd=home, env=env))
    assert {trial["id"]: trial["metric"] for trial in again["trials"]} == undisturbed


@pytest.mark.soak
def test_row_12_a_full_disk_under_the_ledger_stops_cleanly_and_leaves_no_half_rows(
    home: Path, small_disk: Callable[[int], Path], undisturbed: dict[str, float]
) -> None:
    disk = small_disk(2)
    env = {"ORCHESTRATOR_LEDGER": f"sqlite:///{disk / 'ledger.db'}"}
    folder = home / "runs" / "small"
    filler = disk / "filler"
    with driver("launch", "sweep.toml", "--offline", cwd=home, env=env) as process:
        wait_for(lambda: list(folder.glob("trials/*/result.json")))
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 4, said
    assert "free some space in" in said
    assert "Traceback" not in said
    filler.unlink()
    call("launch", "sweep.toml", "--offline", cwd=home, env=env)
    assert measured(home) == undisturbed
    assert json.loads(call("status", "small", "--json", cwd=home, env=env))["counts"]["done"] == TRIALS


@pytest.mark.soak
def test_row_15_a_driver_stopped_past_its_lease_is_replaced_and_its_writes_are_refused(
    home: Path, undisturbed: dict[str, float]
) -> None:
    """SIGSTOP to the driver and all it started; another takes over once the lease has run out; SIGCONT."""
    folder = RunFolder(home / "runs" / "small")
    with driver("launch", "sweep.toml", "--offline", cwd=home) as stale:
        wait_for(lambda: ended(folder) >= 1)
        family = [psutil.Process(stale.pid), *children(stale)]
        for _ in range(50):
            each(family, psutil.Process.suspend)
            if not is_locked(folder.path / "ledger.db"):
                break
            each(family, psutil.Process.resume)  # within a transaction, which keeps everybody out while it stands
            time.sleep(0.05)
        said = call("resume", "small", "--offline", cwd=home, code=3)
        assert f"pid {stale.pid}" in said
        wait_for(lambda: status(home)["driver"] is None, seconds=60, what="the end of the lease")
        call("launch", "sweep.toml", "--offline", cwd=home)
        before = status(home)
        assert before["state"] == "done"
        each(family, psutil.Process.resume)
        told, _ = stale.communicate(timeout=90)
        assert stale.returncode == 3, told
        assert "took it over" in told
    assert status(home) == before
    assert measured(home) == undisturbed


def each(family: list[psutil.Process], signalled: Callable[[psutil.Process], None]) -> None:
    """Signal all that are still there."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            signalled(process)


def is_locked(ledger: Path) -> bool:
    """Whether somebody is writing."""
    with contextlib.closing(sqlite3.connect(ledger, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
    return False


@pytest.mark.soak
def test_row_24_ctrl_c_once_checkpoints_and_twice_stops_at_once_and_both_continue(home: Path) -> None:
    """To the whole process group, as a terminal does it."""
    (home / "sweep.toml").write_text(LONG)
    folder = RunFolder(home / "runs" / "small")

    def steps() -> list[int]:
        return sorted(int(p.parent.name[5:]) for p in folder.trials.glob("*/checkpoints/step_*/manifest.json"))

    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        wait_for(steps)
        asked = time.time()
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        recovered("24, once", time.time() - asked)
    assert "continue:  orchestrator resume" in said
    stood = status(home)
    assert (stood["state"], stood["counts"]["running"]) == ("stopped", 0)
    (trial,) = [trial for trial in stood["trials"] if trial["attempts"]]
    assert (trial["state"], trial["failure"]) == ("queued", "interrupted")
    newest = steps()[-1]
    committed = folder.trial(trial["id"]) / "checkpoints" / f"step_{newest:06d}" / "manifest.json"
    assert committed.stat().st_mtime > asked, "nothing was saved when it was stopped"
    with driver("resume", "small", "--offline", cwd=home) as process:
        log = folder.trial(trial["id"]) / "log.rank0.txt"
        wait_for(lambda: f"continues after step {newest} " in log.read_text())
        wait_for(lambda: steps()[-1] > newest)
        family = children(process)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert time.monotonic() - began < 10
        recovered("24, twice", time.monotonic() - began)
        assert not psutil.wait_procs(family, timeout=10)[1]
    assert status(home)["driver"] is None


@pytest.mark.soak
def test_sigterm_checkpoints_within_its_grace_and_stop_asks_from_outside(home: Path) -> None:
    (home / "sweep.toml").write_text(LONG)
    folder = RunFolder(home / "runs" / "small")
    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        wait_for(lambda: list(folder.trials.glob("*/checkpoints/step_*/manifest.json")))
        began = time.monotonic()
        process.terminate()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert time.monotonic() - began < 25
    assert "stopped: SIGTERM" in said
    with driver("resume", "small", "--offline", cwd=home) as process:
        wait_for(lambda: status(home)["counts"]["running"] == 1)
        assert "has stopped; continue: orchestrator resume" in call("stop", "small", cwd=home)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
    assert "asked to, by orchestrator stop" in said
    assert "nobody drives" in call("stop", "small", cwd=home)


@pytest.mark.soak
def test_a_grace_period_that_is_over_ends_the_driver_and_what_it_started(home: Path) -> None:
    """A rank that cannot be asked to checkpoint, because it is stopped, does not hold up a pre-emption."""
    (home / "sweep.toml").write_text(LONG)
    folder = RunFolder(home / "runs" / "small")
    with driver("launch", "sweep.toml", "--offline", cwd=home, env={"ORCHESTRATOR_GRACE_S": "3"}) as process:
        wait_for(lambda: list(folder.trials.glob("*/checkpoints/step_*/manifest.json")))
        family = children(process)
        for rank in named(RANK, process.pid):
            rank.suspend()
        began = time.monotonic()
        process.terminate()
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert 2.5 < time.monotonic() - began < 8
        assert not psutil.wait_procs(family, timeout=10)[1]
    assert "the grace period of 3 s after SIGTERM is over" in said
    assert status(home)["driver"] is None


@pytest.mark.soak
def test_row_16_a_rank_that_fills_the_host_s_memory_is_told_apart_from_one_that_just_died(home: Path) -> None:
    """Ray ends the largest process of a node that runs short. Here it is short three gigabytes above what is in use."""
    memory = psutil.virtual_memory()
    if memory.available < 8 * 2**30:
        pytest.skip("needs 8 GiB of free memory")
    threshold = (memory.total - memory.available + 3 * 2**30) / memory.total
    env = fault(home, "step", "eat", rank=1, step=5) | {"RAY_memory_usage_threshold": f"{threshold:.4f}"}
    call("launch", "sweep.toml", "--offline", cwd=home, code=1, env=env)
    (trial,) = [trial for trial in status(home)["trials"] if trial["state"] == "failed"]
    assert (trial["failure"], trial["attempts"]) == ("out_of_memory", 1)
    assert "peak memory of the trial" in trial["message"]


@pytest.mark.soak
def test_row_23_a_bug_of_the_user_s_stops_the_sweep_after_three_trials(home: Path) -> None:
    env = fault(home, "step", "raise", times=10**6)
    said = call("launch", "sweep.toml", "--offline", cwd=home, code=1, env=env)
    stood = status(home)
    assert stood["counts"]["failed"] == 3, said
    assert {trial["failure"] for trial in stood["trials"] if trial["attempts"]} == {"user_error"}
    assert stood["state"] == "stopped"


@pytest.mark.soak
def test_row_22_an_edited_sweep_is_refused_with_the_keys_that_differ(home: Path, tmp_path: Path) -> None:
    (home / "sweep.toml").write_text(LONG)
    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        wait_for(lambda: status(home)["counts"]["running"] if RunFolder(home / "runs" / "small").exists else 0)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    for change in ("job.loss.temperature=0.2", "tune.trials=3", "job.execution.micro=4", "confirm.seeds=4"):
        said = call("launch", "sweep.toml", "--offline", "--set", change, cwd=home, code=2)
        assert f"  {change.partition('=')[0]}: " in said
        assert "orchestrator resume" in said
    assert "job.loss.temperature" in call("resume", "small", "--set", "job.loss.temperature=0.2", cwd=home, code=2)
    for allowed in (["--set", "retry.hung=7"], ["--set", "resources.concurrent=1"]):
        with driver("launch", "sweep.toml", "--offline", *allowed, cwd=home) as process:
            wait_for(lambda: status(home)["counts"]["running"] == 1)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            assert process.returncode == 130
