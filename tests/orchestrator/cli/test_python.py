"""The verbs in Python: real drivers in child processes, and callers that they leave as they were."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from ledgers import Begin, Written, start
from real import LONG, QUICK, SWEEP, call, wait_for

import orchestrator
from jobs.config import ConfigError
from orchestrator import DriverError, Run, launch, open_run
from orchestrator.ledger import sqlite_url
from orchestrator.run_dir.folder import RunError
from orchestrator.system.exit_codes import Exit

CALLER = """
import json, os, signal, sys, threading

def state():
    return {
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "threads": threading.active_count(),
        "files": sorted(os.listdir("/proc/self/fd")),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "exit": os._exit.__module__,
    }

from orchestrator import launch, open_run
before = state()
run = launch("sweep.toml", into="runs/small", overrides={"question": "Which <b>loss</b>?"})
after = state()
assert run.exit_code == 0, run.exit_code
assert before == after, (before, after)
again = open_run("small")
assert again.status()["counts"]["done"] == 10
assert len(again.trials()) == 10
assert again.answer()["sentence"]
heavy = {"torch", "ray", "optuna", "mlflow", "transformers", "sklearn"} & sys.modules.keys()
assert not heavy, heavy
assert state() == before, (before, state())
"""
"""What a notebook does, and whether anything of ours is left in its process."""


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which a fresh process has launched a sweep, and what that printed."""
    folder = tmp_path_factory.mktemp("caller")
    (folder / "sweep.toml").write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, "-c", CALLER], cwd=folder, env=os.environ | QUICK, capture_output=True, text=True, check=False
    )
    return folder, done


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a sweep of trials that last; no driver is left in it."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(LONG)
    yield tmp_path
    for process in psutil.process_iter(["cmdline"]):
        if f"--into={tmp_path / 'runs' / 'small'}" in (process.info["cmdline"] or []):
            process.terminate()
            process.wait(60)


@pytest.fixture
def script(home: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """`script(text)` is a process that runs it, ended with the test, as is the driver that it leaves."""
    begun: list[subprocess.Popen[str]] = []

    def begin(text: str) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                [sys.executable, "-c", f"from orchestrator import *\n{text}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def trained(name: str = "small") -> bool:
    """Whether a trial of the run is at work."""
    with contextlib.suppress(RunError):
        return bool(open_run(name).status()["counts"]["running"])
    return False


# What stays of it in the caller


def test_the_caller_has_neither_ray_nor_torch_nor_a_handler_a_thread_or_a_file_of_ours(
    caller: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Mutant check: calling the driver in place of a child fails this, as does a file of its output left open."""
    _, done = caller
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Which <b>loss</b>?"
    assert any(line.startswith("[10/10] confirm") for line in lines)
    assert "\x1b" not in done.stdout, "lines, and no bar"
    assert any("flatnce against infonce" in line for line in lines)
    assert done.stderr == ""


def test_the_package_itself_imports_nothing_more_and_is_typed() -> None:
    probe = (
        "import sys, orchestrator; print(sorted(name for name in sys.modules if name.startswith(('orch', 'pydantic'))))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['orchestrator']"
    assert {"Sweep", "launch", "open_run"} <= set(dir(orchestrator))
    with pytest.raises(AttributeError, match="lanch"):
        _ = orchestrator.lanch
    for package in ("orchestrator", "jobs"):
        assert (Path(orchestrator.__file__).parents[1] / package / "py.typed").is_file()


# What a run says


def test_a_run_says_what_the_command_line_prints(
    caller: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the caller has gone elsewhere: the path was taken where the run was opened."""
    folder, _ = caller
    monkeypatch.chdir(folder)
    run = open_run("runs/small")
    monkeypatch.chdir("/")
    assert run.status() == json.loads(call("status", "small", "--json", cwd=folder))
    assert run.answer() == json.loads(call("compare", "small", "--json", cwd=folder))
    assert run.report() == folder / "runs" / "small" / "report" / "report.html"
    assert not run.is_running
    assert run.exit_code is None
    assert run.wait() is run
    assert run.stop()
    assert (repr(run), run.name, run.path) == ("Run('runs/small')", "runs/small", folder / "runs" / "small")


def test_trials_are_rows_of_the_report_with_its_columns(written: Written) -> None:
    run = open_run(written.folder.parent / "run")
    with (written.folder / "results.parquet").open("rb") as file:
        table = pq.read_table(file)
    frame = run.trials()
    assert list(frame.columns) == table.column_names
    assert len(frame) == table.num_rows > 10
    assert run.trials("rows") == table.to_pylist()
    assert str(frame["suggestion"].dtype) == "Int64", "numbers, though the confirm stage has none"
    assert str(frame["metric"].dtype) == "float64"
    assert frame.groupby("arm")["metric"].mean().notna().all()
    with pytest.raises(ValueError, match="must be 'frame' or 'rows'"):
        run.trials("table")  # type: ignore[call-overload]


def test_without_pandas_it_is_said_what_to_install_and_rows_are_there(begin: Begin, tmp_path: Path) -> None:
    begin()
    text = """
import sys
from orchestrator import open_run
run = open_run(sys.argv[1])
assert run.trials("rows") == []
run.trials()
"""
    (tmp_path / "pandas.py").write_text("raise ModuleNotFoundError('none here', name='pandas')\n")
    done = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path / "run0")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "needs pandas: pip install 'contrastive-orchestrator[notebook]'" in done.stderr.splitlines()[-1]


def test_a_notebook_shows_a_run_as_text_whatever_it_is_called(begin: Begin, tmp_path: Path) -> None:
    """Mutant check: a question that is put into the page as it is fails this."""
    begin(question="<script>alert(1)</script> & \x1b[31m?")
    run = open_run(tmp_path / "run0")
    shown = run._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; \\x1b[31m?" in shown
    assert "<script>" not in shown
    assert "running" in shown
    (tmp_path / "run0").rename(tmp_path / "gone")
    assert "holds no run" in run._repr_html_()


def test_a_run_in_a_bucket_is_opened_by_its_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = sqlite_url(tmp_path / "ledger.db")
    made = start(tmp_path / "bucket" / "run", database=database)
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", database)
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path / "scratch"))
    run = open_run(f"file://{tmp_path}/bucket/run")
    assert run.status()["run"] == made.ledger.uuid
    assert run.is_running
    made.ledger.close()


def test_what_is_no_run_is_told_with_the_nearest_name(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin()
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path))
    with pytest.raises(RunError, match="there is no run 'run1'; did you mean 'run0'"):
        open_run("run1")


# How a session ends


@pytest.mark.soak
@pytest.mark.slow
def test_a_session_is_left_alone_stopped_resumed_and_refused_to_others(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One run through all of it, as each takes a driver."""
    run = launch(tomllib.loads(LONG), into="runs/small", offline=True, wait=False)
    assert run.is_running
    assert run.exit_code is None
    with pytest.raises(RunError, match="is not begun yet"):
        run.status()
    wait_for(trained, what="a trial")
    with pytest.raises(TimeoutError, match="still runs after 0"):
        run.wait(timeout=0.2)
    assert run.status()["driver"]
    with pytest.raises(DriverError, match=r"has been driving this run .*\(exit code 3\)") as held:
        launch("sweep.toml", offline=True)
    assert held.value.exit_code is Exit.HELD
    other = open_run("small")
    with pytest.raises(TimeoutError, match="still driven"):
        other.wait(timeout=0)
    assert other.stop(timeout=60)
    wait_for(lambda: run.exit_code is not None, what="the end of the process")
    with pytest.warns(RuntimeWarning, match="was stopped before its end"):
        assert run.wait() is run
    assert run.exit_code is Exit.INTERRUPTED
    assert run.status()["state"] != "done"
    with pytest.raises(DriverError, match=r"budget.steps: 3000 -> 8\n(?s:.*)\(exit code 2\)") as changed:
        launch(tomllib.loads(SWEEP), into=Path("runs/small"), offline=True)
    assert changed.value.exit_code is Exit.BAD_USAGE
    assert run.resume(execution={"threads": 1}, offline=True, wait=False) is run
    wait_for(trained, what="a trial")
    assert run.stop()
    assert (run.exit_code, run.is_running) == (Exit.INTERRUPTED, False)
    assert "2 arms, 4 tune trials" in capfd.readouterr().out
    with pytest.raises(DriverError, match=r"only job.execution may change"):
        run.resume(execution={"thread": 1}, offline=True)


@pytest.mark.slow
def test_ctrl_c_stops_in_good_order(script: Callable[[str], subprocess.Popen[str]]) -> None:
    process = script("launch('sweep.toml', offline=True)")
    wait_for(trained, what="a trial")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert printed.splitlines()[-1] == "KeyboardInterrupt"
    stood = open_run("small").status()
    assert (stood["driver"], stood["counts"]["failed"]) == (None, 0)


@pytest.mark.soak
@pytest.mark.slow
def test_a_second_ctrl_c_no_longer_waits(script: Callable[[str], subprocess.Popen[str]]) -> None:
    process = script("launch('sweep.toml', offline=True)")
    wait_for(trained, what="a trial")
    (driver,) = psutil.Process(process.pid).children()
    driver.suspend()  # so that it takes its time
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    assert printed.splitlines()[-1] == "KeyboardInterrupt"
    driver.resume()
    open_run("small").wait(timeout=60)
    assert open_run("small").status()["driver"] is None


@pytest.mark.soak
@pytest.mark.slow
def test_a_caller_that_is_killed_leaves_the_driver_at_work_and_a_driver_that_is_killed_is_told(
    script: Callable[[str], subprocess.Popen[str]],
) -> None:
    """As a terminal does that is closed. Mutant check: a child of the caller's process group fails this."""
    process = script("import time; run = launch('sweep.toml', offline=True, wait=False); time.sleep(600)")
    wait_for(trained, what="a trial")
    (driver,) = psutil.Process(process.pid).children()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert driver.is_running()
    run = open_run("small")
    assert run.is_running
    assert run.stop()
    wait_for(lambda: not driver.is_running(), what="its end")
    run.resume(offline=True, wait=False)
    wait_for(trained, what="a trial")
    assert run._child is not None
    os.kill(run._child.pid, signal.SIGKILL)
    with pytest.raises(DriverError, match="was ended by SIGKILL; nothing that had ended is lost") as killed:
        run.wait()
    assert killed.value.exit_code == -signal.SIGKILL


@pytest.mark.soak
@pytest.mark.slow
def test_trials_that_fail_are_a_warning_and_the_run_is_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = home / "fault.json"
    plan.write_text(json.dumps({"at": "step", "rank": 0, "do": "raise", "times": 1}))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "faults" / "inject"))
    monkeypatch.setenv("ORCHESTRATOR_FAULT", str(plan))
    tables = {key: value for key, value in tomllib.loads(SWEEP).items() if key != "tune"}
    with pytest.warns(RuntimeWarning, match="some trials failed"):
        run = launch(tables | {"confirm": {"seeds": 2}}, offline=True)
    assert run.exit_code is Exit.SOME_FAILED
    assert run.status()["counts"] == {"queued": 0, "running": 0, "done": 3, "pruned": 0, "failed": 1}


def test_what_is_no_sweep_or_no_place_is_refused_before_a_driver_begins(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep.toml is not a valid sweep:\n  metric.name = 'spearmn'"):
        launch("sweep.toml", overrides=["metric.name=spearmn"])
    with pytest.raises(ConfigError, match=r"the sweep is not a valid sweep:\n  --set = "):
        launch(tomllib.loads(LONG), overrides={"compare..x": 1})
    with pytest.raises(ConfigError, match=r"there is no such file; did you mean 'sweep.toml'"):
        launch("sweeep.toml")
    with pytest.raises(RunError, match="compared lies in the folder of runs"):
        launch("sweep.toml", into="runs/compared")
    with pytest.raises(TypeError, match="a path, a Sweep or a dict"):
        launch(["sweep.toml"])  # type: ignore[arg-type]
    assert sorted(path.name for path in home.iterdir()) == ["sweep.toml"]
    assert isinstance(Run, type)


def test_what_python_says_when_it_ends_a_driver_is_no_failed_trial(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are exit code 1."""
    (home / "broken").mkdir()
    (home / "broken" / "click.py").write_text("raise RuntimeError('this click is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(home / "broken"))
    with pytest.raises(DriverError, match="this click is broken"):
        launch("sweep.toml", offline=True)
    folder: Any = home / "runs"
    assert not folder.exists()
