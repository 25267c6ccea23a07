"""`python -m jobs.workers.profile`, as `plan --probe` runs it: real ranks, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from jobs.config import JobConfig
from jobs.workers import profile
from jobs.workers.profile import AGAIN_S
from orchestrator.cli import main

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "sweeps" / "quickstart.toml"

JOB = """
task = "image"
budget = { steps = 60 }
[data]
train = "digits[:600]"
confirm = "digits[600:900]"
[model]
name = "resnet"
width = 8
layers = 1
[batch]
size = 32
[evaluate]
times = 1
references = 300
[execution]
ranks = RANKS
"""
KEYS = {
    *("load_s", "evaluate_s", "evaluate_final_s", "first_step_s", "step_s", "steps", "samples_per_second"),
    *("peak_memory_mb", "start_s"),
}
SLOW = JOB.replace("size = 32", "size = 600").replace("width = 8", "width = 64")
"""Steps of seconds."""


def write(folder: Path, text: str = JOB, *, ranks: int = 1, name: str = "job.toml") -> Path:
    path = folder / name
    path.write_text(text.replace("RANKS", str(ranks)))
    return path


def environment(folder: Path) -> dict[str, str]:
    """In which whatever a probe leaves would lie in `folder`/scratch."""
    (folder / "scratch").mkdir(exist_ok=True)
    return os.environ | {"TMPDIR": str(folder / "scratch"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def run(folder: Path, *arguments: str | Path, module: str = "jobs.workers.profile") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=200
    )


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks among its children, which have loaded torch."""
    children = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    return [child for child in children if any("libtorch" in one.path for one in child.memory_maps())]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_probe_is_as_fast_as_the_training_and_leaves_nothing(tmp_path: Path, ranks: int) -> None:
    """Within a factor of three, since other processes take their share. Mutant check: without division by the number of
    steps it is far outside."""
    job = write(tmp_path, ranks=ranks)
    probed = run(tmp_path, job)
    assert probed.returncode == 0, probed.stderr
    (line,) = probed.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == KEYS
    assert left(tmp_path) == ["job.toml", "scratch"]
    arguments: list[str | Path] = ["-m", "jobs.train", job, "--into", tmp_path / "trial"]
    module = "jobs.train"
    if ranks == 2:
        arguments, module = ["--standalone", "--nproc-per-node", "2", *arguments], "torch.distributed.run"
    trained = run(tmp_path, *(arguments if ranks == 2 else arguments[2:]), module=module)
    assert trained.returncode == 0, trained.stderr
    result = json.loads((tmp_path / "trial" / "result.json").read_text())
    assert 1 / 3 < found["samples_per_second"] / result["samples_per_second"] < 3
    assert 1 / 2 < found["peak_memory_mb"] / result["peak_memory_mb"] < 2
    assert found["samples_per_second"] == pytest.approx(32 / found["step_s"])
    assert 2 <= found["steps"] <= 20
    assert 0 < found["evaluate_s"] < found["evaluate_final_s"]
    assert 0 < found["load_s"] < max(3 * found["start_s"], AGAIN_S)  # where that was long, it is the first time


def test_further_jobs_find_the_ranks_warm(tmp_path: Path) -> None:
    first, second = write(tmp_path), write(tmp_path, JOB.replace("size = 32", "size = 64"), name="other.toml")
    done = run(tmp_path, first, second)
    assert done.returncode == 0, done.stderr
    one, two = map(json.loads, done.stdout.splitlines())
    assert (one["start_s"] > 0, two["start_s"]) == (True, None)
    assert two["samples_per_second"] == pytest.approx(64 / two["step_s"])
    assert left(tmp_path / "scratch") == []


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("size = 32", "sise = 32"), 2, "batch.sise = 32: unknown key; did you mean 'batch.size'?"),
        (('"digits[:600]"', '"nowhere.parquet"'), 2, "nowhere.parquet"),
        (('"resnet"', '"vit"\nwidth = 400_000'), 1, "encode fewer pairs at once, for example execution.micro = 8"),
    ],
)
def test_a_job_that_cannot_be_trained_says_why(tmp_path: Path, change: tuple[str, str], code: int, words: str) -> None:
    """The last one wants terabytes. Mutant check: without the remedy for memory its case fails."""
    text = JOB.replace(*change)
    if "vit" in text:
        text = text.replace("width = 8\n", "")
    done = run(tmp_path, write(tmp_path, text, ranks=2))
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
    assert done.stdout == ""
    assert left(tmp_path / "scratch") == []


def start(folder: Path) -> subprocess.Popen[str]:
    """As a script starts it with `&`: without a handler for SIGINT."""
    job = write(folder, SLOW, ranks=2)
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "jobs.workers.profile", str(job)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.soak
def test_a_rank_that_the_system_ends_is_named_and_no_other_is_left(tmp_path: Path) -> None:
    """Mutant check: waiting for the other rank waits for ever."""
    process = start(tmp_path)
    try:
        ranks = until(lambda: len(found := ranks_of(process)) == 2 and found)
        ranks[1].kill()
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (1, ""), error
    assert "rank 1 ended with signal 9, most likely because memory ran out; encode fewer pairs at once" in error
    assert not any(rank.is_running() for rank in ranks)
    assert left(tmp_path / "scratch") == []


PEER: profile.Answer = ("error", ("RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:9", 1, False))


@pytest.mark.parametrize(
    ("cause", "words", "status"),
    [
        (("gone", -9), "rank 1 ended with signal 9, most likely because memory ran out", 1),
        (("gone", 3), "rank 1 ended with exit status 3", 1),
        (("error", ("no column 'imgae'", 2, False)), "rank 1: no column 'imgae'", 2),
        (("error", ("OutOfMemoryError: 2 GB", 1, True)), "execution.micro = 8", 1),
    ],
)
def test_what_the_others_say_of_the_network_is_an_echo(cause: profile.Answer, words: str, status: int) -> None:
    """Mutant check: taking the first rank's word for it fails this."""
    found = profile._cause(
        {0: PEER, 1: cause, 2: ("result", [])}, JobConfig.model_validate(tomllib.loads(JOB.replace("RANKS", "2")))
    )
    assert (found.status, words in str(found)) == (status, True), found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whoever_ends_a_probe_ends_its_ranks(tmp_path: Path, number: signal.Signals) -> None:
    """Mutant check: without the thread that waits for the parent, SIGKILL leaves two ranks."""
    process = start(tmp_path)
    try:
        ranks = until(lambda: len(found := ranks_of(process)) == 2 and found)
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    until(lambda: not any(rank.is_running() for rank in ranks), seconds=5)
    if number != signal.SIGKILL:
        assert left(tmp_path / "scratch") == []


# By way of the command line

SMALL = ("job.model.width=8", "job.evaluate.references=100", "job.data.train=digits[:200]", "confirm.seeds=6")


@pytest.mark.soak
@pytest.mark.slow
def test_plan_probes_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = [word for key in SMALL for word in ("--set", key)]
    done = CliRunner().invoke(main, ["plan", str(QUICKSTART), "--probe", "--json", *changes])
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == ["probing arm temperature=1.0 (1 of 1)"], "the arms cost alike"
    estimate = json.loads(done.stdout)["estimate"]
    assert estimate["source"] == "a probe"
    assert 1 < estimate["seconds"] < 1000
    assert all(arm["peak_memory_mb"] > 100 for arm in estimate["arms"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_probe_that_fails_ends_with_2_and_names_the_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: without the arm's name this fails."""
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", str(QUICKSTART), "--probe", "--set", "job.data.train=nowhere.parquet"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.output
    assert "error: arm temperature=1.0 cannot be probed: rank" in done.output
    assert "nowhere.parquet" in done.output
