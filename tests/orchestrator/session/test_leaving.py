"""Signals of a session: one request however often it is sent at once; and a way out that works whatever does not."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import pytest
from ledgers import Begin, Run

from orchestrator.preflight import requirements
from orchestrator.run_dir.context import Options
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session import shutdown
from orchestrator.session.progress import Progress
from orchestrator.session.session import Session
from orchestrator.session.shutdown import Leaving, ended_by_sigterm, quiet, signals
from orchestrator.system.exit_codes import InfrastructureMissing


class Left(Exception):
    """The way out was taken."""


class Told(Leaving):
    """Tells that it was taken, and stays."""

    def now(self, code: int, text: str) -> NoReturn:
        raise Left(f"{code}: {text}")


@pytest.fixture
def run(begin: Begin) -> Run:
    return begin()


def session_of(run: Run, folder: Path) -> Session:
    return Session(run.context(folder), concurrent=1, tell=lambda *_: None)


def test_sigterm_to_the_process_and_at_once_to_its_group_is_one_request(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As coreutils' `timeout` does. A later one stops at once, and so does a Ctrl-C. Mutant check: without ECHO_S the
    second stops at once."""
    for later in (signal.SIGTERM, signal.SIGINT):
        monkeypatch.setattr(shutdown, "ECHO_S", 30.0)
        session = session_of(run, tmp_path)
        with signals(session, Told(run.ledger, Progress(run.context(tmp_path))), grace_s=60):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert (session.interrupted, session.stopped_by) == (True, "SIGTERM")
            if later == signal.SIGTERM:
                monkeypatch.setattr(shutdown, "ECHO_S", 0.0)
            with pytest.raises(Left, match=f"130: {later.name}: stopped at once"):
                os.kill(os.getpid(), later)


def test_ctrl_c_twice_is_two_requests_however_quick(run: Run, tmp_path: Path) -> None:
    session = session_of(run, tmp_path)
    with signals(session, Told(run.ledger, Progress(run.context(tmp_path))), grace_s=60):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Left, match="130: SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)


class Mute(Progress):
    """Can say nothing, not even that."""

    def say(self, text: str) -> None:
        raise RuntimeError(text)


@pytest.mark.parametrize("progress", [Progress, Mute])
def test_the_way_out_ends_with_its_code_whatever_of_it_fails(
    run: Run, tmp_path: Path, progress: type[Progress]
) -> None:
    """Mutant check: `os._exit` as the last statement, and not in `finally`, fails this."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads; the child only leaves
        pid = os.fork()
    if pid == 0:
        run.ledger.close()  # what gives the lease back fails then, in a thread
        Leaving(run.ledger, progress(run.context(tmp_path))).now(75, "the cluster died")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75


def test_every_line_is_in_the_log_with_its_time_also_after_the_noise(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Noise is what this process and its children print, on the descriptors or by Python; it is in the log alone."""
    progress, folder = Progress(run.context(tmp_path, Options(offline=True))), RunFolder(tmp_path)
    with quiet(progress):
        os.system("echo noise of a child")
        progress.say("in between: größer [bold]")
    progress.say("afterwards")
    progress.close([])
    out = capfd.readouterr().out
    log = folder.log.read_text()
    assert "noise of a child\n" in log
    for line in ("in between: größer [bold]", "afterwards", f"report:  {folder.report / 'report.html'}"):
        assert f"\n{line}\n" in out
        assert f"  {line}\n" in log
    assert "noise" not in out
    stamped = [line for line in log.splitlines() if line != "noise of a child"]
    assert all(line[:4].isdigit() and line[19] in "+-" for line in stamped)


def test_a_run_whose_log_is_a_folder_is_driven_without_one(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.log.mkdir()
    progress = Progress(run.context(tmp_path))
    with quiet(progress):
        progress.say("on")
    progress.release()
    out = capfd.readouterr().out
    assert "driver.log cannot be written (Is a directory)" in out
    assert "\non\n" in out


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "-1", "soon", "1e400", "25s"])
def test_a_grace_period_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ORCHESTRATOR_GRACE_S", text)
    with pytest.raises(InfrastructureMissing, match=f"ORCHESTRATOR_GRACE_S={text} is no number of seconds"):
        requirements.grace_s()


@pytest.mark.parametrize(("text", "seconds"), [("", 25.0), ("0", 0.0), ("1e10", 1e10), ("7.5", 7.5)])
def test_any_other_grace_period_is_taken(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("ORCHESTRATOR_GRACE_S", text)
    assert requirements.grace_s() == seconds


def test_sigterm_where_there_is_no_session_is_a_ctrl_c() -> None:
    """So that what was started for the checks is ended. Mutant check: the process ends at once, and leaves it."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


BARRED = """
import os, sys
from pathlib import Path
from orchestrator.session.shutdown import Leaving
from orchestrator.ledger import Ledger
from orchestrator.run_dir.context import RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.sweep.plan import stored
from orchestrator.session.progress import Progress
ledger = Ledger.open(sys.argv[1])
progress = Progress(RunContext(stored(ledger.run.sweep, ledger.run.rules), RunFolder(Path()), ledger))
progress.detach()
Leaving(ledger, progress).now(75, "the cluster died")
"""


def test_the_way_out_brings_back_the_cursor_that_the_bar_hides(run: Run) -> None:
    """On a terminal. Mutant check: `os._exit` alone leaves the person's shell without one."""
    ours, theirs = pty.openpty()
    url = run.ledger._database.url.render_as_string(hide_password=False)
    with subprocess.Popen([sys.executable, "-c", BARRED, url], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's word for a terminal that its last user has closed
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 75
    hidden, again = shown.rfind(b"\x1b[?25l"), shown.rfind(b"\x1b[?25h")
    assert 0 <= hidden < again, shown
