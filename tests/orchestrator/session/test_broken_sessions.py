"""A session that something ends: whatever it is, the exit code is of the table, there are words on the terminal and in
driver.log, the lease is free and the run does not seem to run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from ledgers import Run, start
from real import SWEEP, command, wait_for

from orchestrator import driver
from orchestrator.cli import group
from orchestrator.ledger import LeaseLost, LedgerUnavailable
from orchestrator.preflight.requirements import Requirements
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.progress import Progress
from orchestrator.session.session import Session
from orchestrator.system import exit_codes, terminal, threads
from orchestrator.system.exit_codes import Exit

NEEDS = Requirements(max_world_size=1, concurrent=1, can_autoscale=False, tracking_uri=None, grace_s=25.0)
"""Of a session of one rank, without MLflow."""

Break = Callable[[Session], None]


def raising(error: BaseException) -> Break:
    """In the main thread, as where Ray does not start."""

    def broken(_session: Session) -> None:
        raise error

    return broken


def dying(error: BaseException, name: str) -> Break:
    """In a thread of the session."""

    def broken(session: Session) -> None:
        def work() -> None:
            raise error

        threads.start(work, name=name, died=session.fail).join(5)
        session.close()

    return broken


class Mine(BaseException):
    """No Exception."""


WAYS: dict[str, tuple[Break, int, str]] = {
    "SystemExit in a thread": (
        dying(SystemExit(1), "ledger-writer"),
        4,
        "SystemExit: 1, in the thread 'ledger-writer'",
    ),
    "GeneratorExit in a thread": (dying(GeneratorExit(), "cluster-ask"), 4, "GeneratorExit, in the thread 'cluster-"),
    "KeyboardInterrupt in a thread": (dying(KeyboardInterrupt(), "x"), 4, "KeyboardInterrupt, in the thread 'x'"),
    "another one in a thread": (dying(Mine("odd"), "x"), 4, "Mine: odd, in the thread 'x'"),
    "a bug in a thread": (
        dying(KeyError("k"), "x"),
        4,
        "unexpected KeyError: 'k'; this is a fault of the program; detail",
    ),
    "a ledger that is gone": (dying(LedgerUnavailable("gone for 300 s"), "x"), 4, "gone for 300 s"),
    "a lease that is lost": (dying(LeaseLost("another took it"), "x"), 3, "another took it"),
    "Ray does not start": (raising(ConnectionError("Ray does not start here: x; do y")), 4, "Ray does not start here"),
    "a disk that is full": (
        raising(OSError(28, "No space left on device", "/a")),
        4,
        "/a: No space left on device; free",
    ),
    "a bug": (raising(ZeroDivisionError("1/0")), 4, "unexpected ZeroDivisionError: 1/0; this is a fault"),
    "Ctrl-C where nobody handles it": (raising(KeyboardInterrupt()), 130, "interrupted"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("ORCHESTRATOR_LEDGER", exit_codes.TRACEBACK):
        monkeypatch.delenv(name, raising=False)
    begun = start(tmp_path / "runs" / "demo", seeds=2)
    for arm in ("plain", "flat"):
        begun.confirm(arm)
    begun.ledger.release()
    yield begun
    begun.ledger.close()


def resume(run: Run, monkeypatch: pytest.MonkeyPatch, broken: Break) -> Result:
    """By the command line, but for the checks and for what would train."""

    def drive(folder: RunFolder, **_: Any) -> int:
        return driver._drive(run.context(folder.path), NEEDS, record=None)

    monkeypatch.setattr(driver, "resume", drive)
    monkeypatch.setattr(driver, "_execute", lambda session, *_, **__: broken(session))
    monkeypatch.setattr(terminal, "survive", lambda: None)  # it is for good
    return CliRunner().invoke(group.main, ["resume", "demo", "--offline"])


@pytest.mark.parametrize("way", WAYS)
def test_whatever_ends_a_session_is_said_and_logged_with_a_code_of_the_table(
    run: Run, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Mutant checks: raising what ended a thread as it is ends with code 1 and no words; without `_logged` the log has
    no reason."""
    broken, code, words = WAYS[way]
    done = resume(run, monkeypatch, broken)
    assert (done.exit_code, words in done.output) == (code, True), done.output
    log = RunFolder(Path(os.environ["ORCHESTRATOR_RUNS"]) / "demo").log.read_text()
    assert (words if code != Exit.INTERRUPTED else "ended by KeyboardInterrupt") in log.splitlines()[-1], log
    assert (run.ledger.run.state, run.ledger.holder()) == ("stopped", None)


def test_an_unexpected_error_has_one_file_of_details_which_the_log_names(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mutant check: without `KEPT` the terminal names another file than the log."""
    said = resume(run, monkeypatch, raising(ZeroDivisionError("1/0"))).output
    (details,) = tmp_path.glob("orchestrator-error-*.txt")
    log = RunFolder(Path(os.environ["ORCHESTRATOR_RUNS"]) / "demo").log.read_text()
    assert str(details) in said
    assert str(details) in log
    assert "ZeroDivisionError" in details.read_text()


def test_with_tracebacks_wanted_the_log_has_one_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(exit_codes.TRACEBACK, "1")
    done = resume(run, monkeypatch, raising(ZeroDivisionError("1/0")))
    assert isinstance(done.exception, ZeroDivisionError)
    log = RunFolder(Path(os.environ["ORCHESTRATOR_RUNS"]) / "demo").log.read_text()
    assert "Traceback (most recent call last)" in log
    assert log.splitlines()[-1].endswith("ZeroDivisionError: 1/0")


def test_a_ctrl_c_after_the_session_keeps_neither_lease_nor_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While last lines are written and MLflow is waited for. Mutant check: signals handled for the session alone."""
    release, sent = Progress.release, list[int]()

    def disturbed(progress: Progress) -> None:
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        release(progress)

    monkeypatch.setattr(Progress, "release", disturbed)
    done = resume(run, monkeypatch, raising(OSError(28, "No space left on device", "/a")))
    assert (done.exit_code, "No space left" in done.output, sent) == (4, True, [1]), done.output
    assert (run.ledger.run.state, run.ledger.holder()) == ("stopped", None)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_checks_is_130_and_ends_what_they_started(tmp_path: Path, number: signal.Signals) -> None:
    """To the driver alone, as a supervisor sends it. Mutant checks: `Aborted!` and 1 after a Ctrl-C; the check that
    loads torch outlives a SIGTERM."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    process = subprocess.Popen(
        command("launch", "sweep.toml", "--offline"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    driver_ = psutil.Process(process.pid)
    checks = wait_for(lambda: [one for one in driver_.children() if "-m" in one.cmdline()], what="a check")
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted\n")
    _, alive = psutil.wait_procs(checks, timeout=5)
    assert not alive
    assert not (tmp_path / "runs").exists()
