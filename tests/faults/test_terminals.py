"""Rows 24 and 28 to 30 of the fault table: whatever becomes of the terminal the sweep goes on, and a signal to the
driver's whole process group reaches the driver, who sees to the rest.

Whole sweeps by the command line, in processes of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from real import (
    LONG,
    QUICK,
    RANK,
    TRIALS,
    call,
    children,
    command,
    driver,
    ended,
    kill,
    measured,
    named,
    recovered,
    status,
    wait_for,
)

from orchestrator.run_dir.folder import RunFolder


def done(home: Path, undisturbed: dict[str, float]) -> str:
    """The sweep has ended as if nothing had happened, and its log, which this returns, has every trial and the
    answer."""
    stood = status(home)
    assert (stood["state"], stood["counts"]["done"], stood["driver"]) == ("done", TRIALS, None)
    assert measured(home) == undisturbed
    log = (home / "runs" / "small" / "driver.log").read_text()
    for words in (*(f"[{number}/{TRIALS}]" for number in range(1, TRIALS + 1)), "paired differences", "report:"):
        assert words in log, words
    return log


@contextlib.contextmanager
def on_a_terminal(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The small sweep on a terminal of its own, which it leads as a shell's `exec` would; and the terminal's other
    end."""
    master, slave = pty.openpty()

    def own() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    environment = QUICK | os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        command("launch", "sweep.toml", "--offline"),
        cwd=home,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=own,  # noqa: PLW1509 - nothing else gives a child a controlling terminal
    )
    os.close(slave)
    try:
        yield process, master
    finally:
        kill(process)
        with contextlib.suppress(OSError):
            os.close(master)


@pytest.mark.soak
def test_row_28_a_reader_that_leaves_and_a_hangup_of_the_whole_group_change_nothing(
    home: Path, undisturbed: dict[str, float]
) -> None:
    """`launch | head -5`, then SIGHUP to the driver and all that it started in its group. Mutant check: a Console on
    sys.stdout hangs here; Ray's processes in the driver's group die of the signal."""
    folder = RunFolder(home / "runs" / "small")
    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        process.stdout.close()
        wait_for(lambda: ended(folder) >= 3)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(120) == 0
    assert "Does FlatNCE beat InfoNCE?" in lines[0]
    assert "SIGHUP: the terminal is gone or was left; the sweep goes on" in done(home, undisturbed)


@pytest.mark.soak
def test_row_29_a_terminal_that_dies_under_its_bar_changes_nothing(home: Path, undisturbed: dict[str, float]) -> None:
    """An ssh connection that drops: the kernel hangs up, and what is written is an error from then on."""
    folder, seen = RunFolder(home / "runs" / "small"), b""
    with on_a_terminal(home) as (process, master):
        while b"[2/" not in seen:
            seen += os.read(master, 65536)
        assert ended(folder) < TRIALS
        os.close(master)
        assert process.wait(120) == 0
    assert b"\x1b[" in seen, "there was no bar"
    assert "SIGHUP" in done(home, undisturbed)


@pytest.mark.soak
def test_row_30_streams_that_are_closed_or_full_from_the_start_change_nothing(
    home: Path, undisturbed: dict[str, float]
) -> None:
    """Nothing that is printed, by C++ neither, ends in the ledger, which would get the number of a closed stream."""
    shell = f"exec {' '.join(map(repr, command('launch', 'sweep.toml', '--offline')))} <&- > /dev/full 2>&-"
    process = subprocess.Popen(["bash", "-c", shell], cwd=home, env=QUICK | os.environ, start_new_session=True)
    try:
        assert process.wait(150) == 0
    finally:
        kill(process)
    done(home, undisturbed)
    assert call("launch", "sweep.toml", "--offline", cwd=home).count("/10]") == 0, "it is done"


@pytest.mark.slow
def test_row_24_sigterm_to_the_group_checkpoints_and_kill_9_leaves_no_process(home: Path) -> None:
    """As `timeout` does it: to the process, and at once to its group. Ray's processes are no part of it. Mutant check:
    Ray's own start fails this with exit code 75, and its agents outlive a kill -9 by half a minute."""
    (home / "sweep.toml").write_text(LONG)
    folder = RunFolder(home / "runs" / "small")

    def steps() -> list[int]:
        return sorted(int(p.parent.name[5:]) for p in folder.trials.glob("*/checkpoints/step_*/manifest.json"))

    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        wait_for(steps)
        family = children(process)
        assert {one.name() for one in family} >= {"raylet", "gcs_server"}
        assert process.pid not in {os.getpgid(one.pid) for one in family}
        assert "share the driver's process group" not in folder.log.read_text()
        asked = time.time()
        process.terminate()
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert not psutil.wait_procs(family, timeout=10)[1], "something of the cluster outlived the driver"
    assert "stopped: SIGTERM" in said
    (trial,) = [trial for trial in status(home)["trials"] if trial["attempts"]]
    assert (trial["state"], trial["failure"]) == ("queued", "interrupted")
    newest = steps()[-1]
    committed = folder.trial(trial["id"]) / "checkpoints" / f"step_{newest:06d}" / "manifest.json"
    assert committed.stat().st_mtime > asked, "nothing was saved when it was stopped"
    with driver("resume", "small", "--offline", cwd=home) as process:
        wait_for(lambda: steps()[-1] > newest)
        family = children(process)
        ranks = named(RANK, process.pid)
        assert len(ranks) >= 2
        process.kill()
        began = time.monotonic()
        left = psutil.wait_procs(family, timeout=15)[1]
        assert not left, left
        recovered("24, kill -9", time.monotonic() - began)
        process.wait()
