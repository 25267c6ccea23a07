"""Losing the terminal ended the driver, by SIGHUP at once or by EIO in its writer, without a reason anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from real import QUICK, SWEEP, call, command, kill, wait_for

pytestmark = pytest.mark.slow

SMALL = SWEEP.replace("ranks = 2", "ranks = 1").replace("seeds = 3", "seeds = 2")


@pytest.mark.soak
def test_a_connection_that_drops_costs_the_sweep_nothing(tmp_path: Path) -> None:
    """A terminal of its own, which is closed after the first trial; then SIGHUP to all of its group."""
    (tmp_path / "sweep.toml").write_text(SMALL)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command("launch", "sweep.toml", "--offline"),
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=QUICK | os.environ,
    )
    os.close(theirs)
    log = tmp_path / "runs" / "small" / "driver.log"
    try:
        wait_for(lambda: log.exists() and "[1/8]" in log.read_text(errors="replace"))
        os.close(ours)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(200) == 0
    finally:
        kill(process)
    stood = json.loads(call("status", "small", "--json", cwd=tmp_path))
    assert (stood["state"], stood["counts"]["done"]) == ("done", 8)
    said = log.read_text(errors="replace")
    assert "[8/8]" in said
    assert "SIGHUP" in said
