"""`orchestrator ui`, with MLflow's real server: it starts, says where to look, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from ledgers import Begin
from real import free_port

from orchestrator.ledger import Ledger, sqlite_url, this_process
from orchestrator.tracking import view
from orchestrator.tracking.arms import RECORDED
from orchestrator.tracking.ui import addresses


@pytest.mark.soak
@pytest.mark.slow
def test_the_server_answers_and_ends_with_the_command(tmp_path: Path) -> None:
    from orchestrator.tracking.store import connect, embedded_uri

    (tmp_path / "runs").mkdir()
    connect(embedded_uri(tmp_path / "runs"))
    port = free_port()
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {tmp_path}/opened\n")
    browser.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "ui", "--port", str(port), "--open"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "BROWSER": str(browser)},
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                break
        assert f"experiments: http://127.0.0.1:{port}/#/experiments\n" in said, said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            assert answer.status == 200
        assert (tmp_path / "opened").read_text() == f"http://127.0.0.1:{port}/#/experiments\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "the server outlived the command"
        time.sleep(0.1)


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("ends_at", ["starting MLflow at", "Ctrl-C ends it"])
def test_a_signal_at_any_time_ends_the_command_and_its_server_without_an_error(tmp_path: Path, ends_at: str) -> None:
    """Also a signal in the moment after a line has been printed. Mutant check: a command that expects it only while it
    waits for the server ends with 1."""
    from orchestrator.tracking.store import connect, embedded_uri

    (tmp_path / "runs").mkdir()
    connect(embedded_uri(tmp_path / "runs"))
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "ui", "--port", str(free_port())]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(ends_at):
            break
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        time.sleep(0.1)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == []


def test_without_a_store_the_command_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "ui"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "launch a sweep first" in done.stderr) == (4, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_addresses_name_the_answer_once_mlflow_has_it(tmp_path: Path) -> None:
    ledger = Ledger.create(sqlite_url(tmp_path / "ledger.db"), name="small", sweep={})
    try:
        assert addresses("http://127.0.0.1:5000", ledger) == []
        ledger.acquire(this_process(), 30)
        ledger.set_run(mlflow_experiment_id="7", mlflow_run_id="abc")
        found = dict(addresses("http://127.0.0.1:5000", ledger))
        assert found["answer"] == "http://127.0.0.1:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
        assert "/runs/abc/artifacts/report/report.html?" in found["report"]
        assert not {"compare", "charts", "arms"} & found.keys(), "there is nothing to compare yet"
    finally:
        ledger.close()


def test_addresses_are_those_of_arms_once_mlflow_has_their_runs_and_of_trials_before(begin: Begin) -> None:
    """As in a run that only an earlier version has written to MLflow. Compare has no arm without the metric."""
    run = begin(seeds=2)
    trials = {arm: run.confirm(arm) for arm in ("plain", "flat")}
    for trial in trials["plain"]:
        run.done(trial, 0.5 + trial.seed / 10)
        run.ledger.set_mlflow_run(trial.id, f"of {trial.id}")
    for trial in trials["flat"]:
        run.done(trial, 0.5, outcome="diverged")
    run.ledger.set_run(mlflow_experiment_id="7", mlflow_run_id="abc", state="done")
    found = dict(addresses("http://h:1", run.ledger))
    assert [*found] == ["answer", "report", "charts", "compare"]
    assert f"viewStateShareKey={view.key(run.ledger.uuid)}&" in found["charts"]
    assert all(f"of%20{trial.id}" in found["compare"] for trial in trials["plain"])
    for run_id, arm in (("old", "plain"), ("first", "plain"), ("second", "flat")):
        run.ledger.event(RECORDED, f"{run_id} {arm}")
    found = dict(addresses("http://h:1", run.ledger))
    assert [*found] == ["answer", "report", "arms", "charts", "curves", "compare"]
    assert "runs=%5B%22first%22%5D&" in found["compare"]
    assert all(f"viewStateShareKey={view.key(run.ledger.uuid, 'arms')}&" in found[page] for page in ("arms", "charts"))


@pytest.mark.parametrize(
    ("uri", "code", "said"),
    [
        ("http://me:w0rd-of-mine@127.0.0.1:9", 0, "experiments: http://127.0.0.1:9/#/experiments\n"),
        ("sqlite:///mlflow.db", 4, "relative to the current directory; give an absolute path"),
        ("postgresql://me:w0rd-of-mine@host/mlflow", 4, "postgresql://me:***@host/mlflow is neither a server"),
    ],
)
def test_no_password_is_shown_or_put_on_a_command_line(tmp_path: Path, uri: str, code: int, said: str) -> None:
    env = os.environ | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "ui"], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "w0rd" not in done.stdout + done.stderr
