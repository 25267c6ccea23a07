"""Row 27 of the fault table: a sweep of 1,000 trials. A session fills its ledger, as Tune's loop would."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from real import HELPERS, call, crowding, driver, measured, wait_for

from orchestrator import verify
from orchestrator.ledger import Ledger, this_process
from orchestrator.run_dir.context import RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.session import Session
from orchestrator.session.writer import Dispatch
from orchestrator.sweep import load, resolved
from orchestrator.sweep.plan import make

TRIALS = 1000
SOME = 200
"""Trials after which memory is measured for the first time: everything is imported by then."""

LEFT = 4
"""Trials that are left for a real driver."""

HUNDRED = 100

ROOT = Path(__file__).parents[2]

SWEEP = """
name = "big"
question = "Which temperature is best?"
metric = { name = "knn_accuracy", smallest_difference = 0.01 }
[job]
task = "image"
budget = { steps = 8 }
[job.data]
train = "digits[:300]"
tune = "digits[300:400]"
confirm = "digits[400:500]"
[job.model]
name = "resnet"
width = 8
layers = 1
[job.batch]
size = 16
[job.evaluate]
times = 2
probe = false
references = 300
[job.execution]
ranks = 2
[compare]
"loss.temperature" = [0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2, 0.5]
[tune]
trials = 90
[tune.space]
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
[confirm]
seeds = 10
"""
"""Ten arms of ninety suggestions and ten confirm seeds."""


def fill(folder: RunFolder, *, most: int) -> None:
    """A run of which `most` trials are done, some fifty points each, with the files that ranks write, but for
    checkpoints. Prints the memory of this process on the way."""
    plan = make(load(folder.path.parent.parent / "sweep.toml"))
    stored = resolved(plan.sweep) | {"plan": plan.summary()}
    folder.path.mkdir(parents=True)
    ledger = Ledger.create(folder.ledger_url(), name=plan.sweep.name, sweep=stored, rules=plan.rules)
    folder.identity.write_text(json.dumps({"run": ledger.uuid, **stored}))
    ledger.acquire(this_process(), 600)
    session = Session(RunContext(plan, folder, ledger), concurrent=1, tell=lambda *_: None)
    memory: dict[int, float] = {}
    seconds: list[float] = []
    session.start()
    for number in range(most):
        if number % HUNDRED == 0:
            seconds.append(time.monotonic())
        dispatch = wait_for(session.next, what=f"attempt {number}")
        session.report(dispatch, answer(dispatch))
        if number + 1 in (SOME, most):
            memory[number + 1] = psutil.Process().memory_info().rss / 2**20
    session.close()
    whole = time.monotonic() - seconds[0]
    assert len(verify.mend(folder, ledger)) == 4 * most, "each file is written as the ledger has it"
    ledger.release()
    ledger.close()
    hundreds = [after - before for before, after in pairwise(seconds)]
    print(json.dumps({"memory": memory, "seconds": whole, "hundreds": hundreds}))


def answer(dispatch: Dispatch) -> dict[str, Any]:
    """What a gang would report of a whole trial."""
    lr, seed = dispatch.job["optimizer"]["lr"], int(dispatch.job["seed"])
    value = 0.9 - abs(lr - 3e-3) + 0.001 * seed
    keys = ("train/loss", "train/lr", "knn_accuracy", "alignment", "uniformity")
    points = [
        {"key": key, "step": step, "value": value * (step / 10), "time": 1.0 + step}
        for key in keys
        for step in range(1, 11)
    ]
    result = {"outcome": "ok", "step": 10, "metrics": {"knn_accuracy": value}, "untrained": {"knn_accuracy": 0.1}}
    return {"points": points, "step": 10, "result": result}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a run of which all but the last trials are done, and what filling it has taken."""
    home = tmp_path_factory.mktemp("filled")
    (home / "sweep.toml").write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, __file__, str(home / "runs" / "big")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((HELPERS, str(ROOT)))},
    )
    assert done.returncode == 0, done.stderr
    return home, json.loads(done.stdout)


def test_row_27_a_plan_of_a_thousand_trials_takes_less_than_five_seconds(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    start = time.monotonic()
    planned = json.loads(call("plan", "sweep.toml", "--json", cwd=tmp_path, imports=True))
    took = time.monotonic() - start
    print(f"{took:.2f} s")
    assert sum(planned["trials"].values()) == TRIALS
    assert took < 5 * crowding()


@pytest.mark.soak
def test_row_27_a_driver_grows_by_little_for_every_trial(filled: tuple[Path, dict[str, Any]]) -> None:
    """Mutant check: keeping what was reported of every trial fails this."""
    memory = filled[1]["memory"]
    each = 1024 * (memory[str(TRIALS - LEFT)] - memory[str(SOME)]) / (TRIALS - LEFT - SOME)
    print(f"{memory} MB: {each:.1f} KB for each trial")
    assert each < 28


@pytest.mark.soak
def test_row_27_a_trial_that_ends_costs_milliseconds_however_many_have_ended(
    filled: tuple[Path, dict[str, Any]],
) -> None:
    """The last hundred that are tuned beside the second. What an arm has tried counts, which its sampler looks at, and
    not what all have. Seen: every trial was read for each suggestion, and the ratio was 2.9 where it is 2.0."""
    early, late = filled[1]["hundreds"][1], filled[1]["hundreds"][8]
    print(f"{1e3 * early / HUNDRED:.0f} ms for each of the second hundred, {1e3 * late / HUNDRED:.0f} ms of the ninth")
    assert late < 2.5 * early
    assert filled[1]["seconds"] / (TRIALS - LEFT) < 0.1 * crowding()


@pytest.mark.soak
def test_row_27_resume_begins_the_next_attempt_within_ten_seconds_and_about_as_soon_as_a_small_run_its_first(
    filled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Both import, look at the data, start Ray and await a slot; what the thousand trials add is the rest.

    Mutant check: writing the files of all trials again fails this.
    """
    (tmp_path / "sweep.toml").write_text(SWEEP)
    new, start = RunFolder(tmp_path / "runs" / "big"), time.monotonic()
    with driver("launch", "sweep.toml", "--offline", *sets("tune.trials=1", "confirm.seeds=3"), cwd=tmp_path):
        wait_for(lambda: new.exists and begun(new), what="a first attempt")
        first = time.monotonic() - start
    home, _ = filled
    folder = RunFolder(home / "runs" / "big")
    with contextlib.closing(folder.open()) as ledger:
        assert ledger.counts() == {"queued": LEFT, "running": 0, "done": TRIALS - LEFT, "pruned": 0, "failed": 0}
        for trial in ledger.trials(state="done")[:30]:
            (folder.trial(trial.id) / "job.json").unlink()
        start = time.monotonic()
        with driver("resume", "big", "--offline", cwd=home) as process:
            wait_for(lambda: ledger.counts()["queued"] < LEFT, what="a new attempt")
            took = time.monotonic() - start
            largest = 0.0
            while process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    largest = max(largest, psutil.Process(process.pid).memory_info().rss / 2**20)
                time.sleep(0.1)
            said, _ = process.communicate()
        print(
            f"first attempt after {took:.1f} s, {took / first:.2f} of a small run's {first:.1f} s; "
            f"exit after {time.monotonic() - start:.1f} s, at most {largest:.0f} MB"
        )
        assert process.returncode == 1, "what was not trained here has no checkpoints, which `verify` calls a fault"
        assert said.count("written again") == 21, "twenty, and how many more there are"
        assert said.count("fault: ") == 11, "ten, and how many more there are"
        assert took < 1.7 * first
        assert took < 10 * crowding()
        assert largest < 1000
        assert ledger.counts()["done"] == TRIALS
        assert len(ledger.attempts()) == TRIALS
    assert len(measured(home, "big")) == TRIALS


def sets(*changes: str) -> list[str]:
    """Arguments that change what a sweep's file says."""
    return [word for change in changes for word in ("--set", change)]


def begun(folder: RunFolder) -> bool:
    """Whether a run has begun an attempt."""
    with contextlib.closing(folder.open()) as ledger:
        return bool(ledger.attempts())


if __name__ == "__main__":
    fill(RunFolder(Path(sys.argv[1])), most=TRIALS - LEFT)
